"""A run's metrics over its steps, from the spools of its attempts; and their mean over several runs.

Of an attempt that another one has resumed from, what it logged up to that checkpoint counts, as in MLflow. Of values
with one (metric, step) the first counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.layout import ExperimentPaths
from orchestrator.records.record import Record
from orchestrator.tracking import Metrics, read

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Values over steps, in the order of the steps. `error` is the standard error over runs, where there are several.

    Where a run has logged no number (NaN, an infinity) the value is NaN.
    """

    steps: Numbers
    values: Numbers
    error: Numbers | None = None


def curves(paths: ExperimentPaths, record: Record) -> dict[str, Curve]:
    """Return the curve of each metric that a run has logged so far."""
    found: dict[str, dict[int, float]] = {}
    ends = record.counted
    for attempt in record.history:
        spool = paths.run(record.id).attempt(attempt.number).metrics
        for line, _ in read(spool, end=ends.get(attempt.number)):
            if isinstance(line, Metrics):
                for name, value in line.values.items():
                    found.setdefault(name, {}).setdefault(line.step, value)
    return {name: _curve(points) for name, points in found.items()}


def mean(runs: Sequence[Curve], *, most: int) -> Curve:
    """Return the mean of several runs' curves at `most` steps at most.

    Runs that logged at other steps are interpolated between their own, never beyond them: where one has ended, the mean
    is that of the others.
    """
    thinned = [thin(run, most=most) for run in runs]
    if len(thinned) == 1:
        return thinned[0]
    steps = _thin(np.unique(np.concatenate([run.steps for run in thinned])), most)
    rows = np.array([np.interp(steps, run.steps, run.values, left=np.nan, right=np.nan) for run in thinned])
    known = np.isfinite(rows)
    count = known.sum(axis=0)
    filled = np.where(known, rows, 0.0)
    average = np.divide(filled.sum(axis=0), count, out=np.full(len(steps), np.nan), where=count > 0)
    squares = np.where(known, (filled - average) ** 2, 0.0).sum(axis=0)
    error = np.sqrt(np.divide(squares, (count - 1) * count, out=np.zeros(len(steps)), where=count > 1))
    return Curve(steps=steps, values=average, error=error)


def thin(curve: Curve, *, most: int) -> Curve:
    """Return a curve of `most` points at most; each is the mean of neighbours, of which none is left out."""
    if len(curve.steps) <= most:
        return curve
    return Curve(steps=_thin(curve.steps, most), values=_thin(curve.values, most))


def _curve(points: Mapping[int, float]) -> Curve:
    steps = np.array(sorted(points), dtype=np.float64)
    values = np.array([points[step] for step in sorted(points)], dtype=np.float64)
    return Curve(steps=steps, values=np.where(np.isfinite(values), values, np.nan))


def _thin(values: Numbers, most: int) -> Numbers:
    if len(values) <= most:
        return values
    return np.array([_mean(part) for part in np.array_split(values, most)])


def _mean(part: Numbers) -> float:
    known = part[np.isfinite(part)]
    return float(known.mean()) if len(known) else float("nan")
