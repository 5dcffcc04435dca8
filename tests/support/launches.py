"""Parts of a launch, with defaults, for short tests."""

from __future__ import annotations

from typing import Any

from orchestrator.records.planned import PlannedRun
from orchestrator.spec import Resources


def planned_run(**changes: Any) -> PlannedRun:
    """Return a run that launch 1 starts for the first time, with these changes."""
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
