"""Learning curves as Plotly's figures: the best points in colour, with a band over seeds, others behind. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from orchestrator.report.curves import Curve, Numbers, mean
from orchestrator.report.html.axes import Figure, describe, shown
from orchestrator.spec import Objective, Point

COLOURED = 10
BEHIND = 90
RUNS = 10
"""How many points get curves, and how many runs of each: the page stays small, however many runs there are."""

_METRICS = 20
_MOST_STEPS, _MOST_STEPS_BEHIND = 200, 60
_COLOURS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#ee8866",
    "#44bb99",
    "#999933",
    "#bb5588",
)

Drawn = tuple[Point, Sequence[Mapping[str, Curve]]]
"""A point, and the curves of each of its runs."""


def metrics(points: Sequence[Drawn], objective: Objective | None) -> list[str]:
    """Return the metrics that any run has logged more than once: the objective, then validation's, then others."""
    found = {name for _, runs in points for run in runs for name, curve in run.items() if len(curve.steps) > 1}
    target = objective.metric if objective else None
    return sorted(found, key=lambda name: (name != target, not name.startswith(("val", "test")), name))[:_METRICS]


def figure(points: Sequence[Drawn], metric: str) -> Figure:
    """Return one metric's curves; the first points are in colour, above the others."""
    coloured = [
        trace
        for number, (point, runs) in enumerate(points[:COLOURED])
        for trace in _in_colour(describe(point), _of(runs, metric), _COLOURS[number])
    ]
    layout = {
        "xaxis": {"title": {"text": "step"}},
        "yaxis": {"title": {"text": shown(metric)}},
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": -0.2},
        "height": 460,
    }
    behind = _behind([_of(runs, metric) for _, runs in points[COLOURED:]])
    return {"name": metric, "data": [*behind, *coloured], "layout": layout}


def _of(runs: Sequence[Mapping[str, Curve]], metric: str) -> list[Curve]:
    return [run[metric] for run in runs if metric in run and len(run[metric].steps)]


def _in_colour(name: str, runs: Sequence[Curve], colour: str) -> list[dict[str, object]]:
    if not runs:
        return []
    curve = mean(runs, most=_MOST_STEPS)
    line: dict[str, object] = {
        "type": "scatter",
        "mode": "lines" if len(curve.steps) > 1 else "markers",
        "name": name,
        "legendgroup": name,
        "x": numbers(curve.steps),
        "y": numbers(curve.values),
        "line": {"color": colour, "width": 2},
    }
    return [*_band(name, curve, colour), line]


def _band(name: str, curve: Curve, colour: str) -> list[dict[str, object]]:
    if curve.error is None:
        return []
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    around = {
        "type": "scatter",
        "mode": "lines",
        "x": numbers(curve.steps),
        "line": {"width": 0},
        "hoverinfo": "skip",
        "legendgroup": name,
        "showlegend": False,
    }
    filled = {"fill": "tonexty", "fillcolor": f"rgba({red},{green},{blue},0.2)"}
    low, high = curve.values - curve.error, curve.values + curve.error
    return [{**around, "y": numbers(low)}, {**around, "y": numbers(high), **filled}]


def _behind(points: Sequence[Sequence[Curve]]) -> list[dict[str, object]]:
    """Return all other points as one trace, with a gap after each."""
    x: list[float | None] = []
    y: list[float | None] = []
    for curve in (mean(runs, most=_MOST_STEPS_BEHIND) for runs in points if runs):
        x += [*numbers(curve.steps), None]
        y += [*numbers(curve.values), None]
    if not x:
        return []
    line = {"color": "rgba(128,128,128,0.35)", "width": 1}
    return [
        {"type": "scatter", "mode": "lines", "name": "other points", "x": x, "y": y, "line": line, "hoverinfo": "skip"}
    ]


def numbers(values: Numbers) -> list[float | None]:
    """Return numbers as JSON has them, short; None for what is not a finite number, which leaves a gap."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values.tolist()]
