"""A launch -> sbatch, as far as there is room; what is left goes on later, by whoever ends a job or looks.

One submitter at a time (`turns`). The launcher takes the first turn; what it has no room for waits, and so does what
it died over. A refusal that is no limit ends the launch only in the launcher's own turn: its user sees the error.
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
from orchestrator.slurm import commands, control, queue, script, submission
from orchestrator.slurm import leases as turns
from orchestrator.slurm.leases import Job, OwnTurn, Turn
from orchestrator.slurm.limits import Limits
from orchestrator.slurm.options import SlurmOptions
from orchestrator.slurm.states import Seen
from orchestrator.slurm.task import StartWorker
from orchestrator.spec import Resources
from orchestrator.system.files import listed, make_private

_QUIET_SECONDS = 10.0  # after a try in vain only an ending job tries again at once: ten watchers are one try
_NEVER = "it was never submitted"
PACK = ("-m", "orchestrator.worker.pack")
"""What Python is given where a task is a pack: it starts the launch's own worker for each of its runs."""


class Outcome(Enum):
    """What came of handing over what waits."""

    NOTHING_LEFT = auto()
    SUBMITTED = auto()
    NO_ROOM = auto()
    BUSY = auto()  # somebody else is at it
    KEPT = auto()  # what is left may not start yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """What came of it, how many tasks were submitted in which turn, and the turn before that."""

    outcome: Outcome
    tasks: int = 0
    turn: int = 0
    before: Turn | None = None


# --- submit -----------------------------------------------------------------------------------------------


def start(launch: LaunchPaths, limits: Callable[[], Limits], *, after: Sequence[str] = ()) -> Waiting | None:
    """Submit a launch just published, to start after these jobs; return what must wait for room.

    Raises ClusterError where Slurm refuses an array for good; those before it are submitted, the others given up.
    """
    turn = turns.take(launch, after=0, jobs=(), job=own_job(), cluster=queue.own_cluster())
    if turn is None:
        raise turns.lost()
    shapes = _left(launch, known=())
    wanted, kept = _admitted(launch, shapes, safeguards(launch))
    try:
        end = _submit_or_wait(launch, turn, wanted, limits, after)
    except (submission.RefusedError, turns.TurnLostError) as error:
        turn.finish(reason=error.why or error.what, refused=True)
        told = f"{_runs_in(launch, turn.tasks)} of {_runs_in(launch, shapes)} runs were submitted"
        raise ClusterError(told, why=f"{error.what} ({error.why})", fix=error.fix) from error
    reason = end.reason or kept
    turn.finish(reason=reason, lost_seconds=end.lost_seconds)
    left = _runs_in(launch, set(shapes) - set(turn.tasks))
    return Waiting(tasks=left, reason=reason, later=_later(read_launch(launch).header)) if left else None


def go_on(
    launch: LaunchPaths,
    limits: Callable[[], Limits],
    *,
    ending: str = "",
    at_once: bool = False,
    after: Callable[[], Sequence[str]] = tuple,
) -> Tried:
    """Submit what waits. `ending`: the job at whose end we do so; `at_once`: however lately somebody has tried.

    `after` gives the jobs that it is to start after.

    Raises ClusterError where Slurm does not answer.
    """
    last = turns.last(launch)
    if _settled(launch, last) or why_read_only(launch.experiment):
        return Tried(outcome=Outcome.NOTHING_LEFT)
    if not _free(launch, last):
        return Tried(outcome=Outcome.BUSY)
    if not (ending or at_once) and last and last.end and 0 <= time.time() - last.end.time < _QUIET_SECONDS:
        return Tried(outcome=Outcome.NO_ROOM, turn=last.number)
    jobs = [*(last.jobs if last else ()), *(_lost(launch, last) if cut_off(launch, last) else ())]
    wanted, kept = _admitted(launch, _left(launch, known=jobs), safeguards(launch))
    if kept and not wanted and last and last.end:
        return Tried(outcome=Outcome.KEPT, turn=last.number)
    if wanted and last and _may_yet_be_taken(last):
        return Tried(outcome=Outcome.NO_ROOM, turn=last.number, before=last)
    turn = turns.take(
        launch,
        after=last.number if last else 0,
        jobs=jobs,
        job=ending or own_job(),
        cluster=last.cluster if last else queue.own_cluster(),
    )
    if turn is None:
        return Tried(outcome=Outcome.BUSY)
    try:
        end = _submit_or_wait(launch, turn, wanted, limits, after() if wanted else ())
    except (OrchError, OSError) as error:  # a turn that is left open would keep everybody else waiting
        end = turns.End(reason=(error.why or error.what) if isinstance(error, OrchError) else str(error))
    reason = end.reason or kept
    turn.finish(reason=reason, lost_seconds=end.lost_seconds)
    none = Outcome.NO_ROOM if reason else Outcome.NOTHING_LEFT
    outcome = Outcome.SUBMITTED if turn.tasks else none
    return Tried(outcome=outcome, tasks=len(turn.tasks), turn=turn.number, before=last)


