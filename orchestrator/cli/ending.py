"""How runs ended: the last line that a verb prints for a run, and its exit status."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.cli.text import say
from orchestrator.records.record import Record, RunState


def exit_status(records: Iterable[Record]) -> int:
    """Return 1 if a run has failed or was stopped, else 0."""
    bad = {RunState.FAILED, RunState.INTERRUPTED, RunState.CANCELLED}
    return 1 if any(record.state in bad for record in records) else 0


def say_how_it_ended(record: Record) -> int:
    """Print a run's state, and return the exit status."""
    say(f"{record.id[:8]}: {record.state.value}{': ' + record.reason if record.reason else ''}")
    return exit_status([record])
