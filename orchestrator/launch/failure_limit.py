"""The failure limit: after N failures with one signature, or one of the canary, nothing more of a launch begins.

What has begun goes on. What has not is cancelled, with the reason; a later launch starts it with your current code.
"""

from __future__ import annotations

import json

from orchestrator.launch.canary import options, safeguards
from orchestrator.layout import LaunchPaths
from orchestrator.records.planned import PlannedRun, read_plan, read_planned_runs
from orchestrator.system.files import listed, make_private, names_in, replace_text


def brake_after(launch: LaunchPaths, run_id: str, signature: str) -> list[int]:
    """Take note that a run has failed; return the tasks that are cancelled because of it, by their index.

    The marks are set, and a process that starts a task sees them; the cluster must still be notified.
    """
    wanted = options(launch)
    if not wanted.canary and wanted.brake is None:
        return []
    reason = _reason(launch, run_id, signature, brake=wanted.brake)
    if not reason or listed(launch.brake):
        return []
    stopped = _not_begun(launch)
    if not stopped:
        return []
    replace_text(launch.brake, json.dumps({"reason": reason, "runs": [planned.run for planned in stopped]}))
    make_private(launch.cancelled)
    for planned in stopped:
        (launch.cancelled / planned.run).touch(mode=0o600)
    return [planned.index for planned in stopped]


def _reason(launch: LaunchPaths, run_id: str, signature: str, *, brake: int | None) -> str:
    folder = launch.failures(signature)
    make_private(folder)
    (folder / run_id).touch(mode=0o600)
    failed = len(names_in(folder))
    if brake is not None and failed >= brake:
        runs = "1 run" if failed == 1 else f"{failed} runs"
        return f"stopped by the failure limit: {runs} failed with {signature}"
    now = safeguards(launch)
    if now.closed and any(planned.run == run_id for planned in read_planned_runs(launch, range(now.canary)).values()):
        return f"stopped: run {run_id[:8]} of the canary failed with {signature}"
    return ""


def _not_begun(launch: LaunchPaths) -> list[PlannedRun]:
    """Return the tasks that nobody has begun, nor cancelled."""
    known = set(names_in(launch.experiment.runs))  # most of these have none: one listing
    gone = set(names_in(launch.cancelled))
    return [
        planned
        for planned in read_plan(launch)
        if planned.run not in gone and not (planned.run in known and _begun(launch, planned))
    ]


def _begun(launch: LaunchPaths, planned: PlannedRun) -> bool:
    return listed(launch.experiment.run(planned.run).attempt(planned.attempt).path)
