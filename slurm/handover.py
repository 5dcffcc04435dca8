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
from typing import Any

from orchestrator import ledger
from orchestrator.cluster import Waiting
from orchestrator.errors import ClusterError, OrchError
from orchestrator.guard import Gate, gate
from orchestrator.layout import LaunchPaths
from orchestrator.record import JobState, Observation
from orchestrator.slurm import control, queue, script, submission, turns
from orchestrator.slurm.limits import Limits
from orchestrator.slurm.options import SlurmOptions
from orchestrator.slurm.states import Seen
from orchestrator.slurm.task import StartWorker
from orchestrator.slurm.turns import Job, OwnTurn, Turn
from orchestrator.spec import Resources

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
    turn = turns.take(launch, after=0, jobs=(), job=own_job())
    if turn is None:
        raise turns.lost()
    shapes = _left(launch, known=())
    wanted, kept = _admitted(launch, shapes, gate(launch))
    try:
        reason = _submit(launch, turn, wanted, limits, after) or kept
    except ClusterError as error:
        turn.finish(reason=error.why or error.what, refused=True)
        told = f"{_runs_in(launch, turn.tasks)} of {_runs_in(launch, shapes)} runs were submitted"
        raise ClusterError(told, why=f"{error.what} ({error.why})", fix=error.fix) from error
    turn.finish(reason=reason)
    left = _runs_in(launch, set(shapes) - set(turn.tasks))
    return Waiting(tasks=left, reason=reason, later=_later(ledger.read_launch(launch).header)) if left else None


