"""A comparison as one HTML page: its style, its figures, Plotly's script and our own, all in it. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from plotly.offline import get_plotlyjs

from orchestrator.comparison import Group, Spread, averages, best
from orchestrator.page import learning, sweep
from orchestrator.page.axes import Figure
from orchestrator.page.learning import Drawn
from orchestrator.record import RunState
from orchestrator.spec import Objective

_ROWS = 500
_SWEPT_METRICS = 6
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src 'unsafe-eval' {hashes}"
"""Only these two scripts run and nothing is fetched, whatever a name holds. Plotly's WebGL plots make code of text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a page shows. `groups` are ranked; `metrics` stand in the table, the first one ranks.

    `drawn` are the points whose curves were read, `summary` the runs by state, `over` what is averaged over, and `made`
    is in seconds since the epoch.
    """

    experiment: str
    summary: str
    objective: Objective | None
    metrics: Sequence[str]
    groups: Sequence[Group]
    drawn: Sequence[Drawn]
    over: Sequence[str]
    made: float


def html(comparison: Comparison) -> str:
    """Return the page. Its size is bounded, however many runs there are."""
    scripts = [get_plotlyjs(), _own("page.js")]
    policy = _POLICY.format(hashes=" ".join(map(_hash, scripts)))
    sections = _sections(comparison)
    blocks = "".join(_section(number, section) for number, section in enumerate(sections))
    return "\n".join(
        [
            "<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">', '<link rel="icon" href="data:,">',
            f"<title>{escape(comparison.experiment)}</title>", f"<style>{_own('page.css')}</style>",
            "</head>", "<body>",
            _head(comparison), blocks, _table(comparison),
            f'<script type="application/json" id="sections">{_json(sections)}</script>',
            *(f"<script>{script}</script>" for script in scripts), "</body>", "</html>", "",
        ]
    )  # fmt: skip


def _own(name: str) -> str:
    return files("orchestrator.page").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    """Return JSON that may stand in a script element: nothing in it ends the element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False, default=str).replace("<", "\\u003c")


# --- sections ---------------------------------------------------------------------------------------------


def _sections(comparison: Comparison) -> list[dict[str, Any]]:
    """Return the sections that have figures: each has a choice of metrics, and of each metric its figures."""
    drawn, objective = comparison.drawn, comparison.objective
    curves = {name: [learning.figure(drawn, name)] for name in learning.metrics(drawn, objective)}
    swept = {name: sweep.figures(comparison.groups, name, objective) for name in comparison.metrics[:_SWEPT_METRICS]}
    found = [
        {"title": "Learning curves", "note": _curves_note(comparison), "over": "steps", "choices": _choices(curves)},
        {"title": "The sweep", "note": _sweep_note(comparison), "over": "keys", "choices": _choices(swept)},
    ]
    return [section for section in found if section["choices"]]


def _choices(figures: Mapping[str, Sequence[Figure]]) -> list[dict[str, Any]]:
    return [{"metric": metric, "figures": found} for metric, found in figures.items() if found]


def _curves_note(comparison: Comparison) -> str:
    points, drawn = len(comparison.groups), len(comparison.drawn)
    ranked = any(comparison.objective and comparison.objective.metric in g.values for g in comparison.groups)
    which = f"The {learning.COLOURED} best" if ranked else f"The first {learning.COLOURED}"
    told = [f"{which} are in colour."] if drawn > learning.COLOURED else []
    told += [f"Of {points:,} points {drawn} are drawn, spread over the ranking."] if drawn < points else []
    told += ["Bands are the standard error of the mean over runs."] if averages(comparison.groups) else []
    return " ".join(told)


def _sweep_note(comparison: Comparison) -> str:
    several = "Bars are standard errors over runs. " if averages(comparison.groups) else ""
    return (
        f"Of runs that are done. {several}Dotted lines and heatmaps are means over all points with these values. "
        "Drag along an axis of parallel coordinates to choose points."
    )


def _section(number: int, section: Mapping[str, Any]) -> str:
    names = [choice["metric"] for choice in section["choices"]]
    options = "".join(f'<option value="{i}">{escape(name)}</option>' for i, name in enumerate(names))
    chooser = f'<label>metric <select data-section="{number}">{options}</select></label>'
    log = f'<label><input type="checkbox" data-log="{number}"> logarithmic</label>'
    note = f"<p>{escape(section['note'])}</p>" if section["note"] else ""
    tools = f'<div class="tools">{chooser}{log if section["over"] == "steps" else ""}</div>'
    plots = f'<div class="plots" id="plots-{number}"></div>'
    return f"<section><h2>{escape(section['title'])}</h2>{note}{tools}{plots}</section>"


