"""The duties of an interrupted process towards the scheduler (FACTS 3, 4, 11).

Under Slurm, a job that ends by itself after SIGTERM counts as completed and is not requeued: it must stay alive until
it is killed. At the time limit it must requeue itself. A cancelled run must do neither, and a run that restarts again
and again without making progress must end.
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
_ANSWER_SECONDS = 5.0  # SIGKILL may follow a signal not much later
_LIMIT = "no further step"
LIMIT = "time limit"
"""The beginning of the reason of a run that reached its time limit."""
TIME_LIMIT = "SIGUSR2"  # what Slurm sends some time before the time limit (`--signal`)


def check(assignment: Assignment) -> None:
    """Raise InterruptedByInfrastructureError if the job has been restarted too often, by Slurm or by a user.

    All ranks come to the same result, because they read only earlier attempts.
    """
    if assignment.context.restart and _exhausted(assignment, _starts(assignment)[:-1]):
        raise InterruptedByInfrastructureError(_LIMIT)


def reason(assignment: Assignment, signal: str) -> str:
    """Return why a run was asked to stop, as far as this process and Slurm know."""
    hours = assignment.planned.resources.hours
    if assignment.cancelled:
        return f"cancelled, stopped by {signal}"
    key, most = _most(assignment)
    no_more = f"no more requeues without progress ({key}={most})"
    if signal == _LIMIT:
        return no_more
    if signal == TIME_LIMIT and assignment.context.job:
        limit = f"{LIMIT} of {hours:g} h" if hours and not assignment.context.packed else LIMIT
        return f"{limit}, {no_more}" if _exhausted(assignment, _starts(assignment)) else limit
    told = _why_slurm_ends(assignment) if assignment.leads and assignment.context.job else ""
    return f"{told}, stopped by {signal}" if told else f"stopped by {signal}"


def job_is_ending(assignment: Assignment, signal: str) -> bool:
    """Return whether Slurm is ending the whole job, rather than one of its processes having died."""
    if not assignment.context.job:
        return False
    return signal == TIME_LIMIT or _why_slurm_ends(assignment) != ""


class JobOwner(Protocol):
    """The owner of the scheduler's job: one run, or a pack of runs."""

    @property
    def context(self) -> ProcessContext: ...
    @property
    def leads(self) -> bool:
        """Whether this process, of all the job's processes, is the one to requeue it."""

    @property
    def cancelled(self) -> bool:
        """Whether all of the job's runs have been cancelled."""

    @property
    def rank_failed(self) -> bool:
        """Whether another process of the job has failed, which fails the run."""

    @property
    def superseded(self) -> bool:
        """Whether the scheduler has lost contact with this process, and restarted the job elsewhere."""


def after_interruption(assignment: Assignment, error: InterruptedByInfrastructureError) -> None:
    """Requeue the job if that is this process's duty, and wait to be killed; return at once if nothing is to do."""
    if not assignment.context.packed:  # a pack does it for all its runs
        answer(assignment, error, exhausted=lambda: exhausted(assignment))


def answer(job: JobOwner, error: InterruptedByInfrastructureError, *, exhausted: Callable[[], bool]) -> None:
    """Do as `after_interruption` does, for a run or a pack. `exhausted`: whether it was restarted often enough."""
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
    """Requeue the job. Other ranks do so only if rank 0 has not, which may hang in a collective operation."""
    if not job.leads:
        time.sleep(_LEADER_SECONDS)  # if rank 0 has requeued the job, this process is killed meanwhile
    told = _why_slurm_ends(job) or ""
    if told.endswith("in Slurm") or (told and not job.leads):  # cancelled meanwhile, or requeued already
        return
    try:
        commands.run(["scontrol", "requeue", job.context.job])
    except ProgramError as error:
        _log.warning("cannot requeue, the time limit will end it: %s", error)


def _node_goes_down(job: JobOwner, error: InterruptedByInfrastructureError) -> bool:
    """Return whether one of several nodes is being shut down cleanly: a SIGTERM that Slurm knows nothing of.

    Slurm would requeue the job once the node is lost, but by then a rank has died and the step has failed.
    """
    return error.together and job.context.nodes > 1 and _why_slurm_ends(job) == ""


def exhausted(assignment: Assignment) -> bool:
    """Return whether a run has been restarted too often without progress, up to the assignment's attempt."""
    return _exhausted(assignment, _starts(assignment))


def _starts(assignment: Assignment) -> list[Attempt]:
    """Return the attempts of this job, the current one last."""
    found: list[Attempt] = []
    for number in range(assignment.planned.attempt, 0, -1):
        attempt = read_attempt(assignment.run, assignment.run.attempt(number))
        if attempt.claim is None or attempt.claim.job != assignment.context.job:
            break
        found.insert(0, attempt)
    return found


def in_vain(starts: Iterable[Attempt]) -> int:
    """Return the number of consecutive restarts, up to the last, that did not reach a new step."""
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


def _why_slurm_ends(job: JobOwner) -> str | None:
    """Return why Slurm is ending the job; an empty text if it is not, None if Slurm does not answer."""
    argv = ["scontrol", "--all", "--oneliner", "show", "job", job.context.job]
    try:
        text = commands.run(argv, timeout_s=_ANSWER_SECONDS)
    except ProgramError:
        return None
    found = dict(re.findall(r"\b(JobState|PreemptTime|Restarts)=(\S+)", text))
    requeued = int(found.get("Restarts", "0")) > job.context.restart  # a cancelled job, too, is COMPLETING for a while
    if found.get("JobState") in {"CANCELLED", "PENDING", "COMPLETING"}:
        return "requeued in Slurm" if requeued else "cancelled in Slurm"
    return "preempted" if found.get("PreemptTime", "None") not in {"None", "Unknown"} else ""
