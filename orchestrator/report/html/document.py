"""A comparison as one HTML page: its style, its figures, Plotly's script and our own, all in it. Pure."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import TypedDict

from plotly.offline import get_plotlyjs

from orchestrator.records.record import RunState
from orchestrator.report.comparison import Comparison, Estimate, Group
from orchestrator.report.html import learning, sweep
from orchestrator.report.html.axes import Figure
from orchestrator.report.html.learning import Drawn
from orchestrator.report.points import is_number

_ROWS = 500
_SWEPT_METRICS = 6
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src 'unsafe-eval' {hashes}"
"""Only these two scripts run and nothing is fetched, whatever a name holds. Plotly's WebGL plots make code of text."""


def html(comparison: Comparison, *, name: str, summary: str, drawn: Sequence[Drawn], made: float) -> str:
    """Return the page of an experiment. Its size is bounded, however many runs there are.

    `summary`: its runs by state; `drawn`: the points whose curves were read; `made` is in seconds since the epoch.
    """
    scripts = [get_plotlyjs(), _own("page.js")]
    policy = _POLICY.format(hashes=" ".join(map(_hash, scripts)))
    sections = _sections(comparison, drawn)
    blocks = "".join(_section(number, section) for number, section in enumerate(sections))
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(name)}</title>",
            f"<style>{_own('page.css')}</style>",
            "</head>",
            "<body>",
            _head(comparison, name, summary, made),
            blocks,
            _table(comparison, name),
            f'<script type="application/json" id="sections">{_json(sections)}</script>',
            *(f"<script>{script}</script>" for script in scripts),
            "</body>",
            "</html>",
            "",
        ]
    )


