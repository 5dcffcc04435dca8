"""What a launch holds, in as few words as a test needs."""

from __future__ import annotations

from typing import Any

from orchestrator.records.planned import PlannedRun
from orchestrator.spec import Resources


def planned_run(**changes: Any) -> PlannedRun:
    """Return a run that a launch of number 1 wants to start for the first time, but for these changes."""
    values = {
        "launch": 1,
        "index": 0,
        "run": "0123456789ab",
        "action": "submit",
        "reason": "new",
        "attempt": 1,
        "generation": 1,
        "history": 1,
        "code": "c0de",
        "data": None,
        "base": 0,
        "changes": [],
        "point": {},
        "resources": Resources(),
    }
    return PlannedRun(**{**values, **changes})
