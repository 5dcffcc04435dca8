"""What an interrupted process owes the scheduler (FACTS 3, 4, 11).

Under Slurm a job that ends by itself after SIGTERM counts as completed, and is not requeued: it must stay alive
until it is killed. At the time limit it must requeue itself. A cancelled run must do neither.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import Any, Protocol

from orchestrator.process import ProgramError, run
from orchestrator.worker.assignment import Assignment
from orchestrator.worker.place import Place

_log = logging.getLogger(__name__)
_WAIT_SECONDS = 3600.0
_LEADER_SECONDS = 40.0
_ANSWER_SECONDS = 5.0  # between a signal and SIGKILL there may be little more
_MAX_REQUEUES = 20
LIMIT = "time limit"
"""How the reason begins of a run that was stopped by one."""
TIME_LIMIT = "SIGUSR2"  # what Slurm sends some time before the time limit (`--signal`)


class Owing(Protocol):
    """What the scheduler's job is about: one run, or a pack of them."""

    @property
    def place(self) -> Place: ...
    @property
    def header(self) -> Mapping[str, Any]: ...
    @property
    def leads(self) -> bool:
        """Whether this process answers for the job before all others of it."""

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants it any more."""

    @property
    def rank_failed(self) -> bool:
        """Whether another process of it has failed, and with it the whole."""


def reason(assignment: Assignment, signal: str) -> str:
    """Return why a run was asked to stop, as far as that can be known from here; Slurm is asked."""
    hours = assignment.wish.resources.hours
    if assignment.cancelled:
        return f"cancelled, stopped by {signal}"
    if signal == TIME_LIMIT and assignment.place.job:
        limit = f"{LIMIT} of {hours:g} h" if hours and not assignment.place.packed else LIMIT
        last = f"{limit}, no more requeues (cluster.max_requeues={_most(assignment)})"
        return last if _exhausted(assignment) else limit
    told = _told_by_slurm(assignment) if assignment.leads and assignment.place.job else ""
    return f"{told}, stopped by {signal}" if told else f"stopped by {signal}"


def after_interruption(job: Owing, signal: str) -> None:
    """Return at once where nothing is owed; else requeue if that is ours to do, and wait to be killed."""
    if not job.place.job or job.place.packed or job.cancelled:
        return
    if signal == TIME_LIMIT:
        if _exhausted(job):
            _log.warning("requeued %d times: this is the last (cluster.max_requeues)", job.place.restart)
            return
        _requeue(job)
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline and not job.cancelled and not job.rank_failed:
        time.sleep(0.5)


def _requeue(job: Owing) -> None:
    """Requeue the job; other ranks than 0 only where that has not: it may hang in an operation that waits for us."""
    if not job.leads:
        time.sleep(_LEADER_SECONDS)  # where rank 0 has done it, this is not outlived
    told = _told_by_slurm(job)
    if told.endswith("in Slurm") or (told and not job.leads):  # cancelled meanwhile, or requeued already
        return
    try:
        run(["scontrol", "requeue", job.place.job], timeout_s=60)
    except ProgramError as error:
        _log.warning("cannot requeue, the time limit will end it: %s", error)


def _exhausted(job: Owing) -> bool:
    return job.place.restart >= _most(job)


def _most(job: Owing) -> int:
    given = job.header["cluster"].get("max_requeues")
    return _MAX_REQUEUES if given is None else int(given)


def _told_by_slurm(job: Owing) -> str:
    argv = ["scontrol", "--oneliner", "show", "job", job.place.job]
    try:
        text = run(argv, timeout_s=_ANSWER_SECONDS).decode(errors="replace")
    except ProgramError:
        return ""
    found = dict(re.findall(r"\b(JobState|PreemptTime|Restarts)=(\S+)", text))
    requeued = int(found.get("Restarts", "0")) > job.place.restart  # while it is ending both say COMPLETING
    if found.get("JobState") in {"CANCELLED", "PENDING", "COMPLETING"}:
        return "requeued in Slurm" if requeued else "cancelled in Slurm"
    return "preempted" if found.get("PreemptTime", "None") not in {"None", "Unknown"} else ""