def _own(name: str) -> str:
    return files("orchestrator.report.html").joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _json(value: object) -> str:
    """Return JSON that a script element may contain: nothing in it ends the element."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False, default=str).replace("<", "\\u003c")


# --- sections ---------------------------------------------------------------------------------------------


class Choice(TypedDict):
    """A metric that a section can show, and its figures."""

    metric: str
    figures: Sequence[Figure]


class Section(TypedDict):
    """A part of the page. `over`: what its figures are drawn over, steps or keys."""

    title: str
    note: str
    over: str
    choices: list[Choice]


def _sections(made: Comparison, drawn: Sequence[Drawn]) -> list[Section]:
    """Return the sections that have figures: each has a choice of metrics, and of each metric its figures."""
    curves = {name: [learning.figure(drawn, name)] for name in learning.metrics(drawn, made.objective)}
    swept = {name: sweep.figures(made, name) for name in made.metrics[:_SWEPT_METRICS]}
    found: list[Section] = [
        {"title": "Learning curves", "note": _curves_note(made, drawn), "over": "steps", "choices": _choices(curves)},
        {"title": "The sweep", "note": _sweep_note(made), "over": "keys", "choices": _choices(swept)},
    ]
    return [section for section in found if section["choices"]]


def _choices(figures: Mapping[str, Sequence[Figure]]) -> list[Choice]:
    return [{"metric": metric, "figures": found} for metric, found in figures.items() if found]


def _curves_note(made: Comparison, drawn: Sequence[Drawn]) -> str:
    which = f"The {learning.COLOURED} {'best' if made.best else 'first'} are in colour."
    notes = [which] if len(drawn) > learning.COLOURED else []
    if len(drawn) < len(made.groups):
        notes += [f"Of {len(made.groups):,} points {len(drawn)} are drawn, spread over the ranking."]
    notes += ["Bands are the standard error of the mean over runs."] if made.over else []
    return " ".join(notes)


def _sweep_note(made: Comparison) -> str:
    several = "Bars are standard errors over runs. " if made.over else ""
    return (
        f"{several}Dotted lines and heatmaps are means over all points with these values. "
        "Drag along an axis of parallel coordinates to choose points."
    )


def _section(number: int, section: Section) -> str:
    names = [choice["metric"] for choice in section["choices"]]
    options = "".join(f'<option value="{i}">{escape(name)}</option>' for i, name in enumerate(names))
    chooser = f'<label>metric <select data-section="{number}">{options}</select></label>'
    log = f'<label><input type="checkbox" data-log="{number}"> logarithmic</label>'
    note = f"<p>{escape(section['note'])}</p>" if section["note"] else ""
    tools = f'<div class="tools">{chooser}{log if section["over"] == "steps" else ""}</div>'
    plots = f'<div class="plots" id="plots-{number}"></div>'
    return f"<section><h2>{escape(section['title'])}</h2>{note}{tools}{plots}</section>"


# --- text -------------------------------------------------------------------------------------------------


def _head(comparison: Comparison, name: str, summary: str, made: float) -> str:
    objective, first = comparison.objective, comparison.best
    which = {"max": "largest", "min": "smallest"}
    ranked = f"ranked by {objective.metric}, the {which[objective.mode]} first" if objective else "not ranked"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(made))
    lines = [f"<h1>{escape(name)}</h1>", f"<p>{escape(summary)} &middot; {escape(ranked)} &middot; {when}</p>"]
    if first and objective:
        keys = "".join(f"<dt>{escape(key)}</dt><dd>{escape(_text(value))}</dd>" for key, value in first.point.items())
        runs = f"{len(first.done)} runs" if comparison.over else f"run {first.records[0].id[:8]}"
        value = comparison.estimate(first, objective.metric)
        lines += [f'<div class="winner"><b>{value}</b><span>best, {runs}</span><dl>{keys}</dl></div>']
    return f"<header>{''.join(lines)}</header>"


def _table(made: Comparison, name: str) -> str:
    several, first = bool(made.over), made.best
    shown = made.groups[:_ROWS]
    rows = "".join(_row(number, group, made, is_best=group is first) for number, group in enumerate(shown, 1))
    more = len(made.groups) - len(shown)
    note = f"<p>... and {more:,} more: <code>{escape(f'orch compare {name} --csv')}</code></p>" if more else ""
    over = f"<p>Means and standard errors over {escape(', '.join(made.over))}.</p>" if several else ""
    return (
        f'<section><h2>{"Points" if several else "Runs"}</h2>{over}<div class="scroll"><table><thead><tr>'
        f"{_heads(made)}</tr></thead><tbody>{rows}</tbody></table></div>{note}</section>"
    )


def _heads(made: Comparison) -> str:
    """Return the table's heads: buttons that sort; those of numbers stand to the right, as these do."""
    numeric = {key for key in made.keys if any(is_number(group.point.get(key)) for group in made.groups)}
    heads = [("#", True), *((key, key in numeric) for key in made.keys), *((name, True) for name in made.metrics)]
    heads += [("done", True), ("state", False), ("runs" if made.over else "run", False)]
    return "".join(
        f'<th{" class=number" if right else ""}><button type="button">{escape(name)}</button></th>'
        for name, right in heads
        if made.over or name != "done"
    )


def _row(number: int, group: Group, made: Comparison, *, is_best: bool) -> str:
    cells = [_cell(number, "★" if is_best else str(number)), *(_value_cell(group.point.get(key)) for key in made.keys)]
    cells += [_estimate_cell(made.estimate(group, name)) for name in made.metrics]
    cells += [_cell(len(group.done), f"{len(group.done)} of {len(group.records)}")] if made.over else []
    states = Counter(record.state for record in group.records)
    counted = ", ".join(f"{states[s]} {s.value}" if made.over else s.value for s in RunState if states[s])
    bad = "" if states.keys() <= {RunState.DONE} else " class=bad"
    ids = " ".join(record.id[:8] for record in group.records[:5]) + (" …" if len(group.records) > 5 else "")
    return f"<tr{' class=first' if is_best else ''}>{''.join(cells)}<td{bad}>{counted}</td><td>{ids}</td></tr>"


def _estimate_cell(value: Estimate | None) -> str:
    return _cell(value.mean, str(value)) if value else "<td></td>"


def _value_cell(value: object) -> str:
    return _cell(value if is_number(value) else None, escape(_text(value)))


def _cell(value: float | None, inner: str) -> str:
    """Return a cell; numbers say by what they are sorted."""
    if value is None:
        return f"<td>{inner}</td>"
    order = f' data-order="{float(value)!r}"' if math.isfinite(value) else ""
    return f'<td class="number"{order}>{inner}</td>'


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
