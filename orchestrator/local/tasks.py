"""The tasks of a launch on this machine, and what is seen of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from orchestrator.cluster import JobState, Observation
from orchestrator.launch import canary, recovery
from orchestrator.launch.recovery import Again, Ending, Room, Stop
from orchestrator.layout import AttemptPaths, ExperimentPaths, LaunchPaths
from orchestrator.records.attempts import read_attempts, read_claim
from orchestrator.records.launches import read_launch
from orchestrator.records.planned import PlannedRun, read_plan, read_planned_runs
from orchestrator.records.record import Claim
from orchestrator.spec import Resources
from orchestrator.system.files import listed, names_in


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One line of a launch's plan, on this machine."""

    launch: LaunchPaths
    index: int
    run_id: str
    attempt: int
    code: str
    resources: Resources

    @classmethod
    def of(cls, launch: LaunchPaths, planned: PlannedRun) -> Task:
        return cls(
            launch=launch,
            index=planned.index,
            run_id=planned.run,
            attempt=planned.attempt,
            code=planned.code,
            resources=planned.resources,
        )

    @property
    def seconds(self) -> float | None:
        """The time limit of one attempt."""
        return self.resources.hours * 3600 if self.resources.hours else None

    @property
    def experiment(self) -> ExperimentPaths:
        return self.launch.experiment

    @property
    def folder(self) -> AttemptPaths:
        return self.experiment.run(self.run_id).attempt(self.attempt)

    @property
    def cancelled(self) -> bool:
        return listed(self.launch.cancelled / self.run_id)


def latest(task: Task) -> Task:
    """Return a task in the last of the attempts that its launch has begun; in the planned one before the first."""
    there, found = set(names_in(task.experiment.run(task.run_id).path)), task
    while found.folder.path.name in there:
        claim = read_claim(found.folder)
        if claim is None or claim.launch != task.launch.number:
            break
        task, found = found, replace(found, attempt=found.attempt + 1)
    return task


def decide(task: Task, room: Room, ending: Ending | None = None) -> Again | Stop:
    """Return whether a task starts again after its attempt; `ending` is how that ended if it has not been recorded."""
    attempts = read_attempts(task.experiment.run(task.run_id))
    ours = recovery.of_launch(attempts, task.launch.number)
    if not ours or ours[-1].number != task.attempt or task.cancelled:
        return Stop()
    endings = [recovery.ending(each) for each in ours]
    if ending is not None:
        endings[-1] = replace(ending, step=endings[-1].step)
    return recovery.decide(task.resources.attempts, endings, room)


def observe(
    launch: LaunchPaths,
    tasks: Collection[int],
    *,
    supervised: bool | None,
    idle: str,
    waits: Callable[[int], str] = lambda _: "waits for a free slot",
) -> dict[int, Observation]:
    """Return what is seen of tasks. `supervised`: whether somebody will start what has not begun; None: unknown.

    `waits` says for what a task waits.
    """
    state = {None: JobState.UNKNOWN, True: JobState.PENDING, False: JobState.ENDED}[supervised]
    safeguards, early = canary.safeguards(launch), _early(launch)
    stopped = Observation(state=JobState.ENDED, reason="cancelled before it started")
    cancelled = set(names_in(launch.cancelled))
    begun = set(names_in(launch.experiment.runs))  # most may not have: one listing
    found = {}
    for index, planned in read_planned_runs(launch, tasks).items():
        task = Task.of(launch, planned)
        task = latest(task) if planned.run in begun else task
        claim = read_claim(task.folder) if planned.run in begun else None
        if claim is not None:
            found[index] = _observe_attempt(task, claim, supervised=supervised)
        else:
            reason = safeguards.why(index) or early or waits(index) if supervised else idle
            found[index] = stopped if planned.run in cancelled else Observation(state=state, reason=reason)
    return found


def _early(launch: LaunchPaths) -> str:
    """Return what a launch may have to wait for before any of its tasks begins."""
    others = read_launch(launch).header.after
    return f"waits for {', '.join(others)}, and a free slot" if others else ""


def _observe_attempt(task: Task, claim: Claim, *, supervised: bool | None) -> Observation:
    seen = _observe_claim(claim, supervised=supervised)
    if not supervised or seen.state is not JobState.ENDED:
        return seen
    decision = decide(task, Room())
    if isinstance(decision, Stop):
        return seen
    reason = f"attempt {decision.attempt} of {decision.of} is to start"
    return replace(seen, state=JobState.PENDING, reason=reason)


def _observe_claim(claim: Claim, *, supervised: bool | None) -> Observation:
    alive = claim.process.alive()
    job, node = f"pid {claim.process.pid}", claim.process.host
    if alive is None:
        reason = f"it runs on {node}, and can only be seen there"
        return Observation(state=JobState.UNKNOWN, reason=reason, job=job, node=node)
    if alive:
        return Observation(state=JobState.RUNNING, job=job, node=node)
    reason = "its process has ended without a final event"
    return Observation(state=JobState.ENDED, reason=reason, job=job, node=node, unattended=supervised is False)


def tasks_of(launch: LaunchPaths) -> Sequence[Task]:
    """Return all tasks of a launch, in the order of its plan."""
    return [Task.of(launch, planned) for planned in read_plan(launch)]
