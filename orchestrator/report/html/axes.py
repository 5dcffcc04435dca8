"""The swept keys of points as axes: numbers on a linear or logarithmic scale, or categories. Pure."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from orchestrator.report.points import is_number
from orchestrator.spec import Point

T = TypeVar("T")

_LOGARITHMIC = 9.9
"""Positive numbers whose largest is ten times the smallest, or more, are drawn on a logarithmic scale."""

COLOURS = [[0, "#4a6fd4"], [0.5, "#2a9d8f"], [1, "#e9a820"]]
"""A scale from low to high whose colours can be distinguished on white and on black."""

Figure = dict[str, Any]
"""A figure as Plotly's JSON: `data`, `layout`, and a `name`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One key in which points differ. `values` are its distinct values, numbers in order, others as they came."""

    key: str
    kind: Literal["linear", "log", "category"]
    values: tuple[Any, ...]

    def place(self, point: Point) -> Any:
        """Return where a point lies: a number, or a category's text; None where it has no value."""
        value = point.get(self.key)
        return shown(value) if self.kind == "category" else value

    def layout(self) -> Figure:
        """Return the axis as Plotly's."""
        title = {"title": {"text": shown(self.key)}, "type": self.kind}
        if self.kind == "category":
            return {**title, "categoryorder": "array", "categoryarray": [shown(value) for value in self.values]}
        if self.kind == "log" and len(self.values) <= 12:
            return {**title, "tickvals": list(self.values), "ticktext": [shown(value) for value in self.values]}
        return title


def axes(points: Sequence[Point]) -> list[Axis]:
    """Return the axes of the keys in which points differ, those that every point has first."""
    keys = dict.fromkeys(key for point in points for key in point)
    found = [_axis(key, [point[key] for point in points if key in point]) for key in keys]
    partial = {key for key in keys if any(key not in point for point in points)}
    return sorted((axis for axis in found if len(axis.values) > 1), key=lambda axis: axis.key in partial)


def shown(value: object) -> str:
    """Return a value as text for Plotly, which reads tags and entities in it."""
    if isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
    return html.escape(text if len(text) <= 60 else f"{text[:59]}…", quote=False)


def describe(point: Point) -> str:
    """Return a point as text for Plotly."""
    return " ".join(f"{shown(key)}={shown(value)}" for key, value in point.items()) or "all runs"


def spread(items: Sequence[T], most: int, *, first: int) -> list[T]:
    """Return the `first` items, and some of the others, evenly spread: at most `most` in all."""
    if len(items) <= most:
        return list(items)
    rest, wanted = items[first:], most - first
    return [*items[:first], *(rest[(index * len(rest)) // wanted] for index in range(wanted))]


def _axis(key: str, values: Sequence[object]) -> Axis:
    distinct = {json.dumps(value, sort_keys=True, default=str): value for value in values}
    if not all(map(is_number, distinct.values())):
        return Axis(key=key, kind="category", values=tuple(distinct.values()))
    numbers = sorted({value for value in distinct.values() if is_number(value)})
    wide = numbers[0] > 0 and math.isfinite(numbers[-1]) and numbers[-1] / numbers[0] >= _LOGARITHMIC
    return Axis(key=key, kind="log" if wide else "linear", values=tuple(numbers))
