"""The common part of `hold`, `release` and `change`: act on the chosen runs that wait, and print how many."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

from orchestrator import api
from orchestrator.cli.arguments import project_of
from orchestrator.cli.selection import select
from orchestrator.cli.text import say
from orchestrator.project import Project
from orchestrator.records.record import Record


def act_on_waiting(arguments: Namespace, done: str, act: Callable[[Project, str, list[Record]], list[Record]]) -> int:
    """Call `act` on the chosen runs; it returns those that waited. `done` is the past participle to print."""
    project = project_of(arguments)
    name, _, records = select(project, arguments.words, read_state=api.read)  # reading does not submit pending runs
    chosen = act(project, name, records)
    say(f"{name}: {len(chosen)} of {len(records)} chosen runs {done}" if chosen else f"{name}: no chosen run waits")
    return 0
