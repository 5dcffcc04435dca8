"""The command line. Results go to standard output, messages to standard error.

Exit status: 0 ok; 1 a run or the cluster failed; 2 the request was wrong and nothing was done.

Each verb is a module of the same name: `add_arguments` defines its arguments, `handle` runs it and prints the result.
Only the verb that is used is imported, and none for `--help`, `--version` or an unknown verb.
"""

from __future__ import annotations

import argparse
import errno
import gc
import importlib
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from orchestrator import __version__
from orchestrator.cli.text import Formatter, harmless, paint, say
from orchestrator.errors import OrchError, StateError, nearest

VERBS: Mapping[str, str] = {
    "plan": "show what a launch would do and why, and the resources it would request",
    "launch": "launch the missing runs of an experiment",
    "run": "run one run in the foreground, its output in the terminal",
    "status": "show experiments, or the runs of one",
    "show": "show everything known about a run",
    "diff": "compare two runs: config, code, data, environment",
    "logs": "show the log of runs",
    "cancel": "cancel waiting or running runs",
    "hold": "keep waiting runs from starting",
    "release": "let held runs start, and those that wait for a canary",
    "change": "change the limits of runs that wait in Slurm's queue",
    "retry": "start failed runs again from scratch, with your current code; resume interrupted ones",
    "compare": "rank the runs of an experiment",
    "adopt": "make copied runs your own: those that wait can then be submitted",
    "hide": "leave runs out of status and compare; nothing is deleted",
    "ui": "bring MLflow up to date and open its UI on loopback",
    "data": "show data versions, and manage those on this node",
}
"""Each verb with its purpose, in the order in which `--help` lists them. Module docstrings begin the same way."""

_OTHERS, _FULL = "it is another user's: ask them, or use --runs", "free some space there"
_ENVIRONMENT: Mapping[int | None, str] = {
    errno.EACCES: _OTHERS,
    errno.EPERM: _OTHERS,
    errno.EROFS: "choose a folder that can be written, with --runs or $ORCH_RUNS",
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "a link has taken the place of a file: ask whose runs these are",
    errno.ENXIO: "something else has taken the place of a file: ask whose runs these are",
    errno.EIO: "see what its disk, or its server, reports",
    errno.ESTALE: "see what its disk, or its server, reports",
}
"""System errors that are not bugs in `orch`, with their fixes."""

_EPILOG = """examples:
  orch plan experiment=digits_lr
  orch launch experiment=digits_lr model.lr=1e-3,1e-2 'seed=range(0,5)' cluster=workstation --watch
  orch status digits-lr
  orch logs digits-lr state=failed
  orch compare digits-lr
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, harmless(f"error: {message}\nfix: {self.prog} --help\n"))

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout:  # argparse would not report that it cannot be written
            file.write(message)
            file.flush()
        else:
            super()._print_message(message, file)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    gc.set_threshold(100_000, 10, 10)  # the many records form no cycles: collecting took a tenth of `status`
    try:
        arguments = parse(sys.argv[1:] if argv is None else list(argv))
        level = logging.INFO if arguments.verbose else logging.WARNING
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(Formatter())
        logging.basicConfig(level=level, handlers=[handler])
        status: int = arguments.handle(arguments)
        sys.stdout.flush()
    except OrchError as error:
        _explain(error)
        return error.exit_code
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.errno not in _ENVIRONMENT:
            raise
        what = str(error.filename or "standard output")
        _explain(StateError(f"{what:.200}: {error.strerror}", fix=_ENVIRONMENT[error.errno]))
        return StateError.exit_code
    except KeyboardInterrupt:
        return 130
    return status


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command. Positional words may come anywhere after the verb."""
    verb = next((word for word in argv if not word.startswith("-")), None)
    if verb is not None and verb not in VERBS:
        _Parser(prog="orch").error(f"{verb!r} is not a verb{nearest(verb, VERBS)}; the verbs are {', '.join(VERBS)}")
    comes_first = verb is not None and argv[0] == verb  # `--help` before the verb is that of `orch`
    parser, parsers = _parsers([str(verb)] if comes_first else VERBS)
    if verb is not None:
        _add_arguments(parsers[verb], verb)
    arguments, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-")]
    if unknown or (rest and not hasattr(arguments, "words")):
        known = [option for action in parsers[str(verb)]._actions for option in action.option_strings]  # noqa: SLF001 - argparse offers no other way to list them
        word = (unknown or rest)[0]
        parser.error(f"{word} is unknown{nearest(word, known)}")
    if rest:
        arguments.words = [*arguments.words, *rest]
    return arguments


def _parsers(verbs: Iterable[str]) -> tuple[_Parser, Mapping[str, _Parser]]:
    """Return the parser of `orch`, and its subparser of each verb, which has no arguments yet."""
    parser = _Parser(
        prog="orch",
        description="Declarative experiments: plan, launch, watch, compare.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"orch {__version__}")
    subparsers = parser.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    return parser, {verb: subparsers.add_parser(verb, help=VERBS[verb], description=VERBS[verb]) for verb in verbs}


def _add_arguments(parser: _Parser, verb: str) -> None:
    """Import a verb, and add to its parser the options of every verb, then its own arguments."""
    module = importlib.import_module(f"{__name__}.{verb}")
    parser.add_argument("--project", default=".", metavar="DIR", help="the folder that holds conf/ (default: here)")
    parser.add_argument("--runs", metavar="DIR", help="the folder for runs (default: $ORCH_RUNS, or runs/)")
    parser.add_argument("--verbose", action="store_true", help="print more on standard error")
    module.add_arguments(parser)
    parser.set_defaults(handle=module.handle)


def _explain(error: OrchError) -> None:
    why = f": {error.why}" if error.why else ""
    say(paint(f"error: {error.what}{why}", "red", sys.stderr))
    if error.fix:
        say(f"fix: {error.fix}")
