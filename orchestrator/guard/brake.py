"""The brake: after so many failures with one signature, or one of the canary, nothing more of a launch begins.

What has begun goes on. What has not is cancelled, with the reason; a later launch takes it up with today's code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from orchestrator import ledger
from orchestrator.guard.gate import gate, options
from orchestrator.layout import LaunchPaths


def brake_after(launch: LaunchPaths, run_id: str, signature: str) -> list[int]:
    """Take note that a run has failed; return the tasks that are cancelled because of it, by their index.

    The marks are set, and whoever starts a task sees them; its cluster is still to be told.
    """
    wanted = options(launch)
    if not wanted.canary and wanted.brake is None:
        return []
    reason = _reason(launch, run_id, signature, brake=wanted.brake)
    if not reason or launch.brake.exists():
        return []
    stopped = _not_begun(launch)
    if not stopped:
        return []
    ledger.replace_text(launch.brake, json.dumps({"reason": reason, "runs": [line["run"] for line in stopped]}))
    ledger.make_private(launch.cancelled)
    for line in stopped:
        (launch.cancelled / line["run"]).touch(mode=0o600)
    return [line["index"] for line in stopped]


def _reason(launch: LaunchPaths, run_id: str, signature: str, *, brake: int | None) -> str:
    folder = launch.failures(signature)
    ledger.make_private(folder)
    (folder / run_id).touch(mode=0o600)
    failed = len(ledger.names(folder))
    if brake is not None and failed >= brake:
        return f"stopped by the brake: {failed} runs failed with {signature}"
    now = gate(launch)
    if now.closed and any(line["run"] == run_id for line in ledger.read_some_lines(launch, range(now.canary)).values()):
        return f"stopped: run {run_id[:8]} of the canary failed with {signature}"
    return ""


def _not_begun(launch: LaunchPaths) -> list[dict[str, Any]]:
    """Return the tasks that nobody has begun, nor cancelled."""
    known = set(ledger.names(launch.experiment.runs))  # most of these have none: one listing
    gone = set(ledger.names(launch.cancelled))
    return [
        line
        for line in ledger.read_lines(launch)
        if line["run"] not in gone and not (line["run"] in known and _begun(launch, line))
    ]


def _begun(launch: LaunchPaths, line: Mapping[str, Any]) -> bool:
    return launch.experiment.run(line["run"]).attempt(line["attempt"]).path.exists()
