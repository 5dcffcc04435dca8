"""Notifying a person: the launch's `notify` command, once at its first failure and once when all its runs have ended.

The process that ends a run sends it; where one ended without a final event, the next `orch` command that reads the
launch. The command is a program with its arguments, never a shell line; it gets a few lines to read on standard input,
and what they say in ORCH_* variables.
"""

from __future__ import annotations

import logging
import subprocess
import uuid
from collections import Counter
from enum import StrEnum

from orchestrator.errors import StateError
from orchestrator.launch.canary import options
from orchestrator.layout import LaunchPaths
from orchestrator.records.attempts import read_marks
from orchestrator.records.planned import read_plan
from orchestrator.system.files import draft_of, listed, make_private, names_in, take_by_rename, write_bytes, write_text
from orchestrator.system.processes import ProgramError, run

_log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 60.0
_ENDED = frozenset({"done", "failed", "cancelled"})


class Event(StrEnum):
    """The events that a person is notified of."""

    FAILED = "failed"
    ENDED = "ended"


def notify_if_ended(launch: LaunchPaths) -> None:
    """Announce a launch's end, if all its runs have ended for good by what they have said themselves."""
    if options(launch).notify and _states(launch).keys() <= _ENDED:
        notify(launch, Event.ENDED)


def notify(launch: LaunchPaths, event: Event, *, run_id: str = "", reason: str = "") -> bool:
    """Run the launch's command for an event, unless somebody has; return whether it was run here."""
    command = options(launch).notify
    if not command or not _first(launch, event):
        return False
    name = launch.experiment.name
    counts = ", ".join(f"{number} {state}" for state, number in _states(launch).most_common())
    where = f"{name}, launch {launch.number:04d}"
    said = f"{where}: run {run_id[:8]} failed, {reason}" if event is Event.FAILED else f"{where} has ended: {counts}"
    variables = {
        "ORCH_EVENT": event.value,
        "ORCH_EXPERIMENT": name,
        "ORCH_LAUNCH": str(launch.number),
        "ORCH_RUN": run_id,
        "ORCH_REASON": reason,
        "ORCH_SUMMARY": said,
        "ORCH_RUNS": str(launch.runs.path),
    }
    text = f"{said}\n\n{counts}\norch status {name}\n"
    try:
        output = run(command, stdin=text.encode(), env=variables, cwd=launch.path, timeout_s=_TIMEOUT_SECONDS)
        write_bytes(launch.notified(event) / "output", output)
    except (ProgramError, OSError, ValueError, subprocess.SubprocessError) as error:
        _log.warning("launch.notify: %s", error)
    return True


def _first(launch: LaunchPaths, event: Event) -> bool:
    """Return whether no process has announced an event before: the folder is taken once."""
    folder, token = launch.notified(event), uuid.uuid4().hex
    try:
        make_private(folder.parent)
        if listed(folder):
            return False
        with draft_of(folder) as draft:
            make_private(draft)
            write_text(draft / token, "")
            return take_by_rename(draft, folder, mine=lambda: listed(folder / token))
    except (OSError, StateError):
        return False


def _states(launch: LaunchPaths) -> Counter[str]:
    """Return how many of a launch's runs are in which state, by the index and the marks alone."""
    marks, cancelled = read_marks(launch.experiment), set(names_in(launch.cancelled))
    found: Counter[str] = Counter()
    for planned in read_plan(launch):
        number, state = marks.get(planned.run, (0, ""))
        begun = number >= planned.attempt
        found[state if begun else "cancelled" if planned.run in cancelled else "not begun"] += 1
    return found
