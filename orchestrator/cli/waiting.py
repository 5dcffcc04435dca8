"""What `hold`, `release` and `change` share: they act on the chosen runs that wait, and say of how many."""

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
    """Have `act` do something to the chosen runs; it returns those that waited. `done` says what, in the past."""
    project = project_of(arguments)
    name, _, records = select(project, arguments.words, look=api.read)  # what waits is not handed over first
    chosen = act(project, name, records)
    say(f"{name}: {len(chosen)} of {len(records)} chosen runs {done}" if chosen else f"{name}: nothing waits")
    return 0
