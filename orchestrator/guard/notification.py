"""Telling a person: the launch's `notify` command, once at its first failure and once when all its runs have ended.

Whoever ends a run tells; where one died without a word, whoever looks next. The command is a program with its
arguments, never a shell line; it gets a few lines to read on standard input, and what they say in ORCH_* variables.
"""

from __future__ import annotations

import logging
import subprocess
from collections import Counter
from enum import StrEnum

from orchestrator import ledger
from orchestrator.errors import StateError
from orchestrator.guard.gate import options
from orchestrator.layout import LaunchPaths
from orchestrator.process import ProgramError, run

_log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 60.0
_ENDED = frozenset({"done", "failed", "cancelled"})


class Event(StrEnum):
    """What a person is told of."""

    FAILED = "failed"
    ENDED = "ended"


def tell_if_ended(launch: LaunchPaths) -> None:
    """Tell of a launch's end, if all its runs have ended for good by what they have said themselves."""
    if options(launch).notify and _states(launch).keys() <= _ENDED:
        tell(launch, Event.ENDED)


def tell(launch: LaunchPaths, event: Event, *, run_id: str = "", reason: str = "") -> bool:
    """Run the launch's command for an event, unless somebody has; return whether it was run here."""
    command = options(launch).notify
    if not command or not _first(launch, event):
        return False
    name = launch.experiment.name
    counts = ", ".join(f"{number} {state}" for state, number in _states(launch).most_common())
    where = f"{name}, launch {launch.number:04d}"
    said = f"{where}: run {run_id[:8]} failed, {reason}" if event is Event.FAILED else f"{where} has ended: {counts}"
    variables = {
        "ORCH_EVENT": event.value, "ORCH_EXPERIMENT": name, "ORCH_LAUNCH": str(launch.number), "ORCH_RUN": run_id,
        "ORCH_REASON": reason, "ORCH_SUMMARY": said, "ORCH_RUNS": str(launch.runs.path),
    }  # fmt: skip
    text = f"{said}\n\n{counts}\norch status {name}\n"
    try:
        output = run(command, stdin=text.encode(), env=variables, cwd=launch.path, timeout_s=_TIMEOUT_SECONDS)
        (launch.notified(event) / "output").write_bytes(output)
    except (ProgramError, OSError, ValueError, subprocess.SubprocessError) as error:
        _log.warning("launch.notify: %s", error)
    return True


def _first(launch: LaunchPaths, event: Event) -> bool:
    """Return whether nobody has told of an event: the folder is made once."""
    folder = launch.notified(event)
    try:
        ledger.make_private(folder.parent)
        folder.mkdir(mode=0o700)
    except (OSError, StateError):
        return False
    return True


def _states(launch: LaunchPaths) -> Counter[str]:
    """Return how many of a launch's runs are in which state, by the index and the marks alone."""
    marks, cancelled = ledger.marks(launch.experiment), set(ledger.names(launch.cancelled))
    found: Counter[str] = Counter()
    for line in ledger.read_lines(launch):
        number, state = marks.get(line["run"], (0, ""))
        begun = number >= line["attempt"]
        found[state if begun else "cancelled" if line["run"] in cancelled else "not begun"] += 1
    return found