def own_job() -> str:
    """Return Slurm's name of the job that this process runs in; empty outside of one."""
    job, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{job}_{task}" if job else os.environ.get("SLURM_JOB_ID", "")


def shape(
    options: SlurmOptions, resources: Resources, python_path: tuple[str, ...], *, data_bytes: int
) -> script.Shape:
    """Return what a run asks for: with `staging.request_tmp` also room for its data version."""
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
    turn: OwnTurn,
    wanted: Mapping[int, script.Shape],
    limits: Callable[[], Limits],
    after: Sequence[str],
) -> turns.End:
    """Submit these tasks; return how the turn is to end. Raises RefusedError where Slurm refuses them for good."""
    try:
        return turns.End(reason=_submit(launch, turn, wanted, limits, after))
    except (submission.RefusedError, turns.TurnLostError):
        raise
    except submission.LostAnswerError as error:
        return turns.End(reason=error.why, lost_seconds=2.0 * limits().message_timeout)
    except ClusterError as error:
        return turns.End(reason=f"{error.what} ({error.why})" if error.why else error.what)


def _submit(
    launch: LaunchPaths,
    turn: OwnTurn,
    wanted: Mapping[int, script.Shape],
    limits: Callable[[], Limits],
    after: Sequence[str],
) -> str:
    """Submit these tasks, in halves where a limit forbids the whole; return why some are left, or nothing."""
    if not wanted:
        return ""
    header = read_launch(launch).header
    waiting = deque(script.arrays(wanted, max_array_size=limits().max_array_size))
    while waiting:
        array = waiting.popleft()
        try:
            _check_room(array, limits().max_job_count, queue.cluster_of(launch))
            turn.add(_submit_array(array, launch, header, turn, after))
        except submission.SubmitLimitError as error:
            if len(array.indices) == 1 or isinstance(error, submission.QueueFullError):
                return error.why
            waiting.extendleft(reversed(array.halves))
    return ""


def _submit_array(
    array: script.Array, launch: LaunchPaths, header: LaunchHeader, turn: OwnTurn, after: Sequence[str]
) -> Job:
    options, folder = control.options(launch), launch.submitit
    make_private(folder)
    given = parameters(array, options, launch, experiment=header.experiment, token=header.token, after=after)
    worker = PACK if array.shape.resources.pack else header.worker
    begin = StartWorker(worker, str(launch.path), array.offset)

    def find() -> str | None:
        known = [job.id for job in turn.jobs]
        found = strays(launch, queue.queue(queue.Whose.of(launch)).values(), known=known)
        return next((job.id for job in found if job.indices == array.indices), None)

    path, cluster = folder / script.pickle_name(array), queue.cluster_of(launch)
    job = submission.submit(given, begin, path, cluster=cluster, find=find, renew=turn.renew)
    return Job(id=job, offset=array.offset, indices=array.indices)


def _check_room(array: script.Array, max_job_count: int, cluster: str) -> None:
    """Raise where Slurm holds too many jobs; waiting arrays count as one, those that ended count for some minutes."""
    held = len(
        commands.ask(["squeue", "--all", "--noheader", "--states=all", "--format=%A"], cluster=cluster).splitlines()
    )
    room = max_job_count - 1 - held
    if room < len(array.indices):
        kind = submission.SubmitLimitError if room > 0 else submission.QueueFullError
        raise kind("Slurm's queue is full", why="submit limit (MaxJobCount)")


def left(launch: LaunchPaths) -> set[int]:
    """Return the tasks that are still to be submitted, as far as that has been written down."""
    last = turns.last(launch)
    return set(_left(launch, known=last.jobs if last else ()))


def _admitted(
    launch: LaunchPaths, shapes: Mapping[int, script.Shape], gate: Safeguards
) -> tuple[dict[int, script.Shape], str]:
    """Return those of some tasks that may start now, and why the others may not; of a pack one run is enough."""
    packs = read_packs(launch)
    admitted = {first: shape for first, shape in shapes.items() if any(map(gate.admits, packs.tasks(first)))}
    return admitted, next((gate.why(first) for first in shapes if first not in admitted), "")