# --- text -------------------------------------------------------------------------------------------------


def _head(comparison: Comparison) -> str:
    objective, first = comparison.objective, best(comparison.groups, comparison.objective)
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(comparison.made))
    which = {"max": "largest", "min": "smallest"}
    ranked = f"ranked by {objective.metric}, the {which[objective.mode]} first" if objective else "not ranked"
    lines = [f"<h1>{escape(comparison.experiment)}</h1>"]
    lines += [f"<p>{escape(comparison.summary)} &middot; {escape(ranked)} &middot; {made}</p>"]
    if first and objective:
        keys = "".join(f"<dt>{escape(key)}</dt><dd>{escape(_text(value))}</dd>" for key, value in first.point.items())
        reached = first.values[objective.metric]
        runs = f"{reached.count} runs" if len(first.runs) > 1 else f"run {first.runs[0].id[:8]}"
        value = f"{escape(_text(reached.mean))}{_error(reached.error)}"
        lines += [f'<div class="winner"><b>{value}</b><span>best, {runs}</span><dl>{keys}</dl></div>']
    return f"<header>{''.join(lines)}</header>"


def _table(comparison: Comparison) -> str:
    keys = list(dict.fromkeys(key for group in comparison.groups for key in group.point))
    several, first = averages(comparison.groups), best(comparison.groups, comparison.objective)
    shown = comparison.groups[:_ROWS]
    rows = "".join(
        _row(number, group, keys, comparison.metrics, several=several, is_best=group is first)
        for number, group in enumerate(shown, 1)
    )
    more = len(comparison.groups) - len(shown)
    command = f"orch compare {comparison.experiment} --csv"
    note = f"<p>... and {more:,} more: <code>{escape(command)}</code></p>" if more else ""
    over = f"<p>Means and standard errors over {escape(', '.join(comparison.over))}.</p>" if several else ""
    return (
        f'<section><h2>{"Points" if several else "Runs"}</h2>{over}<div class="scroll"><table><thead><tr>'
        f"{_heads(comparison, keys, several=several)}</tr></thead><tbody>{rows}</tbody></table></div>{note}</section>"
    )


def _heads(comparison: Comparison, keys: Sequence[str], *, several: bool) -> str:
    """Return the table's heads: buttons that sort; those of numbers stand to the right, as these do."""
    numeric = {key for key in keys if any(_is_number(group.point.get(key)) for group in comparison.groups)}
    heads = [("#", True), *((key, key in numeric) for key in keys), *((name, True) for name in comparison.metrics)]
    heads += [("done", True), ("runs", False)] if several else [("run", False)]
    return "".join(
        f'<th{" class=number" if right else ""}><button type="button">{escape(name)}</button></th>'
        for name, right in [*heads, ("state", False)]
    )


def _row(
    number: int, group: Group, keys: Iterable[str], metrics: Iterable[str], *, several: bool, is_best: bool
) -> str:  # fmt: skip
    cells = [_cell(number, "★" if is_best else str(number)), *(_value_cell(group.point.get(key)) for key in keys)]
    cells += [_mean_cell(group.values.get(name)) for name in metrics]
    cells += [_cell(group.done, f"{group.done} of {len(group.runs)}")] if several else []
    ids = " ".join(record.id[:8] for record in group.runs[:5]) + (" …" if len(group.runs) > 5 else "")
    states = ", ".join(
        f"{count} {state.value}" if len(group.runs) > 1 else state.value for state, count in group.states.items()
    )
    bad = "" if group.states.keys() <= {RunState.DONE} else " class=bad"
    return f"<tr{' class=first' if is_best else ''}>{''.join(cells)}<td>{ids}</td><td{bad}>{states}</td></tr>"


def _mean_cell(value: Spread | None) -> str:
    return _cell(value.mean, f"{_text(value.mean)}{_error(value.error)}") if value else "<td></td>"


def _value_cell(value: Any) -> str:
    return _cell(value if _is_number(value) else None, escape(_text(value)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: float | None, inner: str) -> str:
    """Return a cell; numbers say by what they are sorted."""
    if value is None:
        return f"<td>{inner}</td>"
    order = f' data-order="{float(value)!r}"' if math.isfinite(value) else ""
    return f'<td class="number"{order}>{inner}</td>'


def _error(error: float | None) -> str:
    return f" <small>± {error:.2g}</small>" if error is not None else ""


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


__all__ = ["Comparison", "Figure", "html"]
