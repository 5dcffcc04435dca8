"""Submission of a launch, as far as limits allow; the rest is submitted later, by a job that ends or a command.

One submitter at a time (`leases`). The launcher takes the first lease. Tasks that exceed a limit, or that were left
when the launcher died, stay pending. A refusal other than a limit ends the launch only under the launcher's own lease,
whose user sees the error.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import lru_cache

from orchestrator.cluster import JobState, Observation, Waiting
from orchestrator.errors import ClusterError, OrchError
from orchestrator.launch.canary import Safeguards, safeguards
from orchestrator.layout import LaunchPaths
from orchestrator.records.attempts import read_claim
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import SILENT_SECONDS, is_submitting, read_launch
from orchestrator.records.ownership import why_read_only
from orchestrator.records.packs import read_packs
from orchestrator.records.planned import PlannedRun, read_plan
from orchestrator.slurm import commands, control, leases, queue, script, submission
from orchestrator.slurm.leases import Job, OwnLease, SubmitLease
from orchestrator.slurm.limits import Limits
from orchestrator.slurm.options import SlurmOptions
from orchestrator.slurm.states import SlurmTask
from orchestrator.slurm.task import StartWorker
from orchestrator.spec import Resources
from orchestrator.system.files import listed, make_private

_QUIET_SECONDS = 10.0  # after a failed try, only a job that ends tries again sooner, however many users watch
_NEVER = "it was never submitted"
PACK = ("-m", "orchestrator.worker.pack")
"""Python's arguments for a task that is a pack; it starts the launch's own worker for each of its runs."""


class Outcome(Enum):
    """The outcome of a try to submit pending tasks."""

    NOTHING_LEFT = auto()
    SUBMITTED = auto()
    DEFERRED = auto()
    BUSY = auto()  # another process is submitting
    HELD = auto()  # a safeguard keeps the remaining tasks from starting


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitResult:
    """The outcome of a try, the number of tasks submitted, the lease's number, and the lease before it."""

    outcome: Outcome
    tasks: int = 0
    lease: int = 0
    previous: SubmitLease | None = None


# --- submit -----------------------------------------------------------------------------------------------


def submit_launch(launch: LaunchPaths, limits: Callable[[], Limits], *, after: Sequence[str] = ()) -> Waiting | None:
    """Submit a launch just published, to start after these jobs; return the tasks that stay pending.

    Raises ClusterError if Slurm refuses an array for good; those before it are submitted, the others given up.
    """
    lease = leases.take(launch, after=0, jobs=(), job=own_job(), cluster=queue.own_cluster())
    if lease is None:
        raise leases.lease_lost()
    shapes = _unsubmitted(launch, known=())
    wanted, kept = _admitted(launch, shapes, safeguards(launch))
    try:
        end = _submit_or_wait(launch, lease, wanted, limits, after)
    except (submission.RefusedError, leases.LeaseLostError) as error:
        lease.finish(reason=error.why or error.what, refused=True)
        told = f"{_runs_in(launch, lease.tasks)} of {_runs_in(launch, shapes)} runs were submitted"
        raise ClusterError(told, why=f"{error.what} ({error.why})", fix=error.fix) from error
    reason = end.reason or kept
    lease.finish(reason=reason, lost_seconds=end.lost_seconds)
    left = _runs_in(launch, set(shapes) - set(lease.tasks))
    return Waiting(tasks=left, reason=reason, later=_later(read_launch(launch).header)) if left else None


