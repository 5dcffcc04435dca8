"""The verbs and their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from orchestrator import __version__, api
from orchestrator.cli import verbs
from orchestrator.errors import nearest

_EPILOG = """examples:
  orch plan experiment=digits_lr
  orch launch experiment=digits_lr model.lr=1e-3,1e-2 'seed=range(0,5)' cluster=workstation --watch
  orch status digits-lr
  orch logs digits-lr state=failed
  orch compare digits-lr
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\nfix: {self.prog} --help\n")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command. Words that are no options may stand anywhere after the verb."""
    parser = _Parser(
        prog="orch", description="Declarative experiments: plan, launch, look, compare.", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"orch {__version__}")
    subparsers = parser.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    for add in _VERBS:
        add(subparsers)
    verb = next((word for word in argv if not word.startswith("-")), None)
    if verb is not None and verb not in subparsers.choices:
        verbs_there = ", ".join(subparsers.choices)
        parser.error(f"{verb!r} is no verb{nearest(verb, subparsers.choices)}; there are {verbs_there}")
    arguments, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-")]
    if unknown or (rest and not hasattr(arguments, "words")):
        known = [option for action in subparsers.choices[str(verb)]._actions for option in action.option_strings]  # noqa: SLF001 - argparse offers no other way to list them
        word = (unknown or rest)[0]
        parser.error(f"{word} is unknown{nearest(word, known)}")
    if rest:
        arguments.words = [*arguments.words, *rest]
    return arguments


def _verb(
    subparsers: argparse._SubParsersAction[_Parser], name: str, help_: str, verb: Callable[[argparse.Namespace], int]
) -> _Parser:
    parser = subparsers.add_parser(name, help=help_, description=help_)
    parser.add_argument("--project", default=".", metavar="DIR", help="the folder that holds conf/ (default: here)")
    parser.add_argument("--runs", metavar="DIR", help="the folder for runs (default: $ORCH_RUNS, or runs/)")
    parser.add_argument("--verbose", action="store_true", help="say more on standard error")
    parser.set_defaults(verb=verb)
    return parser


def _overrides(parser: _Parser) -> None:
    parser.add_argument(
        "words", nargs="*", metavar="OVERRIDE",
        help="Hydra overrides: experiment=NAME model.lr=1e-3,1e-2 +key=value ~key",
    )  # fmt: skip
    parser.add_argument(
        "--rerun", choices=("never", "changed", "always"), default="never",
        help="run finished runs anew, next to what they have: those whose code changed, or all",
    )  # fmt: skip


def _selection(parser: _Parser, what: str = "") -> None:
    parser.add_argument(
        "words", nargs="*", metavar="RUNS",
        help=what or "an experiment, and/or runs of it by id prefix, state=..., launch=N, tag=WORD, key=value",
    )  # fmt: skip


