"""Runs side by side: ranked by the objective, one by one or as groups that differ in nothing but their seed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.cli.points import complete, points
from orchestrator.ledger import Ledger
from orchestrator.record import Record, RunState
from orchestrator.spec import Objective, RunId

SEED = "seed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The mean of a metric over the runs of a group, and its standard error (None of a single run)."""

    mean: float
    error: float | None
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Return the estimate from at least one value: the error is the sample's standard deviation over sqrt(n)."""
        count, mean = len(values), math.fsum(values) / len(values)
        spread = math.fsum((value - mean) ** 2 for value in values)
        error = math.sqrt(spread / (count - 1) / count) if count > 1 else None
        return cls(mean=mean, error=error, runs=count)

    def __str__(self) -> str:
        """Return `0.953 ± 0.002`, the mean with as many digits as its error has."""
        if not self.error or not math.isfinite(self.error):
            return f"{self.mean:.4g}"
        digits = max(0, 1 - math.floor(math.log10(self.error)))
        return (
            f"{self.mean:.{digits}f} ± {self.error:.{digits}f}"
            if digits < 10
            else f"{self.mean:.4g} ± {self.error:.1g}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Runs that belong together: one, or all that differ in their seed only. `point` has no seed then."""

    point: Mapping[str, Any]
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
    """Groups in the order of their rank, the keys in which their points differ, and the metrics to show."""

    groups: tuple[Group, ...]
    keys: tuple[str, ...]
    metrics: tuple[str, ...]
    objective: Objective | None
    seeds: bool

    def estimate(self, group: Group, metric: str) -> Estimate | None:
        """Return what is shown of a metric."""
        return group.value(metric, best=self.objective is not None and metric == self.objective.metric)


def compare(
    book: Ledger, records: Sequence[Record], objective: Objective | None, metrics: Sequence[str], *, each: bool
) -> Comparison:
    """Rank runs. `metrics`: those to show beside the objective's; none: all. `each`: every run by itself.

    Otherwise runs that differ in their seed only are one group, where there are such.
    """
    found = points(book, records)
    keys = list(dict.fromkeys(key for point in found.values() for key in point))
    at = {record.id: complete(book, record, found[record.id], keys) for record in records}
    groups = _groups(records, at, [key for key in keys if key != SEED]) if SEED in keys and not each else []
    seeds = any(len(group.records) > 1 for group in groups)
    if not seeds:
        groups = [Group(point={key: at[record.id][key] for key in keys}, records=(record,)) for record in records]
    target = [objective.metric] if objective else []
    names = metrics or sorted({name for record in records for name in record.metrics})
    made = Comparison(
        groups=(), keys=tuple(key for key in keys if not (seeds and key == SEED)), objective=objective, seeds=seeds,
        metrics=tuple(dict.fromkeys([*target, *names])),
    )  # fmt: skip
    ranked = sorted(groups, key=lambda group: _rank(made, group))
    return Comparison(groups=tuple(ranked), keys=made.keys, metrics=made.metrics, objective=objective, seeds=seeds)


def _groups(records: Sequence[Record], at: Mapping[RunId, Mapping[str, Any]], keys: Sequence[str]) -> list[Group]:
    found: dict[str, list[Record]] = {}
    for record in records:
        text = json.dumps([at[record.id][key] for key in keys], sort_keys=True, default=str)
        found.setdefault(text, []).append(record)
    return [Group(point={key: at[group[0].id][key] for key in keys}, records=tuple(group)) for group in found.values()]


def _rank(comparison: Comparison, group: Group) -> tuple[bool, float]:
    objective = comparison.objective
    found = comparison.estimate(group, objective.metric) if objective else None
    if found is None or objective is None:
        return True, 0.0
    return False, -found.mean if objective.mode == "max" else found.mean
