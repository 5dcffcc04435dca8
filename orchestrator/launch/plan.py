"""Wanted runs x known records -> steps, each with its reason. Pure: the same facts give the same plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from orchestrator.records.record import Record, RunState
from orchestrator.spec import RunId
from orchestrator.spec.experiment import Run

Rerun = Literal["never", "changed", "always", "anew"]
"""Which finished runs are run again; `anew`: all but those in progress, from scratch, with your current code."""


class Action(StrEnum):
    """What a launch does about a run."""

    SUBMIT = "submit"
    RESUME = "resume"  # from its last checkpoint, with its own code
    RETRY = "retry"  # from scratch, with your current code
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One run, what to do about it, and why. The attempt, once planned, is claimed by the process that comes first."""

    run: Run
    action: Action
    reason: str
    attempt: int
    generation: int
    history: int
    code: str


def make_plan(
    runs: Iterable[Run], records: Mapping[RunId, Record], *, code: str, rerun: Rerun = "never"
) -> tuple[Step, ...]:
    """Return one step per wanted run, in their order. `code` is the tree of your current code."""
    return tuple(_step(run, records.get(run.id), code, rerun) for run in runs)


def to_do(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Return the steps that act."""
    return tuple(step for step in steps if step.action is not Action.SKIP)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """A known run, what is known of it, and what is asked: your current code, and whether finished runs count."""

    run: Run
    record: Record
    code: str
    rerun: Rerun

    @property
    def next_attempt(self) -> int:
        return self.record.last.number + 1 if self.record.last else 1

    def skip(self, reason: str) -> Step:
        record = self.record
        return Step(
            run=self.run,
            action=Action.SKIP,
            reason=reason,
            attempt=record.last.number if record.last else 0,
            generation=record.planned.generation,
            history=record.planned.history,
            code=record.code,
        )

    def from_scratch(self, action: Action, reason: str, *, generation: int) -> Step:
        attempt = self.next_attempt
        return Step(
            run=self.run,
            action=action,
            reason=reason,
            attempt=attempt,
            history=attempt,
            code=self.code,
            generation=generation,
        )


def _step(run: Run, record: Record | None, code: str, rerun: Rerun) -> Step:
    if record is None:
        return Step(run=run, action=Action.SUBMIT, reason="new", attempt=1, generation=1, history=1, code=code)
    return _RULES[record.state](_Case(run=run, record=record, code=code, rerun=rerun))


def _active(case: _Case) -> Step:
    record = case.record
    where = f"in launch {record.planned.launch:04d}"
    if record.state is RunState.UNKNOWN:
        return case.skip(f"its state {where} is unknown: {record.reason}")
    if record.state is RunState.WAITING:
        return case.skip(f"waiting {where}: {record.reason}")
    return case.skip(f"{record.state.value} {where}")


def _done(case: _Case) -> Step:
    old, new = case.record.code, case.code
    if case.rerun in {"always", "anew"} or (case.rerun == "changed" and old != new):
        reason = f"done under other code {old[:8]}, now {new[:8]}" if old != new else "done; asked for again"
        return case.from_scratch(Action.SUBMIT, reason, generation=case.record.planned.generation + 1)
    return case.skip(f"done, under other code {old[:8]}" if old != new else "done")


def _failed(case: _Case) -> Step:
    record = case.record
    return case.from_scratch(Action.RETRY, f"failed: {record.reason}", generation=record.planned.generation)


def _stopped(case: _Case) -> Step:
    """Resume from the last attempt, or start from scratch where none has begun."""
    record = case.record
    reason = f"{record.state.value}: {record.reason}" if record.reason else record.state.value
    # An attempt that died before its claim takes nothing away from those before it.
    claims = [a.claim for a in record.attempts if a.claim and a.number >= record.planned.history]
    if not claims or case.rerun == "anew":
        return case.from_scratch(Action.SUBMIT, reason, generation=record.planned.generation)
    return Step(
        run=case.run,
        action=Action.RESUME,
        reason=reason,
        attempt=case.next_attempt,
        history=claims[-1].history,
        generation=claims[-1].generation,
        code=claims[-1].code,
    )


_RULES: Mapping[RunState, Callable[[_Case], Step]] = {
    RunState.RUNNING: _active,
    RunState.QUEUED: _active,
    RunState.UNKNOWN: _active,
    RunState.DONE: _done,
    RunState.FAILED: _failed,
    RunState.INTERRUPTED: _stopped,
    RunState.CANCELLED: _stopped,
    RunState.WAITING: _active,
}
