"""What an interrupted process owes the scheduler (FACTS 3, 4, 11).

Under Slurm a job that ends by itself after SIGTERM counts as completed, and is not requeued: it must stay alive
until it is killed. At the time limit it must requeue itself. A cancelled run must do neither.
"""

from __future__ import annotations

import logging
import time

from orchestrator.process import ProgramError, run
from orchestrator.worker.assignment import Assignment

_log = logging.getLogger(__name__)
_WAIT_SECONDS = 3600.0


def after_interruption(assignment: Assignment, signal: str) -> None:
    """Return at once where nothing is owed; else requeue if that is ours to do, and wait to be killed."""
    if not assignment.place.job or _cancelled(assignment):
        return
    if signal == "SIGUSR2" and assignment.leads:
        _requeue(assignment)
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline and not _cancelled(assignment) and not _failed(assignment):
        time.sleep(0.5)


def _requeue(assignment: Assignment) -> None:
    most = int(assignment.header["cluster"].get("max_requeues") or 20)
    if assignment.place.restart >= most:
        _log.warning("requeued %d times: the time limit ends it now (cluster.max_requeues)", assignment.place.restart)
        return
    try:
        run(["scontrol", "requeue", assignment.place.job], timeout_s=60)
    except ProgramError as error:
        _log.warning("cannot requeue: %s", error)


def _cancelled(assignment: Assignment) -> bool:
    return (assignment.launch.cancelled / assignment.wish.run).exists()


def _failed(assignment: Assignment) -> bool:
    """Return whether another rank has failed: that is why we were asked to stop."""
    return any(assignment.attempt.path.glob("events.rank*.jsonl"))
