"""The tasks of a launch on this machine, and what is seen of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator import guard, ledger
from orchestrator.layout import AttemptPaths, ExperimentPaths, LaunchPaths
from orchestrator.record import Claim, JobState, Observation
from orchestrator.spec import Resources


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
    def of(cls, launch: LaunchPaths, line: Mapping[str, Any]) -> Task:
        return cls(
            launch=launch, index=line["index"], run_id=line["run"], attempt=line["attempt"],
            code=line["code"], resources=Resources.from_json(line["resources"]),
        )  # fmt: skip

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
        return (self.launch.cancelled / self.run_id).exists()


def observe(
    launch: LaunchPaths, tasks: Collection[int], *, supervised: bool | None, idle: str,
    waits: Callable[[int], str] = lambda _: "waits for a free slot",
) -> dict[int, Observation]:  # fmt: skip
    """Return what is seen of tasks. `supervised`: whether somebody will start what has not begun; None: unknown.

    `waits` says for what a task waits.
    """
    state = {None: JobState.UNKNOWN, True: JobState.PENDING, False: JobState.ENDED}[supervised]
    gate, early = guard.gate(launch), _early(launch)
    stopped = Observation(state=JobState.ENDED, reason="cancelled before it started")
    cancelled = set(ledger.names(launch.cancelled))
    begun = set(ledger.names(launch.experiment.runs))  # most may not have: one listing
    found = {}
    for index, line in ledger.read_some_lines(launch, tasks).items():
        claim = ledger.read_claim(Task.of(launch, line).folder) if line["run"] in begun else None
        if claim is not None:
            found[index] = _observe_claim(claim, supervised=supervised)
        else:
            reason = gate.why(index) or early or waits(index) if supervised else idle
            found[index] = stopped if line["run"] in cancelled else Observation(state=state, reason=reason)
    return found


def _early(launch: LaunchPaths) -> str:
    """Return what a launch may have to wait for before any of its tasks begins."""
    others = ledger.read_launch(launch).header.get("after", ())
    return f"waits for {', '.join(others)}, and a free slot" if others else ""


def _observe_claim(claim: Claim, *, supervised: bool | None) -> Observation:
    alive = claim.process.alive()
    job, node = f"pid {claim.process.pid}", claim.process.host
    if alive is None:
        reason = f"it runs on {node}, and can only be seen there"
        return Observation(state=JobState.UNKNOWN, reason=reason, job=job, node=node)
    if alive:
        return Observation(state=JobState.RUNNING, job=job, node=node)
    told = "its process has ended without a word"
    return Observation(state=JobState.ENDED, reason=told, job=job, node=node, unattended=supervised is False)


def tasks_of(launch: LaunchPaths) -> Sequence[Task]:
    """Return all tasks of a launch, in the order of its plan."""
    return [Task.of(launch, line) for line in ledger.read_lines(launch)]
