"""Wanted runs x known records -> steps, each with its reason. Pure: the same facts give the same plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from orchestrator.record import Record, RunState
from orchestrator.spec import Run, RunId

Rerun = Literal["never", "changed", "always"]


class Action(StrEnum):
    """What a launch does about a run."""

    SUBMIT = "submit"
    RESUME = "resume"  # from its last checkpoint, with its own code
    RETRY = "retry"  # from scratch, with today's code
    SKIP = "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One run, what to do about it, and why. The attempt, once planned, is claimed by whoever comes first."""

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
    """Return one step per wanted run, in their order. `code` is the tree of today's code."""
    return tuple(_step(run, records.get(run.id), code, rerun) for run in runs)


def to_do(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Return the steps that act."""
    return tuple(step for step in steps if step.action is not Action.SKIP)


def _step(run: Run, record: Record | None, code: str, rerun: Rerun) -> Step:
    if record is None:
        return Step(
            run=run, action=Action.SUBMIT, reason="new", attempt=1, generation=1, history=1, code=code
        )
    return _RULES[record.state](run, record, code, rerun)


def _skip(run: Run, record: Record, reason: str) -> Step:
    last = record.last
    return Step(
        run=run, action=Action.SKIP, reason=reason, attempt=last.number if last else 0,
        generation=record.planned.generation, history=record.planned.history, code=record.code,
    )  # fmt: skip


def _from_scratch(run: Run, record: Record, action: Action, reason: str, code: str, *, generation: int = 0) -> Step:
    attempt = _next_attempt(record)
    return Step(
        run=run, action=action, reason=reason, attempt=attempt, history=attempt, code=code,
        generation=generation or record.planned.generation,
    )  # fmt: skip


def _next_attempt(record: Record) -> int:
    return record.last.number + 1 if record.last else 1


def _active(run: Run, record: Record, code: str, rerun: Rerun) -> Step:
    where = f"in launch {record.planned.launch:04d}"
    told = f"{record.state.value} {where}"
    if record.state is RunState.UNKNOWN:
        told = f"its state {where} is unknown: {record.reason}"
    return _skip(run, record, told)


def _done(run: Run, record: Record, code: str, rerun: Rerun) -> Step:
    changed = record.code != code
    if rerun == "always" or (rerun == "changed" and changed):
        reason = f"done under other code {record.code[:8]}, now {code[:8]}" if changed else "done; asked for again"
        return _from_scratch(
            run, record, Action.SUBMIT, reason, code, generation=record.planned.generation + 1
        )
    return _skip(run, record, f"done, under other code {record.code[:8]}" if changed else "done")


def _failed(run: Run, record: Record, code: str, rerun: Rerun) -> Step:
    return _from_scratch(run, record, Action.RETRY, f"failed: {record.reason}", code)


def _stopped(run: Run, record: Record, code: str, rerun: Rerun) -> Step:
    """Go on from the last attempt, or start anew where none has begun."""
    reason = f"{record.state.value}: {record.reason}" if record.reason else record.state.value
    # An attempt that died before its claim takes nothing away from those before it.
    claims = [a.claim for a in record.attempts if a.claim and a.number >= record.planned.history]
    if not claims:
        return _from_scratch(run, record, Action.SUBMIT, reason, code)
    return Step(
        run=run, action=Action.RESUME, reason=reason, attempt=_next_attempt(record), history=claims[-1].history,
        generation=claims[-1].generation, code=claims[-1].code,
    )  # fmt: skip


_RULES: Mapping[RunState, Callable[[Run, Record, str, Rerun], Step]] = {
    RunState.RUNNING: _active,
    RunState.QUEUED: _active,
    RunState.UNKNOWN: _active,
    RunState.DONE: _done,
    RunState.FAILED: _failed,
    RunState.INTERRUPTED: _stopped,
    RunState.CANCELLED: _stopped,
    RunState.WAITING: _stopped,
}
