"""Progress, live: a table that redraws itself on a terminal, one line per change elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping

from orchestrator.cli.status_table import status_lines
from orchestrator.cli.text import harmless, paint
from orchestrator.config.credentials import described
from orchestrator.project import Project
from orchestrator.records.experiment import ExperimentState
from orchestrator.records.record import Record, RunState
from orchestrator.refresh import refresher
from orchestrator.report.summary import duration, note, objective_of, progress

_STATE_COLOURS: Mapping[RunState, str] = {
    RunState.RUNNING: "blue", RunState.QUEUED: "grey", RunState.WAITING: "grey", RunState.DONE: "green",
    RunState.FAILED: "red", RunState.INTERRUPTED: "yellow", RunState.CANCELLED: "yellow",
    RunState.UNKNOWN: "yellow",
}  # fmt: skip
_PERIOD_SECONDS = 1.0
_SHARE = 0.2
"""The most of its time spent reading: if that is slow, as for 10,000 runs on a slow filesystem, it reads less often."""


class Watch:
    """Shows an experiment on standard error each time `tick` is called, at most once a second."""

    def __init__(self, project: Project, name: str, *, launch: int | None = None) -> None:
        self._refresh, self._launch = refresher(project, name), launch
        self._stream = sys.stderr
        self._drawn = 0
        self._due = 0.0
        self._shown: dict[str, RunState] = {}

    def tick(self) -> bool:
        """Show what has changed; return whether a run still waits or runs."""
        began = time.monotonic()
        if began < self._due:
            return True
        active = self.show()
        ended = time.monotonic()
        self._due = max(began + _PERIOD_SECONDS, ended + (ended - began) / _SHARE * (1 - _SHARE))
        return active

    def show(self) -> bool:
        """Show now, even if it was shown a moment ago."""
        state = self._refresh()
        records = [r for r in state.records.values() if self._launch in (None, r.planned.launch)]
        if self._stream.isatty():
            self._redraw(status_lines(state, records))
        else:
            self._print_changes(state, records)
        return any(record.state.active for record in records)

    def until_ended(self) -> None:
        """Show until no run waits or runs."""
        while self.tick():
            time.sleep(0.2)
        self.show()

    def _redraw(self, lines: list[str]) -> None:
        width = shutil.get_terminal_size((120, 24)).columns
        up = f"\x1b[{self._drawn}F" if self._drawn else ""
        body = "".join(f"\x1b[2K{harmless(line)[: width - 1]}\n" for line in lines)
        self._stream.write(f"{up}\x1b[0J{body}")
        self._stream.flush()
        self._drawn = len(lines)

    def _print_changes(self, state: ExperimentState, records: list[Record]) -> None:
        ended = sum(not record.state.active for record in records)
        for record in records:
            if record.state is not self._shown.get(record.id) and record.state is not RunState.QUEUED:
                self._stream.write(harmless(f"[{ended}/{len(records)}] {self._line(state, record)}\n"))
            self._shown[record.id] = record.state
        self._stream.flush()

    def _line(self, experiment_state: ExperimentState, record: Record) -> str:
        objective = objective_of(experiment_state)
        value = record.best_value(objective.metric) if objective else None
        state = paint(record.state.value, _STATE_COLOURS[record.state], self._stream)
        parts = [
            record.id[:8],
            described(record.point),
            state,
            f"{objective.metric} {value:.4g}" if objective and value is not None else "",
            duration(record),
            note(record),
            progress(record),
        ]
        return "  ".join(part for part in parts if part)


def wait(project: Project, name: str, launch: int, *, quiet: bool) -> None:
    """Wait until no run of a launch waits or runs."""
    if not quiet:
        Watch(project, name, launch=launch).until_ended()
        return
    refresh = refresher(project, name)
    while any(r.state.active for r in refresh().records.values() if r.planned.launch == launch):
        time.sleep(0.5)
