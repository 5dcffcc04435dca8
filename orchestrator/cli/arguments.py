"""Arguments that several verbs share, and their meaning."""

from __future__ import annotations

import re
from argparse import ArgumentParser, Namespace
from pathlib import Path

from orchestrator.errors import RequestError
from orchestrator.project import Project, find_project

_OVERRIDE = re.compile(r"(\+{1,2}|~)?[A-Za-z_][\w./@-]*=\S*")


def add_overrides(parser: ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="OVERRIDE",
        help="Hydra overrides: experiment=NAME model.lr=1e-3,1e-2 +key=value ~key",
    )
    parser.add_argument(
        "--rerun",
        choices=("never", "changed", "always"),
        default="never",
        help="run finished runs again, next to their results: those whose code changed, or all",
    )


def add_selection(parser: ArgumentParser, what: str = "") -> None:
    """Add the words that choose runs; `what` replaces their help text."""
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RUNS",
        help=what or "an experiment, and/or runs of it by id prefix, state=..., launch=N, tag=WORD, key=value",
    )


def add_message(parser: ArgumentParser) -> None:
    parser.add_argument("-m", "--message", default="", metavar="WHY", type=_why, help="kept with the launch")


def _why(text: str) -> str:
    """Return a message. Raises RequestError for an override: Hydra's `-m` comes before swept keys."""
    if not _OVERRIDE.fullmatch(text):
        return text
    raise RequestError(
        f"the message of -m is {text!r}, which is an override",
        why="-m says why a launch was made; a value with commas is swept without it",
        fix=f"leave -m out: {text!r}; or write the message as a sentence: -m 'with {text}'",
    )


def add_consent_and_waiting(parser: ArgumentParser) -> None:
    """Add the options for launching without a question, and for waiting until the runs end."""
    parser.add_argument("--yes", action="store_true", help="do not ask, however many runs (sweep.ask_above)")
    parser.add_argument("--wait", action="store_true", help="return when the runs have ended")
    parser.add_argument("--watch", action="store_true", help="show progress until the runs have ended")


def add_hidden(parser: ArgumentParser) -> None:
    parser.add_argument("--hidden", action="store_true", help="include runs hidden by `orch hide`")


def add_json(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def project_of(arguments: Namespace) -> Project:
    """Return the project of a command."""
    return find_project(Path(arguments.project), runs=arguments.runs)