def submit_rest(
    launch: LaunchPaths,
    limits: Callable[[], Limits],
    *,
    ending: str = "",
    at_once: bool = False,
    after: Callable[[], Sequence[str]] = tuple,
) -> SubmitResult:
    """Submit pending tasks. `ending`: the job at whose end this is done; `at_once`: even just after a failed try.

    `after` returns the jobs that the tasks have to start after. Raises ClusterError if Slurm does not answer.
    """
    last = leases.last(launch)
    if _is_submitted(launch, last) or why_read_only(launch.experiment):
        return SubmitResult(outcome=Outcome.NOTHING_LEFT)
    if not _lease_is_free(launch, last):
        return SubmitResult(outcome=Outcome.BUSY)
    if not (ending or at_once) and last and last.end and 0 <= time.time() - last.end.time < _QUIET_SECONDS:
        return SubmitResult(outcome=Outcome.DEFERRED, lease=last.number)
    jobs = [*(last.jobs if last else ()), *(_untracked_jobs(launch, last) if may_have_untracked(launch, last) else ())]
    wanted, kept = _admitted(launch, _unsubmitted(launch, known=jobs), safeguards(launch))
    if kept and not wanted and last and last.end:
        return SubmitResult(outcome=Outcome.HELD, lease=last.number)
    if wanted and last and _answer_is_outstanding(last):
        return SubmitResult(outcome=Outcome.DEFERRED, lease=last.number, previous=last)
    lease = leases.take(
        launch,
        after=last.number if last else 0,
        jobs=jobs,
        job=ending or own_job(),
        cluster=last.cluster if last else queue.own_cluster(),
    )
    if lease is None:
        return SubmitResult(outcome=Outcome.BUSY)
    try:
        end = _submit_or_wait(launch, lease, wanted, limits, after() if wanted else ())
    except (OrchError, OSError) as error:  # a lease left open would block all other submitters
        end = leases.End(reason=(error.why or error.what) if isinstance(error, OrchError) else str(error))
    reason = end.reason or kept
    lease.finish(reason=reason, lost_seconds=end.lost_seconds)
    none = Outcome.DEFERRED if reason else Outcome.NOTHING_LEFT
    outcome = Outcome.SUBMITTED if lease.tasks else none
    return SubmitResult(outcome=outcome, tasks=len(lease.tasks), lease=lease.number, previous=last)


def own_job() -> str:
    """Return Slurm's name of the job that this process runs in; empty outside of one."""
    job, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{job}_{task}" if job else os.environ.get("SLURM_JOB_ID", "")


def shape(
    options: SlurmOptions, resources: Resources, python_path: tuple[str, ...], *, data_bytes: int
) -> script.Shape:
    """Return the shape of a run's request; with `staging.request_tmp` it includes scratch for the data version."""
    asked_mb = script.tmp_mb(data_bytes) if options.staging.request_tmp else 0
    return script.Shape(resources=resources, python_path=python_path, tmp_mb=asked_mb)


def parameters(
    array: script.Array,
    options: SlurmOptions,
    launch: LaunchPaths,
    *,
    experiment: str,
    token: str,
    after: Sequence[str] = (),
) -> dict[str, object]:
    """Return submitit's parameters for an array of a launch, to start after these jobs. `token` is the launch's own."""
    name = _name(launch, experiment)
    return script.parameters(array, options, name=name, token=token, folder=launch.submitit, after=after)


def _name(launch: LaunchPaths, experiment: str) -> str:
    return f"{experiment}.{launch.number:04d}"


def _submit_or_wait(
    launch: LaunchPaths,
    lease: OwnLease,
    wanted: Mapping[int, script.Shape],
    limits: Callable[[], Limits],
    after: Sequence[str],
) -> leases.End:
    """Submit these tasks; return the end of the lease. Raises RefusedError if Slurm refuses them for good."""
    try:
        return leases.End(reason=_submit(launch, lease, wanted, limits, after))
    except (submission.RefusedError, leases.LeaseLostError):
        raise
    except submission.LostAnswerError as error:
        return leases.End(reason=error.why, lost_seconds=2.0 * limits().message_timeout)
    except ClusterError as error:
        return leases.End(reason=f"{error.what} ({error.why})" if error.why else error.what)


def _submit(
    launch: LaunchPaths,
    lease: OwnLease,
    wanted: Mapping[int, script.Shape],
    limits: Callable[[], Limits],
    after: Sequence[str],
) -> str:
    """Submit these tasks, halving an array that exceeds a limit; return why some are left, or an empty text."""
    if not wanted:
        return ""
    header = read_launch(launch).header
    waiting = deque(script.arrays(wanted, max_array_size=limits().max_array_size))
    while waiting:
        array = waiting.popleft()
        try:
            _check_space(array, limits().max_job_count, queue.cluster_of(launch))
            lease.add(_submit_array(array, launch, header, lease, after))
        except submission.SubmitLimitError as error:
            if len(array.indices) == 1 or isinstance(error, submission.QueueFullError):
                return error.why
            waiting.extendleft(reversed(array.halves))
    return ""


def _submit_array(
    array: script.Array, launch: LaunchPaths, header: LaunchHeader, lease: OwnLease, after: Sequence[str]
) -> Job:
    options, folder = control.options(launch), launch.submitit
    make_private(folder)
    given = parameters(array, options, launch, experiment=header.experiment, token=header.token, after=after)
    worker = PACK if array.shape.resources.pack else header.worker
    begin = StartWorker(worker, str(launch.path), array.offset)

    def find() -> str | None:
        known = [job.id for job in lease.jobs]
        found = untracked_arrays(launch, queue.queue(queue.QueueScope.of(launch)).values(), known=known)
        return next((job.id for job in found if job.indices == array.indices), None)

    path, cluster = folder / script.pickle_name(array), queue.cluster_of(launch)
    job = submission.submit(given, begin, path, cluster=cluster, find=find, renew=lease.renew)
    return Job(id=job, offset=array.offset, indices=array.indices)


