"""What of a launch may not start yet. Read from the files each time, so no process has to open it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.layout import ExperimentPaths, LaunchPaths
from orchestrator.records.attempts import read_attempt, read_claim
from orchestrator.records.launches import read_launch
from orchestrator.records.planned import PlannedRun, read_planned_runs
from orchestrator.records.record import RunState
from orchestrator.spec import LaunchOptions
from orchestrator.system.files import listed, make_private, names_in

HELD = "held: `orch release` lets it go"


@dataclass(frozen=True, slots=True, kw_only=True)
class Safeguards:
    """Tasks, by their index in the plan: those below `canary` come first, and the others wait while it is `closed`.

    `closed` says why, and is empty where they need not wait.
    """

    canary: int
    closed: str
    held: frozenset[int]

    def admits(self, index: int) -> bool:
        """Return whether a task may start."""
        return not self.why(index)

    def why(self, index: int) -> str:
        """Return why a task may not start yet; empty where it may."""
        if index in self.held:
            return HELD
        return self.closed if index >= self.canary else ""


def safeguards(launch: LaunchPaths) -> Safeguards:
    """Return what of a launch may not start now."""
    held = frozenset(int(name) for name in names_in(launch.held) if name.isdecimal())
    canary = options(launch).canary
    closed = _closed(launch, canary) if canary and not listed(launch.released) else ""
    return Safeguards(canary=canary, closed=closed, held=held)


def options(launch: LaunchPaths) -> LaunchOptions:
    """Return how a launch's runs are started and limited."""
    return read_launch(launch).header.launch


def hold(launch: LaunchPaths, indices: Iterable[int]) -> None:
    """Keep tasks that have not started from starting."""
    make_private(launch.held)
    for index in indices:
        (launch.held / str(index)).touch(mode=0o600)


def release(launch: LaunchPaths, indices: Iterable[int]) -> None:
    """Let go what holds tasks back: a hold, and where one of them waits for it, the canary."""
    chosen = set(indices)
    before = safeguards(launch)
    for index in chosen & before.held:
        (launch.held / str(index)).unlink(missing_ok=True)
    if before.closed and any(index >= before.canary for index in chosen):
        launch.released.touch(mode=0o600)


def _closed(launch: LaunchPaths, canary: int) -> str:
    planned_runs = read_planned_runs(launch, range(canary)).values()
    done = sum(_passed(launch.experiment, planned) for planned in planned_runs)
    return "" if done == canary else f"the canary comes first: {done} of {canary} runs are done"


def _passed(experiment: ExperimentPaths, planned: PlannedRun) -> bool:
    """Return whether a run of the canary is done, with the code that the others have: not that of a later launch."""
    run = experiment.run(planned.run)
    later = [attempt for attempt in run.attempts() if attempt.number >= planned.attempt]
    same = [each for each in later if (claim := read_claim(each)) is not None and claim.code == planned.code]
    return any(read_attempt(run, attempt).state is RunState.DONE for attempt in same)
