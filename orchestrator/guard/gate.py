"""What of a launch may not start yet. Read anew each time: opening it takes no process of ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator import ledger
from orchestrator.layout import ExperimentPaths, LaunchPaths
from orchestrator.record import RunState
from orchestrator.spec import LaunchOptions

HELD = "held: `orch release` lets it go"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
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


def gate(launch: LaunchPaths) -> Gate:
    """Return what of a launch may not start now."""
    held = frozenset(int(name) for name in ledger.names(launch.held) if name.isdecimal())
    canary = options(launch).canary
    closed = _closed(launch, canary) if canary and not launch.released.exists() else ""
    return Gate(canary=canary, closed=closed, held=held)


def options(launch: LaunchPaths) -> LaunchOptions:
    """Return how a launch's runs are let loose."""
    return LaunchOptions.from_json(ledger.read_launch(launch).header.get("launch", {}))


def hold(launch: LaunchPaths, indices: Iterable[int]) -> None:
    """Keep tasks that have not started from starting."""
    ledger.make_private(launch.held)
    for index in indices:
        (launch.held / str(index)).touch(mode=0o600)


def release(launch: LaunchPaths, indices: Iterable[int]) -> None:
    """Let go what holds tasks back: a hold, and where one of them waits for it, the canary."""
    chosen = set(indices)
    before = gate(launch)
    for index in chosen & before.held:
        (launch.held / str(index)).unlink(missing_ok=True)
    if before.closed and any(index >= before.canary for index in chosen):
        launch.released.touch(mode=0o600)


def _closed(launch: LaunchPaths, canary: int) -> str:
    lines = ledger.read_some_lines(launch, range(canary)).values()
    done = sum(_passed(launch.experiment, line) for line in lines)
    return "" if done == canary else f"the canary comes first: {done} of {canary} runs are done"


def _passed(experiment: ExperimentPaths, line: Mapping[str, Any]) -> bool:
    """Return whether a run of the canary is done, with the code that the others have: not that of a later launch."""
    run = experiment.run(line["run"])
    later = [attempt for attempt in run.attempts() if attempt.number >= line["attempt"]]
    same = [each for each in later if (claim := ledger.read_claim(each)) is not None and claim.code == line["code"]]
    return any(ledger.read_attempt(run, attempt).state is RunState.DONE for attempt in same)
