"""Progress, live: a table that redraws itself on a terminal, one line per change elsewhere."""

from __future__ import annotations

import sys
import time

from orchestrator import api
from orchestrator.cli.render import (
    STATE_COLOURS,
    duration,
    note,
    objective_of,
    paint,
    progress,
    status_lines,
    terminal_width,
)
from orchestrator.ledger import Ledger
from orchestrator.project import Project
from orchestrator.record import Record, RunState

_PERIOD_SECONDS = 1.0
_SHARE = 0.2
"""Of its time it looks at most: where that takes long, as of 10,000 runs on a slow filesystem, it looks less often."""


class Watch:
    """Shows an experiment on standard error each time `tick` is called, at most once a second."""

    def __init__(self, project: Project, name: str, *, launch: int | None = None) -> None:
        self._look, self._launch = api.looker(project, name), launch
        self._stream = sys.stderr
        self._drawn = 0
        self._due = 0.0
        self._told: dict[str, RunState] = {}

    def tick(self) -> bool:
        """Show what has changed. Returns whether something still waits or runs."""
        began = time.monotonic()
        if began < self._due:
            return True
        active = self.show()
        ended = time.monotonic()
        self._due = max(began + _PERIOD_SECONDS, ended + (ended - began) / _SHARE * (1 - _SHARE))
        return active

    def show(self) -> bool:
        """Show now, whenever it was last shown."""
        book = self._look()
        records = [r for r in book.records.values() if self._launch in (None, r.planned.launch)]
        if self._stream.isatty():
            self._redraw(status_lines(book, records))
        else:
            self._tell(book, records)
        return any(record.state.active for record in records)

    def until_ended(self) -> None:
        """Show until nothing waits or runs."""
        while self.tick():
            time.sleep(0.2)
        self.show()

    def _redraw(self, lines: list[str]) -> None:
        width = terminal_width()
        up = f"\x1b[{self._drawn}F" if self._drawn else ""
        body = "".join(f"\x1b[2K{line[: width - 1]}\n" for line in lines)
        self._stream.write(f"{up}\x1b[0J{body}")
        self._stream.flush()
        self._drawn = len(lines)

    def _tell(self, book: Ledger, records: list[Record]) -> None:
        ended = sum(not record.state.active for record in records)
        for record in records:
            if record.state is not self._told.get(record.id) and record.state is not RunState.QUEUED:
                self._stream.write(f"[{ended}/{len(records)}] {self._line(book, record)}\n")
            self._told[record.id] = record.state
        self._stream.flush()

    def _line(self, book: Ledger, record: Record) -> str:
        objective = objective_of(book)
        value = record.best_value(objective.metric) if objective else None
        state = paint(record.state.value, STATE_COLOURS[record.state], self._stream)
        parts = [
            record.id[:8], api.told(record.point), state,
            f"{objective.metric} {value:.4g}" if objective and value is not None else "", duration(record),
            note(record), progress(record),
        ]  # fmt: skip
        return "  ".join(part for part in parts if part)


def wait(project: Project, name: str, launch: int, *, quiet: bool) -> None:
    """Return when no run of a launch waits or runs any more."""
    if not quiet:
        Watch(project, name, launch=launch).until_ended()
        return
    look = api.looker(project, name)
    while any(r.state.active for r in look().records.values() if r.planned.launch == launch):
        time.sleep(0.5)