def _left(launch: LaunchPaths, known: Iterable[Job]) -> dict[int, script.Shape]:
    """Return the shapes of the tasks that are in no known array, and have not been cancelled.

    A pack is one task, and cancelled where all its runs are.
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
    """What the tasks of a launch are submitted as. Folders are looked at once, not once per task."""

    def __init__(self, launch: LaunchPaths) -> None:
        self._options, self._versions = control.options(launch), read_launch(launch).header.data
        self._hours = control.kept(launch).hours
        self._cancelled = {path.name for path in launch.cancelled.glob("*")}
        self._python_path = lru_cache(lambda code: tuple(launch.experiment.python_path(code)))

    def is_cancelled(self, planned: PlannedRun) -> bool:
        return planned.run in self._cancelled

    def of(self, planned: PlannedRun) -> script.Shape:
        data_bytes = self._versions.get(planned.data or "", {}).get("bytes", 0)
        resources = replace(planned.resources, hours=self._hours or planned.resources.hours)
        return shape(self._options, resources, self._python_path(planned.code), data_bytes=data_bytes)


# --- what is known of it ----------------------------------------------------------------------------------


def outlook(launch: LaunchPaths, turn: Turn | None) -> Callable[[int], Observation]:
    """Return what is to be said of the tasks that are in no array."""
    told, now = _outlook(launch, turn), safeguards(launch)

    def of(index: int) -> Observation:
        kept = now.why(index) if told.state is JobState.WAITING else ""
        return replace(told, reason=kept) if kept else told

    return of


def _outlook(launch: LaunchPaths, turn: Turn | None) -> Observation:
    if turn is None and listed(launch.complete):
        return Observation(state=JobState.ENDED, reason=_NEVER)
    if turn is not None and turn.end is not None:
        if _settled(launch, turn):
            reason = f"{_NEVER}: {turn.end.reason}" if turn.end.reason else _NEVER
            return Observation(state=JobState.ENDED, reason=reason)
        why = turn.end.reason
    elif turn is not None and _lives(launch, turn):
        return Observation(state=JobState.PENDING, reason=f"being submitted by {turn.who}")
    else:
        why = f"{turn.who if turn else 'its launcher'} died before it was submitted"
    return Observation(state=JobState.WAITING, reason=f"{why}: {_later(read_launch(launch).header)}")


def cut_off(launch: LaunchPaths, turn: Turn | None) -> bool:
    """Return whether Slurm may have more of the launch than the last turn tells."""
    if turn is None:
        return not listed(launch.complete)
    return turn.end is None or turn.end.lost_seconds > 0


def _may_yet_be_taken(turn: Turn) -> bool:
    """Return whether Slurm may yet take what it did not answer for: it is not submitted again before."""
    return turn.end is not None and 0 <= time.time() - turn.end.time < turn.end.lost_seconds


def belonging_to(launch: LaunchPaths) -> Callable[[Seen], bool]:
    """Return what tells whether a task that Slurm names is one of a launch: numbers come again when a state is lost.

    A site may replace comments, and not names; sacct gives the name only.
    """
    header = read_launch(launch).header
    name = _name(launch, header.experiment)

    def belongs(seen: Seen) -> bool:
        if script.offset_in(seen.comment, header.token) is not None or not seen.name:
            return True
        return not seen.comment.startswith(script.MARK) and seen.name == name

    return belongs


def strays(launch: LaunchPaths, seen: Iterable[Seen], *, known: Collection[str]) -> list[Job]:
    """Return the arrays of a launch that Slurm has, but whose submitter died before it could write them down."""
    token = read_launch(launch).token
    found: dict[tuple[str, int], list[int]] = {}
    for each in seen:
        job, _, task = each.job.partition("_")
        offset = script.offset_in(each.comment, token)
        if offset is not None and task and job not in known:
            found.setdefault((job, offset), []).append(offset + int(task))
    return [Job(id=job, offset=offset, indices=tuple(sorted(tasks))) for (job, offset), tasks in found.items()]


def _lost(launch: LaunchPaths, last: Turn | None) -> list[Job]:
    """Return what a dead submitter handed over and could not write down: Slurm has it, or its runs have begun."""
    known = list(last.jobs) if last else []
    found = strays(launch, queue.queue(queue.Whose.of(launch)).values(), known=[job.id for job in known])
    there = {index for job in [*known, *found] for index in job.indices}
    return [*found, *(job for job in _begun(launch) if not there.issuperset(job.indices))]


def _begun(launch: LaunchPaths) -> list[Job]:
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


def _settled(launch: LaunchPaths, turn: Turn | None) -> bool:
    """Return whether nothing more of a launch is to be submitted."""
    if turn is None:
        return listed(launch.complete)
    return turn.end is not None and (turn.end.refused or not turn.end.reason)


def _free(launch: LaunchPaths, last: Turn | None) -> bool:
    """Return whether the next turn may be taken."""
    if last is None:
        return is_submitting(read_launch(launch)) is False
    return last.end is not None or not _lives(launch, last)


def _lives(launch: LaunchPaths, turn: Turn) -> bool:
    """Return whether the submitter of a turn may still be at work. One in a job on another node ends with its job."""
    alive = turn.submitter.alive()
    if alive is not None:
        return alive
    if time.time() - launch.path.stat().st_mtime > SILENT_SECONDS:
        return False
    seen = queue.tasks(queue.Whose.of(launch), [turn.job]).get(turn.job) if turn.job else None
    return not turn.job or (seen is not None and seen.observation.state is not JobState.ENDED)


def _later(header: LaunchHeader) -> str:
    nodes = SlurmOptions.parse(header.cluster).nodes_may_submit
    return "the next job to end, or orch command, submits it" if nodes else "the next orch command submits it"
