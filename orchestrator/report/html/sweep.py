"""A sweep's plots as Plotly's figures: parallel coordinates, the metric against each swept key, heatmaps. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from orchestrator.report.comparison import Comparison, Estimate, Group
from orchestrator.report.html.axes import COLOURS, Axis, Figure, axes, describe, shown, spread

_POINTS = 2_000
_BEST_POINTS = 200
_AXES = 8
_HEATMAPS = 6
_CELLS = 900
_LABELLED_CELLS = 80
_LINE_VALUES = 30


Reached = tuple[Group, Estimate]
"""A point and what it has reached."""


def figures(made: Comparison, metric: str) -> list[Figure]:
    """Return the plots of one metric over the points that have reached a value of it, the best first."""
    values = [(group, made.estimate(group, metric)) for group in made.groups]
    known = [(group, value) for group, value in values if value and value.finite]
    found = axes([group.point for group, _ in known])[:_AXES]
    if len(known) < 2 or not found:
        return []
    kept = spread(known, _POINTS, first=_BEST_POINTS)
    ranks = made.objective is not None and made.objective.metric == metric
    pairs = itertools.islice(itertools.combinations(found, 2), 28)
    maps = [one for pair in pairs if (one := _heatmap(known, pair))]
    scatters = [_against(known, kept, axis, metric, known[0] if ranks else None) for axis in found]
    return [*([_parallel(kept, found, metric)] if len(found) > 1 else []), *scatters, *maps[:_HEATMAPS]]


# --- parallel coordinates ---------------------------------------------------------------------------------


def _parallel(known: Sequence[Reached], found: Sequence[Axis], metric: str) -> Figure:
    reached = [_short(value.mean) for _, value in known]
    groups = [group for group, _ in known]
    dimensions = [*(_dimension(axis, groups) for axis in found), {"label": shown(metric), "values": reached}]
    trace = {
        "type": "parcoords",
        "dimensions": dimensions,
        "labelangle": -12 if len(dimensions) > 5 else 0,
        "line": {"color": reached, "colorscale": COLOURS, "showscale": True, "colorbar": {"thickness": 12}},
    }
    layout = {"margin": {"l": 70, "r": 40, "t": 70, "b": 30}, "height": 420}
    return {"name": "parallel coordinates", "wide": True, "data": [trace], "layout": layout}


def _dimension(axis: Axis, groups: Sequence[Group]) -> dict[str, object]:
    """Return an axis with numbers on it, whatever its values are: their logarithm, or their place among others."""
    if axis.kind == "linear":
        values = [group.point.get(axis.key) for group in groups]
        lacking = {"values": [axis.values[0] if value is None else value for value in values]}
        return {"label": shown(axis.key), **lacking, **_ticks([*axis.values], [*axis.values])}
    if axis.kind == "log":
        values = [math.log10(group.point.get(axis.key, axis.values[0])) for group in groups]
        return {"label": shown(axis.key), "values": values, **_ticks([*map(math.log10, axis.values)], [*axis.values])}
    names = list(dict.fromkeys(axis.place(group.point) for group in groups))
    ordered = [name for name in map(shown, axis.values) if name in names] + [n for n in names if n == shown(None)]
    order = {name: number for number, name in enumerate(dict.fromkeys(ordered))}
    values = [order[axis.place(group.point)] for group in groups]
    return {"label": shown(axis.key), "values": values, "tickvals": [*order.values()], "ticktext": [*order]}


def _ticks(at: Sequence[float], values: Sequence[object]) -> dict[str, object]:
    """Return ticks at all values where they are few, else at some; the axis ends at the outermost."""
    some = range(len(at)) if len(at) <= 10 else sorted({round(i * (len(at) - 1) / 6) for i in range(7)})
    return {"tickvals": [at[i] for i in some], "ticktext": [shown(values[i]) for i in some]}


# --- the metric against one key ---------------------------------------------------------------------------


def _against(
    known: Sequence[Reached], kept: Sequence[Reached], axis: Axis, metric: str, best: Reached | None
) -> Figure:
    having = [(group, value) for group, value in kept if axis.key in group.point]
    errors = [value.error for _, value in having]
    dots = {
        "type": "scatter",
        "mode": "markers",
        "name": "points",
        "x": [axis.place(group.point) for group, _ in having],
        "y": [_short(value.mean) for _, value in having],
        "text": [_hover(one, metric) for one in having],
        "hoverinfo": "text",
        "marker": {"size": 7, "opacity": 0.65, "color": "#4477aa"},
        **({"error_y": {"array": [error or 0 for error in errors], "thickness": 1, "width": 3}} if any(errors) else {}),
    }
    layout = {
        "xaxis": axis.layout(),
        "yaxis": {"title": {"text": shown(metric)}},
        "hovermode": "closest",
        "showlegend": False,
        "height": 340,
    }
    return {"name": axis.key, "data": [*_middle(known, axis), dots, *_star(axis, metric, best)], "layout": layout}


def _middle(known: Sequence[Reached], axis: Axis) -> list[dict[str, object]]:
    """Return a line through the mean of all points with a value, where values repeat."""
    if len(axis.values) > _LINE_VALUES or len(known) < 2 * len(axis.values):
        return []
    cells: dict[object, list[float]] = {}
    for group, value in known:
        if axis.key in group.point:
            cells.setdefault(axis.place(group.point), []).append(value.mean)
    at = [shown(value) if axis.kind == "category" else value for value in axis.values]
    line = [_short(Estimate.of(cells[place]).mean) for place in at]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "mean",
            "x": at,
            "y": line,
            "hoverinfo": "skip",
            "line": {"color": "rgba(128,128,128,0.7)", "width": 2, "dash": "dot"},
        }
    ]


def _star(axis: Axis, metric: str, best: Reached | None) -> list[dict[str, object]]:
    if best is None or axis.key not in best[0].point:
        return []
    marker = {"symbol": "star", "size": 15, "color": "#ee8800", "line": {"width": 1, "color": "#fff"}}
    return [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "best",
            "x": [axis.place(best[0].point)],
            "marker": marker,
            "y": [_short(best[1].mean)],
            "text": [f"best: {_hover(best, metric)}"],
            "hoverinfo": "text",
        }
    ]


def _hover(one: Reached, metric: str) -> str:
    group, value = one
    runs = f" (n={value.runs})" if len(group.records) > 1 else ""
    return f"{describe(group.point)}<br>{shown(metric)} {value}{runs}"


# --- two keys ---------------------------------------------------------------------------------------------


def _heatmap(known: Sequence[Reached], pair: tuple[Axis, Axis]) -> Figure | None:
    """Return the mean over all points of each pair of values; None where most pairs have none."""
    across, up = pair
    if len(across.values) * len(up.values) > _CELLS:
        return None
    cells: dict[tuple[object, object], list[float]] = {}
    for group, value in known:
        if across.key in group.point and up.key in group.point:
            place = shown(group.point[across.key]), shown(group.point[up.key])
            cells.setdefault(place, []).append(value.mean)
    columns, lines = ([*dict.fromkeys(map(shown, axis.values))] for axis in pair)
    if 2 * len(cells) < len(columns) * len(lines):
        return None
    means = [
        [_short(Estimate.of(found).mean) if (found := cells.get((x, y))) else None for x in columns] for y in lines
    ]
    trace = {
        "type": "heatmap",
        "x": columns,
        "y": lines,
        "z": means,
        "colorscale": COLOURS,
        "colorbar": {"thickness": 12},
        "hovertemplate": "%{x}, %{y}: %{z:.5g}<extra></extra>",
        **({"texttemplate": "%{z:.3g}"} if len(cells) <= _LABELLED_CELLS else {}),
    }
    layout = {
        "xaxis": {"title": {"text": shown(across.key)}, "type": "category"},
        "height": 380,
        "yaxis": {"title": {"text": shown(up.key)}, "type": "category"},
    }
    return {"name": f"{across.key} and {up.key}", "data": [trace], "layout": layout}


def _short(value: float) -> float:
    return float(f"{value:.6g}")
