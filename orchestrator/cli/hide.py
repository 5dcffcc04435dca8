"""`orch hide`: leave runs out of status and compare; nothing is deleted."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from orchestrator import api
from orchestrator.cli.arguments import add_selection, project_of
from orchestrator.cli.selection import select
from orchestrator.cli.text import say
from orchestrator.errors import RequestError
from orchestrator.report.summary import count


def add_arguments(parser: ArgumentParser) -> None:
    add_selection(parser)
    parser.add_argument("--undo", action="store_true", help="show them again")


def handle(arguments: Namespace) -> int:
    project = project_of(arguments)
    if not arguments.words:
        raise RequestError("no run is chosen", why="hiding all would hide the experiment", fix="orch hide NAME 3fa2")
    name, _, records = select(project, arguments.words)
    api.hide(project, name, records, undo=arguments.undo)
    say(f"{name}: {count(len(records))} {'shown again' if arguments.undo else 'hidden: --hidden shows them'}")
    return 0
