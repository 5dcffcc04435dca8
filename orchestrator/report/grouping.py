"""Many runs in few lines: how many of each state at each value of what was swept. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any

from orchestrator.config.credentials import is_credential
from orchestrator.records.record import Record, RunState
from orchestrator.report.comparison import SEEDS
from orchestrator.report.points import is_number
from orchestrator.spec import Objective

_VALUES = 12
"""A key of more values than that is shown in ranges if they are numbers, else the most frequent of them."""

_RANGES = 6
_KEYS = 6

Row = tuple[str, Sequence[Record]]


def rows(records: Sequence[Record], objective: Objective | None) -> tuple[list[str], list[list[str]]]:
    """Return header and rows: for each swept key, and each of its values or ranges of them, the runs by state."""
    found = Counter(record.state for record in records)
    states = [state for state in RunState if found[state]]
    header = ["KEY", "VALUE", "RUNS", *(state.value.upper() for state in states)]
    header += [f"BEST {objective.metric}"] if objective else []
    lines = []
    for key in _keys(records):
        for number, (value, chosen) in enumerate(_kinds(records, key)):
            counts = Counter([record.state for record in chosen])
            of_each = [str(counts[state] or "") for state in states]
            best = [_best(chosen, objective)] if objective else []
            lines.append(["" if number else key, value, str(len(chosen)), *of_each, *best])
    return header, lines


def _keys(records: Sequence[Record]) -> list[str]:
    """Return the swept keys; a seed only tells repetitions apart, and a credential is not for showing."""
    keys: dict[str, object] = {}
    for record in records:
        keys.update(record.point)
    shown = [key for key, value in keys.items() if not is_credential(key, value)]
    return [key for key in shown if key not in SEEDS or len(shown) == 1][:_KEYS]


def _kinds(records: Sequence[Record], key: str) -> list[Row]:
    """Return the runs of each value of a key, or of each range of its numbers; of many names the most frequent.

    None where all runs have the same value.
    """
    values: dict[str, tuple[Any, list[Record]]] = {}
    for record in records:
        if key in (point := record.point):
            value = point[key]
            values.setdefault(repr(value), (value, []))[1].append(record)
    if len(values) < 2:
        return []
    if all(is_number(value) for value, _ in values.values()):
        ordered = sorted(values.values(), key=_first)
        return _ranges(ordered) if len(ordered) > _VALUES else [(_text(value), found) for value, found in ordered]
    ranked: list[tuple[str, Sequence[Record]]] = [(_text(value), found) for value, found in values.values()]
    if len(ranked) <= _VALUES:
        return ranked
    ranked.sort(key=lambda row: -len(row[1]))
    rest = [record for _, found in ranked[_RANGES:] for record in found]
    return [*ranked[:_RANGES], (f"{len(ranked) - _RANGES} others", rest)]


_first = itemgetter(0)


def _ranges(ordered: Sequence[tuple[float, list[Record]]]) -> list[Row]:
    """Return ranges of about as many values each."""
    cuts = [len(ordered) * number // _RANGES for number in range(_RANGES + 1)]
    parts = [ordered[low:high] for low, high in pairwise(cuts)]
    return [
        (f"{part[0][0]:.4g} to {part[-1][0]:.4g}", [record for _, found in part for record in found]) for part in parts
    ]


def _best(records: Sequence[Record], objective: Objective) -> str:
    values = [value for record in records if (value := record.best_value(objective.metric)) is not None]
    known = [value for value in values if value == value]  # noqa: PLR0124 - NaN differs from itself
    if not known:
        return ""
    return f"{max(known) if objective.mode == 'max' else min(known):.4g}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