def go_on(
    launch: LaunchPaths, limits: Callable[[], Limits], *, ending: str = "", at_once: bool = False,
    after: Callable[[], Sequence[str]] = tuple,
) -> Tried:  # fmt: skip
    """Submit what waits. `ending`: the job at whose end we do so; `at_once`: however lately somebody has tried.

    `after` gives the jobs that it is to start after.

    Raises ClusterError where Slurm does not answer.
    """
    last = turns.last(launch)
    if launch.path.stat().st_uid != os.getuid() or _settled(launch, last):
        return Tried(outcome=Outcome.NOTHING_LEFT)
    if not _free(launch, last):
        return Tried(outcome=Outcome.BUSY)
    if not (ending or at_once) and last and last.end and 0 <= time.time() - last.end.time < _QUIET_SECONDS:
        return Tried(outcome=Outcome.NO_ROOM, turn=last.number)
    jobs = [*(last.jobs if last else ()), *(_lost(launch, last) if cut_off(launch, last) else ())]
    wanted, kept = _admitted(launch, _left(launch, known=jobs), gate(launch))
    if kept and not wanted and last and last.end:
        return Tried(outcome=Outcome.KEPT, turn=last.number)
    turn = turns.take(launch, after=last.number if last else 0, jobs=jobs, job=ending or own_job())
    if turn is None:
        return Tried(outcome=Outcome.BUSY)
    try:
        reason = _submit(launch, turn, wanted, limits, after() if wanted else ()) or kept
    except (OrchError, OSError) as error:  # a turn that is left open would keep everybody else waiting
        reason = (error.why or error.what) if isinstance(error, OrchError) else str(error)
    turn.finish(reason=reason)
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
    array: script.Array, options: SlurmOptions, launch: LaunchPaths, *, experiment: str, token: str,
    after: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Return submitit's parameters for an array of a launch, to start after these jobs. `token` is the launch's own."""
    name, told = f"{experiment}.{launch.number:04d}", script.comment(token, array.offset)
    return script.parameters(array, options, name=name, comment=told, folder=launch.submitit, after=after)


def _submit(
    launch: LaunchPaths, turn: OwnTurn, wanted: Mapping[int, script.Shape], limits: Callable[[], Limits],
    after: Sequence[str],
) -> str:  # fmt: skip
    """Submit these tasks, in halves where a limit forbids the whole; return why some are left, or nothing."""
    if not wanted:
        return ""
    header = ledger.read_launch(launch).header
    waiting = deque(script.arrays(wanted, max_array_size=limits().max_array_size))
    while waiting:
        array = waiting.popleft()
        try:
            _check_room(array, limits().max_job_count)
            turn.add(_submit_array(array, launch, header, turn, after))
        except submission.SubmitLimitError as error:
            if len(array.indices) == 1 or isinstance(error, submission.QueueFullError):
                return error.why
            waiting.extendleft(reversed(array.halves))
    return ""


def _submit_array(
    array: script.Array, launch: LaunchPaths, header: Mapping[str, Any], turn: OwnTurn, after: Sequence[str]
) -> Job:
    options, folder = control.options(launch), launch.submitit
    ledger.make_private(folder)
    names = {"experiment": header["experiment"], "token": header["token"]}
    given = parameters(array, options, launch, **names, after=after)
    worker = PACK if array.shape.resources.pack else tuple(header["worker"])
    begin = StartWorker(worker, str(launch.path), array.offset)

    def find() -> str | None:
        known = [job.id for job in turn.jobs]
        found = strays(launch, queue.queue(_owner(launch)).values(), known=known)
        return next((job.id for job in found if job.indices == array.indices), None)

    job = submission.submit(given, begin, folder / script.pickle_name(array), find=find, renew=turn.renew)
    return Job(id=job, offset=array.offset, indices=array.indices)


def _check_room(array: script.Array, max_job_count: int) -> None:
    """Raise where Slurm holds too many jobs; waiting arrays count as one, those that ended count for some minutes."""
    held = len(queue.ask(["squeue", "--noheader", "--states=all", "--format=%A"]).splitlines())
    room = max_job_count - 1 - held
    if room < len(array.indices):
        kind = submission.SubmitLimitError if room > 0 else submission.QueueFullError
        raise kind("Slurm's queue is full", why="submit limit (MaxJobCount)")


def left(launch: LaunchPaths) -> set[int]:
    """Return the tasks that are still to be submitted, as far as that has been written down."""
    last = turns.last(launch)
    return set(_left(launch, known=last.jobs if last else ()))


def _admitted(
    launch: LaunchPaths, shapes: Mapping[int, script.Shape], gate: Gate
) -> tuple[dict[int, script.Shape], str]:
    """Return those of some tasks that may start now, and why the others may not; of a pack one run is enough."""
    packs = ledger.read_packs(launch)
    admitted = {first: shape for first, shape in shapes.items() if any(map(gate.admits, packs.tasks(first)))}
    return admitted, next((gate.why(first) for first in shapes if first not in admitted), "")


def _left(launch: LaunchPaths, known: Iterable[Job]) -> dict[int, script.Shape]:
    """Return the shapes of the tasks that are in no known array, and have not been cancelled.

    A pack is one task, and cancelled where all its runs are.
    """
    there, packs = {index for job in known for index in job.indices}, ledger.read_packs(launch)
    shapes = _Shapes(launch)
    wanted: dict[int, script.Shape] = {}
    for line in ledger.read_lines(launch):
        first = packs.first(line["index"])
        if first not in there and first not in wanted and not shapes.is_cancelled(line):
            wanted[first] = shapes.of(line)
    return wanted


def _runs_in(launch: LaunchPaths, tasks: Iterable[int]) -> int:
    return len(ledger.read_packs(launch).all_tasks(tasks))


class _Shapes:
    """What the tasks of a launch are submitted as. Folders are looked at once, not once per task."""

    def __init__(self, launch: LaunchPaths) -> None:
        self._options, self._versions = control.options(launch), ledger.read_launch(launch).header["data"]
        self._hours = control.kept(launch).hours
        self._cancelled = {path.name for path in launch.cancelled.glob("*")}
        self._python_path = lru_cache(lambda code: tuple(launch.experiment.python_path(code)))

    def is_cancelled(self, line: Mapping[str, Any]) -> bool:
        return line["run"] in self._cancelled

    def of(self, line: Mapping[str, Any]) -> script.Shape:
        data_bytes = self._versions.get(line["data"], {}).get("bytes", 0)
        resources = Resources.from_json(line["resources"])
        resources = replace(resources, hours=self._hours or resources.hours)
        return shape(self._options, resources, self._python_path(line["code"]), data_bytes=data_bytes)


# --- what is known of it ----------------------------------------------------------------------------------


def outlook(launch: LaunchPaths, turn: Turn | None) -> Callable[[int], Observation]:
    """Return what is to be said of the tasks that are in no array."""
    told, now = _outlook(launch, turn), gate(launch)

    def of(index: int) -> Observation:
        kept = now.why(index) if told.state is JobState.WAITING else ""
        return replace(told, reason=kept) if kept else told

    return of


def _outlook(launch: LaunchPaths, turn: Turn | None) -> Observation:
    if turn is None and launch.complete.exists():
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
    return Observation(state=JobState.WAITING, reason=f"{why}: {_later(ledger.read_launch(launch).header)}")


def cut_off(launch: LaunchPaths, turn: Turn | None) -> bool:
    """Return whether Slurm may have more of the launch than the last turn tells."""
    return turn.end is None if turn else not launch.complete.exists()


def strays(launch: LaunchPaths, seen: Iterable[Seen], *, known: Collection[str]) -> list[Job]:
    """Return the arrays of a launch that Slurm has, but whose submitter died before it could write them down."""
    token = str(ledger.read_launch(launch).header["token"])
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
    found = strays(launch, queue.queue(_owner(launch)).values(), known=[job.id for job in known])
    there = {index for job in [*known, *found] for index in job.indices}
    return [*found, *(job for job in _begun(launch) if not there.issuperset(job.indices))]


def _begun(launch: LaunchPaths) -> list[Job]:
    """Return the jobs that have claimed an attempt of this launch; Slurm may have forgotten them."""
    started = {path.name for path in (launch.experiment.path / "runs").glob("*")}
    packs = ledger.read_packs(launch)
    found: dict[str, Job] = {}
    for line in ledger.read_lines(launch):
        attempt = launch.experiment.run(line["run"]).attempt(line["attempt"])
        claim = ledger.read_claim(attempt) if line["run"] in started else None
        job, _, task = (claim.job if claim else "").partition("_")
        if claim is not None and claim.launch == launch.number and task:
            first = packs.first(line["index"])
            found.setdefault(claim.job, Job(id=job, offset=first - int(task), indices=(first,)))
    return list(found.values())


def _settled(launch: LaunchPaths, turn: Turn | None) -> bool:
    """Return whether nothing more of a launch is to be submitted."""
    if turn is None:
        return launch.complete.exists()
    return turn.end is not None and (turn.end.refused or not turn.end.reason)


def _free(launch: LaunchPaths, last: Turn | None) -> bool:
    """Return whether the next turn may be taken."""
    if last is None:
        return ledger.submitting(ledger.read_launch(launch)) is False
    return last.end is not None or not _lives(launch, last)


def _lives(launch: LaunchPaths, turn: Turn) -> bool:
    """Return whether the submitter of a turn may still be at work. One in a job on another node ends with its job."""
    alive = turn.submitter.alive()
    if alive is not None:
        return alive
    if time.time() - launch.path.stat().st_mtime > ledger.SILENT_SECONDS:
        return False
    seen = queue.tasks(_owner(launch), [turn.job]).get(turn.job) if turn.job else None
    return not turn.job or (seen is not None and seen.observation.state is not JobState.ENDED)


def _later(header: Mapping[str, Any]) -> str:
    nodes = SlurmOptions.parse(header["cluster"]).nodes_may_submit
    return "the next job to end, or orch command, submits it" if nodes else "the next orch command submits it"


def _owner(launch: LaunchPaths) -> int:
    return launch.path.stat().st_uid
