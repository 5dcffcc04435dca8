"""When a sweep will have ended, judged from what its runs have done so far. Pure.

A run that trains has `(1 - f) / v` to go: `f` is the fraction of its epochs or steps that it has done, whichever
ends it first, and `v` how much of that a second it has done since it first reported. Any other run takes as long
as the mean of those that are done, or, where none is, of those that train. What waits is given, in its order, to
whichever run ends first: as many run at once as do now.

What it cannot know: that early stopping ends a run sooner, that testing after the fit takes time, that runs of
one sweep may differ much in length, and how long Slurm will let them wait.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.records.record import Record, RunState
from orchestrator.spec import RunId


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The seconds until the last run has ended; None where that cannot be known, and then why."""

    seconds: float | None
    unknown: str = ""


def forecast(records: Iterable[Record], now: float) -> Forecast | None:
    """Return when all runs will have ended; None if they have. `now` is in seconds since the epoch."""
    known = list(records)
    running = [record for record in known if record.state is RunState.RUNNING]
    waiting = [record for record in known if record.state in {RunState.QUEUED, RunState.WAITING}]
    silent = sum(record.state is RunState.UNKNOWN for record in known)
    if not (running or waiting or silent):
        return None
    if silent:
        return Forecast(seconds=None, unknown=f"the state of {silent} of {len(known)} runs is unknown")
    if not running:
        return Forecast(seconds=None, unknown="nothing runs now")
    left = {record.id: seconds_left(record) for record in running}
    typical = _typical(known, left, now)
    if typical is None and (waiting or None in left.values()):
        return Forecast(seconds=None, unknown="no run has come far enough")
    whole = typical or 0.0
    ends = [max(0.0, whole - record.seconds(now)) if (own := left[record.id]) is None else own for record in running]
    return Forecast(seconds=_last_end(ends, [whole * (1 - _done(record)) for record in waiting]))


def fraction(progress: Mapping[str, Any]) -> float | None:
    """Return how much of its training a run has done, from 0 to 1; None where it has no end that is known."""
    parts = []
    if progress.get("steps"):
        parts.append((progress.get("step") or 0) / progress["steps"])
    if progress.get("epochs"):
        inside = progress["batch"] / progress["batches"] if progress.get("batches") else 0.0
        parts.append(((progress.get("epoch") or 0) + inside) / progress["epochs"])
    return min(1.0, max(parts)) if parts else None


def seconds_left(record: Record) -> float | None:
    """Return how long a run has yet to train at its own pace; None before it has one."""
    last = record.last
    if last is None or last.progressed is None or last.first_progressed is None:
        return None
    done, before = fraction(last.progress), fraction(last.first_progress)
    if done is None or before is None or done <= before or last.progressed <= last.first_progressed:
        return None
    return (1 - done) * (last.progressed - last.first_progressed) / (done - before)


def _done(record: Record) -> float:
    """Return the fraction that a waiting run has behind it, from before it was requeued."""
    return max((fraction(attempt.progress) or 0.0 for attempt in record.history), default=0.0)


def _typical(records: Sequence[Record], left: Mapping[RunId, float | None], now: float) -> float | None:
    """Return how many seconds a run takes from its start to its end."""
    done = [record.seconds(now) for record in records if record.state is RunState.DONE]
    own = [record.seconds(now) + to_go for record in records if (to_go := left.get(record.id)) is not None]
    known = done or own
    return math.fsum(known) / len(known) if known else None


def _last_end(ends: Sequence[float], lengths: Iterable[float]) -> float:
    slots = list(ends)
    heapq.heapify(slots)
    for length in lengths:
        heapq.heapreplace(slots, slots[0] + length)
    return max(slots)