def _check_space(array: script.Array, max_job_count: int, cluster: str) -> None:
    """Raise SubmitLimitError if Slurm's queue has no space for an array.

    A pending array counts as one job, and jobs still count for some minutes after they end.
    """
    held = len(
        commands.ask(["squeue", "--all", "--noheader", "--states=all", "--format=%A"], cluster=cluster).splitlines()
    )
    space = max_job_count - 1 - held
    if space < len(array.indices):
        kind = submission.SubmitLimitError if space > 0 else submission.QueueFullError
        raise kind("Slurm's queue is full", why="submit limit (MaxJobCount)")


def unsubmitted(launch: LaunchPaths) -> set[int]:
    """Return the tasks that have still to be submitted, according to the records."""
    last = leases.last(launch)
    return set(_unsubmitted(launch, known=last.jobs if last else ()))


def _admitted(
    launch: LaunchPaths, shapes: Mapping[int, script.Shape], admission: Safeguards
) -> tuple[dict[int, script.Shape], str]:
    """Return the tasks that may start now, and why the others may not. One admitted run is enough for a pack."""
    packs = read_packs(launch)
    admitted = {first: shape for first, shape in shapes.items() if any(map(admission.admits, packs.tasks(first)))}
    return admitted, next((admission.why(first) for first in shapes if first not in admitted), "")


def _unsubmitted(launch: LaunchPaths, known: Iterable[Job]) -> dict[int, script.Shape]:
    """Return the shapes of the tasks that are in no known array and have not been cancelled.

    A pack is one task; it is cancelled if all its runs are.
    """
    there, packs = {index for job in known for index in job.indices}, read_packs(launch)
    shapes = _Shapes(launch)
    wanted: dict[int, script.Shape] = {}
    for planned in read_plan(launch):
        first = packs.first(planned.index)
        if first not in there and first not in wanted and not shapes.is_cancelled(planned):
            wanted[first] = shapes.of(planned)
    return wanted


def _runs_in(launch: LaunchPaths, tasks: Iterable[int]) -> int:
    return len(read_packs(launch).all_tasks(tasks))


class _Shapes:
    """The shapes in which the tasks of a launch are submitted. Folders are read once, not once per task."""

    def __init__(self, launch: LaunchPaths) -> None:
        self._options, self._versions = control.options(launch), read_launch(launch).header.data
        self._hours = control.recorded_change(launch).hours
        self._cancelled = {path.name for path in launch.cancelled.glob("*")}
        self._python_path = lru_cache(lambda code: tuple(launch.experiment.python_path(code)))

    def is_cancelled(self, planned: PlannedRun) -> bool:
        return planned.run in self._cancelled

    def of(self, planned: PlannedRun) -> script.Shape:
        data_bytes = self._versions.get(planned.data or "", {}).get("bytes", 0)
        resources = replace(planned.resources, hours=self._hours or planned.resources.hours)
        return shape(self._options, resources, self._python_path(planned.code), data_bytes=data_bytes)


# --- observe ----------------------------------------------------------------------------------------------


def observe_unsubmitted(launch: LaunchPaths, lease: SubmitLease | None) -> Callable[[int], Observation]:
    """Return a function that gives the observation of a task that is in no array."""
    told, now = _observe_unsubmitted(launch, lease), safeguards(launch)

    def of(index: int) -> Observation:
        kept = now.why(index) if told.state is JobState.WAITING else ""
        return replace(told, reason=kept) if kept else told

    return of


def _observe_unsubmitted(launch: LaunchPaths, lease: SubmitLease | None) -> Observation:
    if lease is None and listed(launch.complete):
        return Observation(state=JobState.ENDED, reason=_NEVER)
    if lease is not None and lease.end is not None:
        if _is_submitted(launch, lease):
            reason = f"{_NEVER}: {lease.end.reason}" if lease.end.reason else _NEVER
            return Observation(state=JobState.ENDED, reason=reason)
        why = lease.end.reason
    elif lease is not None and _submitter_may_live(launch, lease):
        return Observation(state=JobState.PENDING, reason=f"being submitted by {lease.holder}")
    else:
        why = f"{lease.holder if lease else 'its launcher'} died before it was submitted"
    return Observation(state=JobState.WAITING, reason=f"{why}: {_later(read_launch(launch).header)}")


