"""Runs -> points with what their runs reached: the mean and standard error of each metric over seeds. Pure.

A *group* is the runs of one point that differ in nothing but what is averaged over. Only runs that are done count in a
mean: what is still training, or has failed, says nothing of what the point reaches. They are counted all the same.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from orchestrator.record import Record, RunState
from orchestrator.spec import Objective, Point, RunId

SEEDS = frozenset({"seed"})
"""What is averaged over unless something else is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The mean of values and its standard error; None where a single value has none."""

    mean: float
    error: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        finite = all(map(math.isfinite, values))
        error = statistics.stdev(values) / math.sqrt(len(values)) if finite and len(values) > 1 else None
        return cls(mean=statistics.fmean(values) if finite else math.nan, error=error, count=len(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The runs of one point, and what those reached that are done. `point` is without what is averaged over."""

    point: Point
    runs: tuple[Record, ...]
    values: Mapping[str, Spread]

    @property
    def done(self) -> int:
        return sum(record.state is RunState.DONE for record in self.runs)

    @property
    def states(self) -> Mapping[RunState, int]:
        counts = Counter(record.state for record in self.runs)
        return {state: counts[state] for state in RunState if counts[state]}


def grouped(
    records: Iterable[Record], points: Mapping[RunId, Point], *,
    over: Collection[str], objective: Objective | None, metrics: Sequence[str],
) -> list[Group]:  # fmt: skip
    """Return the groups of runs that differ only in the keys `over`, the best by the objective first."""
    found: dict[str, tuple[Point, list[Record]]] = {}
    for record in records:
        point = {key: value for key, value in points[record.id].items() if key not in over}
        found.setdefault(json.dumps(point, sort_keys=True, default=str), (point, []))[1].append(record)
    groups = [
        Group(point=point, runs=tuple(runs), values=_values(runs, objective, metrics))
        for point, runs in found.values()
    ]  # fmt: skip
    return sorted(groups, key=lambda group: _rank(group, objective))


def averages(groups: Iterable[Group]) -> bool:
    """Return whether any group holds several runs, so that there is something to average."""
    return any(len(group.runs) > 1 for group in groups)


def best(groups: Sequence[Group], objective: Objective | None) -> Group | None:
    """Return the best of ranked groups; None where none has reached a finite value."""
    first = groups[0] if groups else None
    return first if first and objective and not _rank(first, objective)[0] else None


def _values(runs: Sequence[Record], objective: Objective | None, metrics: Sequence[str]) -> dict[str, Spread]:
    target = objective.metric if objective else None
    done = [record for record in runs if record.state is RunState.DONE]
    found = {
        name: [
            value
            for record in done
            if (value := record.best_value(name) if name == target else record.metrics.get(name)) is not None
        ]
        for name in metrics
    }  # fmt: skip
    return {name: Spread.of(values) for name, values in found.items() if values}


def _rank(group: Group, objective: Objective | None) -> tuple[bool, float]:
    spread = group.values.get(objective.metric) if objective else None
    if objective is None or spread is None or not math.isfinite(spread.mean):
        return True, 0.0
    return False, -spread.mean if objective.mode == "max" else spread.mean
