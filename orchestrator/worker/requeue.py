"""What an interrupted process owes the scheduler (FACTS 3, 4, 11).

Under Slurm a job that ends by itself after SIGTERM counts as completed, and is not requeued: it must stay alive
until it is killed. At the time limit it must requeue itself. A cancelled run must do neither, and one that starts
again and again without getting further must end.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from orchestrator.records.attempts import read_attempt
from orchestrator.records.record import Attempt
from orchestrator.slurm import commands
from orchestrator.spec import Attempts
from orchestrator.system.processes import ProgramError
from orchestrator.worker.assignment import Assignment
from orchestrator.worker.context import ProcessContext
from orchestrator.worker.signals import InterruptedByInfrastructureError

_log = logging.getLogger(__name__)
_WAIT_SECONDS = 3600.0
_LOOK_SECONDS = 1.0
_LEADER_SECONDS = 40.0
_ANSWER_SECONDS = 5.0  # between a signal and SIGKILL there may be little more
_LIMIT = "no further step"
LIMIT = "time limit"
"""How the reason begins of a run that was stopped by one."""
TIME_LIMIT = "SIGUSR2"  # what Slurm sends some time before the time limit (`--signal`)


def check(assignment: Assignment) -> None:
    """Raise InterruptedByInfrastructureError where the job has been started again too often, by whomever.

    All ranks find the same: what came before is written.
    """
    if assignment.context.restart and _exhausted(assignment, _starts(assignment)[:-1]):
        raise InterruptedByInfrastructureError(_LIMIT)


def reason(assignment: Assignment, signal: str) -> str:
    """Return why a run was asked to stop, as far as that can be known from here; Slurm is asked."""
    hours = assignment.planned.resources.hours
    if assignment.cancelled:
        return f"cancelled, stopped by {signal}"
    key, most = _most(assignment)
    no_more = f"no more requeues without getting further ({key}={most})"
    if signal == _LIMIT:
        return no_more
    if signal == TIME_LIMIT and assignment.context.job:
        limit = f"{LIMIT} of {hours:g} h" if hours and not assignment.context.packed else LIMIT
        return f"{limit}, {no_more}" if _exhausted(assignment, _starts(assignment)) else limit
    told = _told_by_slurm(assignment) if assignment.leads and assignment.context.job else ""
    return f"{told}, stopped by {signal}" if told else f"stopped by {signal}"


def job_is_ending(assignment: Assignment, signal: str) -> bool:
    """Return whether Slurm itself is ending the job, and not only a process of it has died."""
    if not assignment.context.job:
        return False
    return signal == TIME_LIMIT or _told_by_slurm(assignment) != ""


class JobOwner(Protocol):
    """What the scheduler's job is about: one run, or a pack of them."""

    @property
    def context(self) -> ProcessContext: ...
    @property
    def leads(self) -> bool:
        """Whether this process answers for the job before all others of it."""

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants it any more."""

    @property
    def rank_failed(self) -> bool:
        """Whether another process of it has failed, and with it the whole."""

    @property
    def superseded(self) -> bool:
        """Whether the scheduler has started it again elsewhere, and this is a process that it has lost."""


def after_interruption(assignment: Assignment, error: InterruptedByInfrastructureError) -> None:
    """Return at once where nothing is owed; else requeue if that is ours to do, and wait to be killed."""
    if not assignment.context.packed:  # there the pack answers for all its runs
        answer(assignment, error, exhausted=lambda: exhausted(assignment))


def answer(job: JobOwner, error: InterruptedByInfrastructureError, *, exhausted: Callable[[], bool]) -> None:
    """Do what `after_interruption` does, for a run or a pack."""
    signal = str(error)
    if not error.asked or not job.context.job or job.cancelled or job.superseded or signal == _LIMIT:
        return
    if signal == TIME_LIMIT and exhausted():
        return
    if signal == TIME_LIMIT or _node_goes_down(job, error):
        _requeue(job)
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline and not (job.cancelled or job.rank_failed or job.superseded):
        time.sleep(_LOOK_SECONDS)


def _requeue(job: JobOwner) -> None:
    """Requeue the job; other ranks than 0 only where that has not: it may hang in an operation that waits for us."""
    if not job.leads:
        time.sleep(_LEADER_SECONDS)  # where rank 0 has done it, this is not outlived
    told = _told_by_slurm(job) or ""
    if told.endswith("in Slurm") or (told and not job.leads):  # cancelled meanwhile, or requeued already
        return
    try:
        commands.run(["scontrol", "requeue", job.context.job])
    except ProgramError as error:
        _log.warning("cannot requeue, the time limit will end it: %s", error)


def _node_goes_down(job: JobOwner, error: InterruptedByInfrastructureError) -> bool:
    """Return whether some of several nodes shut down, in order: told by their SIGTERM, of which Slurm knows nothing.

    It would requeue the job for a node that is lost, but the step has failed by then: a rank is dead.
    """
    return error.together and job.context.nodes > 1 and _told_by_slurm(job) == ""


def exhausted(assignment: Assignment) -> bool:
    """Return whether a run has started again often enough, by its attempts up to the given one."""
    return _exhausted(assignment, _starts(assignment))


def _starts(assignment: Assignment) -> list[Attempt]:
    """Return the attempts of this very job, the current one last."""
    found: list[Attempt] = []
    for number in range(assignment.planned.attempt, 0, -1):
        attempt = read_attempt(assignment.run, assignment.run.attempt(number))
        if attempt.claim is None or attempt.claim.job != assignment.context.job:
            break
        found.insert(0, attempt)
    return found


def in_vain(starts: Iterable[Attempt]) -> int:
    """Return how many of the last starts again, in a row, took no step that had not been taken before."""
    furthest, count = None, 0
    for attempt in starts:
        step = int(attempt.progress.get("step", -1))
        count = 0 if furthest is None or step > furthest else count + 1
        furthest = max(step, -1 if furthest is None else furthest)
    return count


def _exhausted(assignment: Assignment, starts: Iterable[Attempt]) -> bool:
    return in_vain(starts) >= _most(assignment)[1]


def _most(assignment: Assignment) -> tuple[str, int]:
    """Return the key that says how many starts in a row may take no further step, and its value."""
    given = assignment.header.cluster.get("max_requeues")
    if given is not None:
        return "cluster.max_requeues", int(given)
    return "resources.attempts.without_progress", (assignment.planned.resources.attempts or Attempts()).without_progress


def _told_by_slurm(job: JobOwner) -> str | None:
    """Return why Slurm ends the job; nothing where it does not, None where it does not answer."""
    argv = ["scontrol", "--all", "--oneliner", "show", "job", job.context.job]
    try:
        text = commands.run(argv, timeout_s=_ANSWER_SECONDS)
    except ProgramError:
        return None
    found = dict(re.findall(r"\b(JobState|PreemptTime|Restarts)=(\S+)", text))
    requeued = int(found.get("Restarts", "0")) > job.context.restart  # while it is ending both say COMPLETING
    if found.get("JobState") in {"CANCELLED", "PENDING", "COMPLETING"}:
        return "requeued in Slurm" if requeued else "cancelled in Slurm"
    return "preempted" if found.get("PreemptTime", "None") not in {"None", "Unknown"} else ""