def _plan(subparsers: argparse._SubParsersAction[_Parser]) -> None:
    parser = _verb(subparsers, "plan", "show what a launch would do, and why, and what it would ask for", verbs.plan)
    _overrides(parser)
    parser.add_argument("--all", action="store_true", help="every run, however many")
    parser.add_argument("--sbatch", action="store_true", help="the scripts that a launch would hand to sbatch")
    parser.add_argument(
        "--forecast", action="store_true",
        help="build the models that were never trained, to forecast the size of their checkpoints (seconds)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="as JSON")


def _launch(subparsers: argparse._SubParsersAction[_Parser]) -> None:
    parser = _verb(subparsers, "launch", "launch what is missing of an experiment", verbs.launch)
    _overrides(parser)
    parser.add_argument("-m", "--message", default="", metavar="WHY", help="kept with the launch")
    parser.add_argument("--tag", action="append", default=[], metavar="WORD", help="a word to find the launch by")
    parser.add_argument(
        "--canary", type=int, metavar="N", help="N runs first; the others once these are done, and never if one fails"
    )
    parser.add_argument(
        "--brake", type=int, metavar="K", help="after K failures with the same signature nothing more begins"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask, however many runs (sweep.ask_above)")
    parser.add_argument("--wait", action="store_true", help="return when the runs have ended")
    parser.add_argument("--watch", action="store_true", help="show progress until the runs have ended")


def _run(subparsers: argparse._SubParsersAction[_Parser]) -> None:
    parser = _verb(subparsers, "run", "run one run in the foreground, its output in the terminal", verbs.run)
    _overrides(parser)
    parser.add_argument("-m", "--message", default="", metavar="WHY", help="kept with the launch")
    parser.add_argument(
        "--on", metavar="CLUSTER",
        help="a debug run there, of a few batches on one node: slurm, workstation, inline, or a profile of yours",
    )  # fmt: skip
    parser.add_argument(
        "--batches", type=int, metavar="N", help=f"of a debug run, with --on (default: {api.DEBUG_BATCHES})"
    )


def _status(subparsers: argparse._SubParsersAction[_Parser]) -> None:
    parser = _verb(subparsers, "status", "show experiments, or the runs of one", verbs.status)
    _selection(parser)
    parser.add_argument("-w", "--watch", action="store_true", help="live, until all runs have ended")
    parser.add_argument("--hidden", action="store_true", help="also what `orch hide` has hidden")
    parser.add_argument("--all", action="store_true", help="every run, however many")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _show(subparsers: argparse._SubParsersAction[_Parser]) -> None:
    parser = _verb(subparsers, "show", "show everything known of a run", verbs.show)
    _selection(parser, "an experiment and/or an id prefix: one run")
    parser.add_argument("--json", action="store_true", help="as JSON")


def _diff(subparsers: argparse._SubParsersAction[_Parser]) -> None:
    parser = _verb(subparsers, "diff", "compare two runs: config, code, data, environment", verbs.diff)
    _selection(parser, "two runs by id prefix, and perhaps their experiment")


def _logs(subparsers: argparse._SubParsersAction[_Parser]) -> None:
    parser = _verb(subparsers, "logs", "show the log of runs", verbs.logs)
    _selection(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="until the run has ended, across attempts")
    parser.add_argument("--attempt", type=int, metavar="N", help="of one attempt (default: the latest)")


def _cancel(subparsers: argparse._SubParsersAction[_Parser]) -> None:
    _selection(_verb(subparsers, "cancel", "cancel runs that wait or run", verbs.cancel))


def _hold(subparsers: argparse._SubParsersAction[_Parser]) -> None:
    _selection(_verb(subparsers, "hold", "keep runs that wait from starting", verbs.hold))


def _release(subparsers: argparse._SubParsersAction[_Parser]) -> None:
    _selection(_verb(subparsers, "release", "let held runs go, and those that wait for a canary", verbs.release))


def _change(subparsers: argparse._SubParsersAction[_Parser]) -> None:
    parser = _verb(subparsers, "change", "give runs that wait in Slurm's queue other limits", verbs.change)
    _selection(parser)
    parser.add_argument("--hours", type=float, metavar="H", help="the time limit of an attempt")
    parser.add_argument("--throttle", type=int, metavar="N", help="at most so many of an array at once; 0: no limit")
    for name in ("partition", "account", "qos"):
        parser.add_argument(f"--{name}", metavar="NAME", help="another one")


def _hide(subparsers: argparse._SubParsersAction[_Parser]) -> None:
    parser = _verb(subparsers, "hide", "leave runs out of status and compare; nothing is deleted", verbs.hide)
    _selection(parser)
    parser.add_argument("--undo", action="store_true", help="show them again")


def _retry(subparsers: argparse._SubParsersAction[_Parser]) -> None:
    parser = _verb(
        subparsers, "retry", "start failed runs again from scratch, with today's code; go on with interrupted ones",
        verbs.retry,
    )  # fmt: skip
    _selection(parser)
    parser.add_argument("-m", "--message", default="", metavar="WHY", help="kept with the launch")
    parser.add_argument("--yes", action="store_true", help="do not ask, however many runs (sweep.ask_above)")
    parser.add_argument("--wait", action="store_true", help="return when the runs have ended")
    parser.add_argument("--watch", action="store_true", help="show progress until the runs have ended")


def _compare(subparsers: argparse._SubParsersAction[_Parser]) -> None:
    parser = _verb(subparsers, "compare", "rank the runs of an experiment", verbs.compare)
    _selection(parser)
    parser.add_argument(
        "--metric", action="append", default=[], metavar="NAME",
        help="rank by this metric (default: the objective), and show no others; may be given again",
    )  # fmt: skip
    each = parser.add_mutually_exclusive_group()
    each.add_argument("--each", action="store_true", help="every run by itself, also where only seeds differ")
    each.add_argument(
        "--over", action="append", metavar="KEY", help="average over this swept key (default: seed); may be given again"
    )
    parser.add_argument("--all", action="store_true", help="every row, however many")
    parser.add_argument("--html", metavar="FILE", help="write a page with the curves and plots, complete in itself")
    parser.add_argument("--hidden", action="store_true", help="also what `orch hide` has hidden")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--csv", action="store_true", help="as CSV")


def _ui(subparsers: argparse._SubParsersAction[_Parser]) -> None:
    parser = _verb(subparsers, "ui", "bring MLflow up to date and open its UI on loopback", verbs.ui)
    parser.add_argument("--once", action="store_true", help="only bring MLflow up to date")
    parser.add_argument("--port", type=int, default=0, help="the port (default: a free one)")


def _data(subparsers: argparse._SubParsersAction[_Parser]) -> None:
    parser = _verb(subparsers, "data", "show data versions, and look after those on this node", verbs.data)
    parser.add_argument(
        "what", choices=("resolve", "stage", "status", "gc", "verify"),
        help="resolve: the files that an experiment would pin; stage: bring them here; "
        "status, gc, verify: what is here, remove what nobody needs, read all of it",
    )  # fmt: skip
    parser.add_argument("words", nargs="*", metavar="WORD", help="Hydra overrides; for verify: digests")
    parser.add_argument("--scratch", metavar="DIR", help="the site's scratch folder, as cluster.scratch")
    parser.add_argument("--all", action="store_true", help="gc: every version that no run holds")
    parser.add_argument("--max-gb", type=float, metavar="N", help="gc: remove the oldest until so much is left")
    parser.add_argument("--keep-free-gb", type=float, metavar="N", help="gc: until so much of the disk is free")
    parser.add_argument("--json", action="store_true", help="as JSON")


_VERBS = (
    _plan,
    _launch,
    _run,
    _status,
    _show,
    _diff,
    _logs,
    _cancel,
    _hold,
    _release,
    _change,
    _retry,
    _compare,
    _hide,
    _ui,
    _data,
)
