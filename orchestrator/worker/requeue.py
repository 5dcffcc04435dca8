"""What an interrupted process owes the scheduler (FACTS 3, 4, 11).

Under Slurm a job that ends by itself after SIGTERM counts as completed, and is not requeued: it must stay alive
until it is killed. At the time limit it must requeue itself. A cancelled run must do neither.
"""

from __future__ import annotations

import logging
import re
import time

from orchestrator.process import ProgramError, run
from orchestrator.worker.assignment import Assignment

_log = logging.getLogger(__name__)
_WAIT_SECONDS = 3600.0
_LEADER_SECONDS = 40.0
_ANSWER_SECONDS = 5.0  # between a signal and SIGKILL there may be little more
_MAX_REQUEUES = 20
TIME_LIMIT = "SIGUSR2"  # what Slurm sends some time before the time limit (`--signal`)


def reason(assignment: Assignment, signal: str) -> str:
    """Return why a run was asked to stop, as far as that can be known from here; Slurm is asked."""
    hours = assignment.wish.resources.hours
    if assignment.cancelled:
        return f"cancelled, stopped by {signal}"
    if signal == TIME_LIMIT and assignment.place.job:
        limit = f"time limit of {hours:g} h" if hours else "time limit"
        last = f"{limit}, no more requeues (cluster.max_requeues={_most(assignment)})"
        return last if _exhausted(assignment) else limit
    told = _told_by_slurm(assignment) if assignment.leads and assignment.place.job else ""
    return f"{told}, stopped by {signal}" if told else f"stopped by {signal}"


def after_interruption(assignment: Assignment, signal: str) -> None:
    """Return at once where nothing is owed; else requeue if that is ours to do, and wait to be killed."""
    if not assignment.place.job or assignment.cancelled:
        return
    if signal == TIME_LIMIT:
        if _exhausted(assignment):
            _log.warning("requeued %d times: this is the last (cluster.max_requeues)", assignment.place.restart)
            return
        _requeue(assignment)
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline and not assignment.cancelled and not any(assignment.attempt.failed_ranks()):
        time.sleep(0.5)


def _requeue(assignment: Assignment) -> None:
    """Requeue the job; other ranks than 0 only where that has not: it may hang in an operation that waits for us."""
    if not assignment.leads:
        time.sleep(_LEADER_SECONDS)  # where rank 0 has done it, this is not outlived
    told = _told_by_slurm(assignment)
    if told.endswith("in Slurm") or (told and not assignment.leads):  # cancelled meanwhile, or requeued already
        return
    try:
        run(["scontrol", "requeue", assignment.place.job], timeout_s=60)
    except ProgramError as error:
        _log.warning("cannot requeue, the time limit will end it: %s", error)


def _exhausted(assignment: Assignment) -> bool:
    return assignment.place.restart >= _most(assignment)


def _most(assignment: Assignment) -> int:
    given = assignment.header["cluster"].get("max_requeues")
    return _MAX_REQUEUES if given is None else int(given)


def _told_by_slurm(assignment: Assignment) -> str:
    argv = ["scontrol", "--oneliner", "show", "job", assignment.place.job]
    try:
        text = run(argv, timeout_s=_ANSWER_SECONDS).decode(errors="replace")
    except ProgramError:
        return ""
    found = dict(re.findall(r"\b(JobState|PreemptTime|Restarts)=(\S+)", text))
    requeued = int(found.get("Restarts", "0")) > assignment.place.restart  # while it is ending both say COMPLETING
    if found.get("JobState") in {"CANCELLED", "PENDING", "COMPLETING"}:
        return "requeued in Slurm" if requeued else "cancelled in Slurm"
    return "preempted" if found.get("PreemptTime", "None") not in {"None", "Unknown"} else ""
