"""Runs side by side: ranked by the objective, one by one or as groups that differ in nothing but their seed. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from orchestrator.records.record import Record, RunState
from orchestrator.spec import Objective, Point, RunId

SEEDS = frozenset({"seed"})
"""The keys that are averaged over unless others are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The mean of a metric over the runs of a group, and its standard error (None of a single run)."""

    mean: float
    error: float | None
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Return the estimate from at least one value: the error is the sample's standard deviation over sqrt(n).

        Where one of several is not a finite number, the mean is not one either, and it has no error.
        """
        count = len(values)
        if count == 1:
            return cls(mean=values[0], error=None, runs=1)
        if not all(map(math.isfinite, values)):
            return cls(mean=math.nan, error=None, runs=count)
        mean = math.fsum(values) / count
        spread = math.fsum((value - mean) ** 2 for value in values)
        return cls(mean=mean, error=math.sqrt(spread / (count - 1) / count), runs=count)

    @property
    def finite(self) -> bool:
        return math.isfinite(self.mean)

    def __str__(self) -> str:
        """Return `0.953 ± 0.002`, the mean with as many digits as its error has."""
        if not self.error or not math.isfinite(self.error):
            return f"{self.mean:.4g}"
        digits = max(0, 1 - math.floor(math.log10(self.error)))
        if digits >= 10:
            return f"{self.mean:.4g} ± {self.error:.1g}"
        return f"{self.mean:.{digits}f} ± {self.error:.{digits}f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Runs that belong together: one, or all that differ only in what is averaged over, which `point` is without."""

    point: Point
    records: tuple[Record, ...]

    @property
    def done(self) -> list[Record]:
        return [record for record in self.records if record.state is RunState.DONE]

    def value(self, metric: str, *, best: bool) -> Estimate | None:
        """Return a metric's estimate from the runs that are done; from what it has, of a single one.

        `best`: the best value that a run has reached counts, otherwise its last.
        """
        counted = self.done if len(self.records) > 1 else self.records
        values = [record.best_value(metric) if best else record.metrics.get(metric) for record in counted]
        known = [value for value in values if value is not None]
        return Estimate.of(known) if known else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Groups in the order of their rank, the keys in which their points differ, and the metrics to show.

    `over` are the keys that are averaged over; none where each run is by itself.
    """

    groups: tuple[Group, ...]
    keys: tuple[str, ...]
    metrics: tuple[str, ...]
    objective: Objective | None
    over: tuple[str, ...] = ()

    def estimate(self, group: Group, metric: str) -> Estimate | None:
        """Return what is shown of a metric."""
        return group.value(metric, best=self.objective is not None and metric == self.objective.metric)

    @property
    def best(self) -> Group | None:
        """The group of the first rank, where it has reached anything."""
        first = self.groups[0] if self.groups and self.objective else None
        return first if first and not _rank(self, first)[0] else None


def compared(
    records: Sequence[Record],
    at: Mapping[RunId, Point],
    keys: Sequence[str],
    *,
    objective: Objective | None,
    metrics: Sequence[str],
    over: Collection[str],
) -> Comparison:
    """Rank runs whose values of the keys are `at`: groups of those that differ only in `over`, where there are such."""
    averaged = tuple(key for key in keys if key in over)
    kept = [key for key in keys if key not in averaged]
    groups = _groups(records, at, kept) if averaged else []
    if not any(len(group.records) > 1 for group in groups):
        averaged, kept = (), list(keys)
        groups = [Group(point={key: at[record.id][key] for key in keys}, records=(record,)) for record in records]
    made = Comparison(
        groups=tuple(groups), keys=tuple(kept), metrics=tuple(metrics), objective=objective, over=averaged
    )
    return replace(made, groups=tuple(sorted(groups, key=lambda group: _rank(made, group))))


def _groups(records: Sequence[Record], at: Mapping[RunId, Mapping[str, object]], keys: Sequence[str]) -> list[Group]:
    found: dict[str, list[Record]] = {}
    for record in records:
        text = json.dumps([at[record.id][key] for key in keys], sort_keys=True, default=str)
        found.setdefault(text, []).append(record)
    return [Group(point={key: at[group[0].id][key] for key in keys}, records=tuple(group)) for group in found.values()]


def _rank(comparison: Comparison, group: Group) -> tuple[bool, float]:
    """Return by what groups are sorted: what has reached no number comes last."""
    objective = comparison.objective
    found = comparison.estimate(group, objective.metric) if objective else None
    if found is None or objective is None or not found.finite:
        return True, 0.0
    return False, -found.mean if objective.mode == "max" else found.mean
