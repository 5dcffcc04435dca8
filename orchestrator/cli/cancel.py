"""`orch cancel`: cancel waiting or running runs."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from orchestrator import api
from orchestrator.cli.arguments import add_selection, project_of
from orchestrator.cli.selection import select
from orchestrator.cli.text import say


def add_arguments(parser: ArgumentParser) -> None:
    add_selection(parser)


def handle(arguments: Namespace) -> int:
    project = project_of(arguments)
    name, _, records = select(project, arguments.words, read_state=api.read)  # reading does not submit pending runs
    chosen = api.cancel(project, name, records)
    text = f"{len(chosen)} of {len(records)} chosen runs cancelled" if chosen else "no chosen run waits or runs"
    say(f"{name}: {text}")
    return 0