def may_have_untracked(launch: LaunchPaths, lease: SubmitLease | None) -> bool:
    """Return whether Slurm may have arrays of the launch that its last lease does not list."""
    if lease is None:
        return not listed(launch.complete)
    return lease.end is None or lease.end.lost_seconds > 0


def _answer_is_outstanding(lease: SubmitLease) -> bool:
    """Return whether Slurm may still accept a request that it has not answered. Until then nothing is resubmitted."""
    return lease.end is not None and 0 <= time.time() - lease.end.time < lease.end.lost_seconds


def belongs_to(launch: LaunchPaths) -> Callable[[SlurmTask], bool]:
    """Return a function that says whether a task in Slurm belongs to a launch: job ids repeat after a loss of state.

    A site may replace a job's comment, but not its name; sacct shows only the name.
    """
    header = read_launch(launch).header
    name = _name(launch, header.experiment)

    def belongs(seen: SlurmTask) -> bool:
        if script.offset_in(seen.comment, header.token) is not None or not seen.name:
            return True
        return not seen.comment.startswith(script.MARK) and seen.name == name

    return belongs


def untracked_arrays(launch: LaunchPaths, seen: Iterable[SlurmTask], *, known: Collection[str]) -> list[Job]:
    """Return the arrays of a launch that Slurm has, but that its submitter could not record before it died."""
    token = read_launch(launch).token
    found: dict[tuple[str, int], list[int]] = {}
    for each in seen:
        job, _, task = each.job.partition("_")
        offset = script.offset_in(each.comment, token)
        if offset is not None and task and job not in known:
            found.setdefault((job, offset), []).append(offset + int(task))
    return [Job(id=job, offset=offset, indices=tuple(sorted(tasks))) for (job, offset), tasks in found.items()]


def _untracked_jobs(launch: LaunchPaths, last: SubmitLease | None) -> list[Job]:
    """Return the arrays that a dead submitter could not record: Slurm still has them, or their runs have begun."""
    known = list(last.jobs) if last else []
    found = untracked_arrays(launch, queue.queue(queue.QueueScope.of(launch)).values(), known=[job.id for job in known])
    there = {index for job in [*known, *found] for index in job.indices}
    return [*found, *(job for job in _claiming_jobs(launch) if not there.issuperset(job.indices))]


def _claiming_jobs(launch: LaunchPaths) -> list[Job]:
    """Return the jobs that have claimed an attempt of this launch; Slurm may have forgotten them."""
    started = {path.name for path in (launch.experiment.path / "runs").glob("*")}
    packs = read_packs(launch)
    found: dict[str, Job] = {}
    for planned in read_plan(launch):
        attempt = launch.experiment.run(planned.run).attempt(planned.attempt)
        claim = read_claim(attempt) if planned.run in started else None
        job, _, task = (claim.job if claim else "").partition("_")
        if claim is not None and claim.launch == launch.number and task:
            first = packs.first(planned.index)
            found.setdefault(claim.job, Job(id=job, offset=first - int(task), indices=(first,)))
    return list(found.values())


def _is_submitted(launch: LaunchPaths, lease: SubmitLease | None) -> bool:
    """Return whether no more of a launch has to be submitted."""
    if lease is None:
        return listed(launch.complete)
    return lease.end is not None and (lease.end.refused or not lease.end.reason)


def _lease_is_free(launch: LaunchPaths, last: SubmitLease | None) -> bool:
    """Return whether the next lease may be taken."""
    if last is None:
        return is_submitting(read_launch(launch)) is False
    return last.end is not None or not _submitter_may_live(launch, last)


def _submitter_may_live(launch: LaunchPaths, lease: SubmitLease) -> bool:
    """Return whether the submitter of a lease may still be alive. One in a job on another node ends with its job."""
    alive = lease.submitter.alive()
    if alive is not None:
        return alive
    if time.time() - launch.path.stat().st_mtime > SILENT_SECONDS:
        return False
    seen = queue.tasks(queue.QueueScope.of(launch), [lease.job]).get(lease.job) if lease.job else None
    return not lease.job or (seen is not None and seen.observation.state is not JobState.ENDED)


def _later(header: LaunchHeader) -> str:
    nodes = SlurmOptions.parse(header.cluster).nodes_may_submit
    return "the next job to end, or orch command, submits it" if nodes else "the next orch command submits it"
