"""A comparison as one HTML page, complete in itself: the table, learning curves, and the plots of the sweep.

It needs no network and no server: the plotting library (plotly) is in it, some 5 MB. However many runs there are,
the page holds the best of them only: so many rows and curves as a person can look at.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from orchestrator.api import told
from orchestrator.cli import render
from orchestrator.cli.comparison import Comparison, Estimate, Group
from orchestrator.ledger import Ledger
from orchestrator.record import Record
from orchestrator.tracking import Metrics, read

_ROWS, _CURVES, _METRICS, _POINTS = 1_000, 12, 6, 400
_COLOURS = (
    "#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0",
    "#0f766e", "#b45309",
)  # fmt: skip
_NOT_SHOWN = frozenset({"epoch"})  # Lightning logs it with everything
_CONFIG = {"displaylogo": False, "displayModeBar": False, "responsive": True}
_STYLE = """
:root { color-scheme: light dark; --text: #1c2430; --soft: #66707f; --line: #e3e7ec; --back: #fff; --best: #e8f5ec; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ee; --soft: #9aa4b2; --line: #303844; --back: #14181f; --best: #1b3326; }
}
body {
  margin: 2rem auto; max-width: 76rem; padding: 0 1.5rem; color: var(--text); background: var(--back);
  font: 15px/1.5 system-ui, sans-serif;
}
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem; }
p { color: var(--soft); margin: .3rem 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(27rem, 1fr)); gap: 1rem; }
.plots > div { min-width: 0; overflow: hidden; }
.plots > .wide { grid-column: 1 / -1; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--soft); font-weight: 600; cursor: pointer; }
tr.best { background: var(--best); }
"""
_SORT = """
const value = (row, at) => {
  const cell = row.cells[at], number = parseFloat(cell.dataset.value);
  return isNaN(number) ? cell.textContent : number;
};
const compare = (x, y) => typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === "number" ? -1 : 1;
for (const head of document.querySelectorAll("th")) head.onclick = () => {
  const body = head.closest("table").tBodies[0], at = head.cellIndex, sign = head.dataset.up === "1" ? -1 : 1;
  head.dataset.up = sign === 1 ? "1" : "0";
  const sorted = [...body.rows].sort((a, b) => sign * compare(value(a, at), value(b, at)));
  sorted.forEach(row => body.append(row));
};
window.dispatchEvent(new Event("resize"));  // the first plots were drawn before the others had their place
"""


def page(book: Ledger, made: Comparison) -> str:
    """Return the page. Everything that users name is escaped."""
    name = html.escape(book.experiment.name)
    charts = [*_curves(book, made), *_sweep(made)]
    plots = "".join(f'<div class="{css}">{_chart(figure, number)}</div>' for number, (css, figure) in enumerate(charts))
    summary = html.escape(render.states(book))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script></head><body>"
        f"<h1>{name}</h1><p>{summary}</p>{_best(made)}"
        f'<h2>Plots</h2><div class="plots">{plots}</div><h2>Runs</h2>{_table(made)}'
        f"<script>{_SORT}</script></body></html>\n"
    )


def _best(made: Comparison) -> str:
    objective = made.objective
    first = made.groups[0] if made.groups else None
    found = made.estimate(first, objective.metric) if first and objective else None
    if first is None or found is None or objective is None:
        return ""
    at = told(first.point)
    return f"<p>Best {html.escape(objective.metric)}: <b>{html.escape(str(found))}</b> at {html.escape(at)}</p>"


def _table(made: Comparison) -> str:
    header, rows = render.comparison_table(made)
    heads = "".join(f"<th>{html.escape(title)}</th>" for title in header)
    body = "".join(map(_row, rows[:_ROWS]))
    more = f"<p>and {len(rows) - _ROWS} more</p>" if len(rows) > _ROWS else ""
    return f'<div class="table"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>{more}</div>'


def _row(row: Sequence[Any]) -> str:
    mark = ' class="best"' if row[-1] else ""
    return f"<tr{mark}>{''.join(map(_cell, row))}</tr>"


def _cell(value: Any) -> str:
    number = value.mean if isinstance(value, Estimate) else value
    sortable = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
    data = f' data-value="{number!r}"' if sortable else ""
    return f"<td{data}>{html.escape(render.cell(value))}</td>"


def _chart(figure: go.Figure, number: int) -> str:
    figure.update_layout(
        template="plotly_white", paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", colorway=_COLOURS,
        font={"color": "#7c8797", "size": 12}, margin={"l": 60, "r": 20, "t": 45, "b": 45}, height=400,
        legend={"font": {"size": 11}, "orientation": "h", "y": -0.25},
    )  # fmt: skip
    figure.update_xaxes(gridcolor="rgba(128,128,128,.18)", zerolinecolor="rgba(128,128,128,.3)")
    figure.update_yaxes(gridcolor="rgba(128,128,128,.18)", zerolinecolor="rgba(128,128,128,.3)")
    text: str = figure.to_html(full_html=False, include_plotlyjs=False, config=_CONFIG, div_id=f"plot-{number}")
    return text


# --- learning curves --------------------------------------------------------------------------------------


def _curves(book: Ledger, made: Comparison) -> Iterator[tuple[str, go.Figure]]:
    """Yield a plot of each metric that was logged at several steps, for the best groups."""
    shown = made.groups[:_CURVES]
    logged = [[_logged(book, record) for record in group.records] for group in shown]
    names = dict.fromkeys([*made.metrics, *(name for runs in logged for run in runs for name in sorted(run))])
    several = [
        name
        for name in names
        if name not in _NOT_SHOWN and any(len(run.get(name, ())) > 1 for runs in logged for run in runs)
    ]
    for name in several[:_METRICS]:
        figure = go.Figure(layout={"title": _plain(name), "xaxis": {"title": "step"}})
        for place, (group, runs) in enumerate(zip(shown, logged, strict=True)):
            curves = [run[name] for run in runs if run.get(name)]
            if curves:
                _draw(figure, curves, _plain(told(group.point)), _COLOURS[place % len(_COLOURS)])
        yield "", figure


def _logged(book: Ledger, record: Record) -> dict[str, dict[int, float]]:
    """Return what a run has logged, by metric and step; of a step that was repeated the first value counts."""
    found: dict[str, dict[int, float]] = {}
    run = book.experiment.run(record.id)
    for attempt in record.history:
        for line, _ in read(run.attempt(attempt.number).metrics):
            if isinstance(line, Metrics):
                for name, value in line.values.items():
                    if math.isfinite(value):
                        found.setdefault(name, {}).setdefault(line.step, value)
    return found


def _draw(figure: go.Figure, curves: Sequence[Mapping[int, float]], name: str, colour: str) -> None:
    """Draw one curve, or the mean of several with a band of its standard error."""
    steps = sorted({step for curve in curves for step in curve})
    at = {step: Estimate.of([curve[step] for curve in curves if step in curve]) for step in steps}
    kept = _thinned(steps)
    if len(curves) > 1:
        errors = [at[step].error or 0.0 for step in kept]
        low = [at[step].mean - error for step, error in zip(kept, errors, strict=True)]
        high = [at[step].mean + error for step, error in zip(kept, errors, strict=True)]
        figure.add_scatter(
            x=[*kept, *reversed(kept)], y=[*high, *reversed(low)], fill="toself", fillcolor=colour, opacity=0.18,
            line={"width": 0}, hoverinfo="skip", showlegend=False, legendgroup=name,
        )  # fmt: skip
    figure.add_scatter(
        x=kept, y=[at[step].mean for step in kept], name=name, line={"color": colour, "width": 1.8},
        mode="lines" if len(kept) > 1 else "markers", legendgroup=name,
    )  # fmt: skip


def _thinned(steps: Sequence[int]) -> list[int]:
    """Return at most so many steps as a screen is wide, the first and the last among them."""
    if len(steps) <= _POINTS:
        return list(steps)
    return [steps[round(place * (len(steps) - 1) / (_POINTS - 1))] for place in range(_POINTS)]


# --- the sweep --------------------------------------------------------------------------------------------


def _sweep(made: Comparison) -> Iterator[tuple[str, go.Figure]]:
    """Yield how the objective depends on what was swept."""
    objective = made.objective
    if objective is None:
        return
    known = [(group, found) for group in made.groups[:_ROWS] if (found := made.estimate(group, objective.metric))]
    keys = [key for key in made.keys if len({repr(group.point[key]) for group, _ in known}) > 1]
    if len(known) < 2 or not keys:
        return
    if len(keys) > 1:
        yield "wide", _parallel(made, known, keys)
    for key in keys[:_METRICS]:
        yield "", _axis(key, objective.metric, known)
    if len(keys) == 2 and (grid := _heatmap(keys, objective.metric, known)) is not None:
        yield "", grid


def _parallel(made: Comparison, known: Sequence[tuple[Group, Estimate]], keys: Sequence[str]) -> go.Figure:
    values = [found.mean for _, found in known]
    axes = [_dimension(key, [group.point[key] for group, _ in known]) for key in keys]
    metric = made.objective.metric if made.objective else ""
    dimensions = [*axes, {"label": _plain(metric), "values": values}]
    line = {"color": values, "colorscale": "Viridis", "showscale": True}
    return go.Figure(go.Parcoords(line=line, dimensions=dimensions), layout={"margin": {"t": 60}})


def _dimension(key: str, values: Sequence[Any]) -> dict[str, Any]:
    if _numeric(values):
        spread = min(values) > 0 and max(values) / min(values) >= 20
        numbers = [math.log10(value) for value in values] if spread else list(values)
        ticks = sorted({*values}) if len({*values}) <= 12 else []
        shown = {"tickvals": [math.log10(v) if spread else v for v in ticks], "ticktext": [f"{v:g}" for v in ticks]}
        return {"label": _plain(key), "values": numbers, **(shown if ticks else {})}
    names = list(dict.fromkeys(map(str, values)))
    return {
        "label": _plain(key), "values": [names.index(str(value)) for value in values],
        "tickvals": list(range(len(names))), "ticktext": list(map(_plain, names)),
    }  # fmt: skip


def _axis(key: str, metric: str, known: Sequence[tuple[Group, Estimate]]) -> go.Figure:
    """Plot a metric against one key; where another key differs, its runs are scattered there, too."""
    values = [group.point[key] for group, _ in known]
    numeric = _numeric(values)
    kind = "log" if numeric and min(values) > 0 and max(values) / min(values) >= 20 else "-" if numeric else "category"
    figure = go.Figure(
        layout={"xaxis": {"title": _plain(key), "type": kind}, "yaxis": {"title": _plain(metric)}, "showlegend": False}
    )
    figure.add_scatter(
        x=values if numeric else [_plain(str(value)) for value in values], y=[found.mean for _, found in known],
        error_y={"array": [found.error or 0.0 for _, found in known], "visible": any(f.error for _, f in known)},
        mode="markers", marker={"size": 8, "opacity": 0.8, "color": _COLOURS[0]},
        text=[_plain(told(group.point)) for group, _ in known],
        hovertemplate="%{text}<br>%{y:.4g}<extra></extra>",
    )  # fmt: skip
    return figure


def _heatmap(keys: Sequence[str], metric: str, known: Sequence[tuple[Group, Estimate]]) -> go.Figure | None:
    """Return a grid of two keys, where each pair of values has one group."""
    rows, columns = ([*dict.fromkeys(map(str, _ordered([group.point[key] for group, _ in known])))] for key in keys)
    at = {(str(group.point[keys[0]]), str(group.point[keys[1]])): found.mean for group, found in known}
    if len(at) < len(known) or len(rows) * len(columns) > 2 * len(at):
        return None
    cells = [[at.get((row, column)) for column in columns] for row in rows]
    heat = go.Heatmap(
        z=cells, x=list(map(_plain, columns)), y=list(map(_plain, rows)), colorscale="Viridis",
        texttemplate="%{z:.4g}" if len(at) <= 100 else None,
    )  # fmt: skip
    axes = {
        "xaxis": {"title": _plain(keys[1]), "type": "category"},
        "yaxis": {"title": _plain(keys[0]), "type": "category"},
    }
    return go.Figure(heat, layout={"title": _plain(metric), **axes})


def _ordered(values: Sequence[Any]) -> list[Any]:
    return sorted(values) if _numeric(values) else list(values)


def _numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _plain(text: str) -> str:
    """Return a text of a user's for a plot: there is markup in plotly's texts, and they are not endless."""
    return html.escape(text if len(text) <= 60 else f"{text[:59]}…")
