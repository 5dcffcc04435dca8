"""A comparison as rows of columns: for a table, a spreadsheet, and as JSON. Pure but for the clock."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from orchestrator.records.record import Record, RunState
from orchestrator.report.comparison import Comparison, Group
from orchestrator.report.summary import duration


def table(made: Comparison, *, most: int | None = None) -> tuple[list[str], list[list[Any]]]:
    """Return header and rows of ranked runs, or of groups over seeds: `runs` are then those that count, of how many.

    The last column marks the best. `most`: the largest number of rows.
    """
    rows = []
    for group in made.groups[:most]:
        values = [made.estimate(group, metric) for metric in made.metrics]
        rows.append(
            [
                _runs_of(group) if made.over else group.records[0].id[:8],
                *(group.point[key] for key in made.keys),
                *(value if made.over else value and value.mean for value in values),
                _states_of(group) if made.over else _ended(group.records[0]),
                "" if made.over else duration(group.records[0]),
                "",
            ]
        )
    if made.best:
        rows[0][-1] = "best"
    return ["runs" if made.over else "run", *made.keys, *made.metrics, "state", "time", ""], rows


def as_json(made: Comparison) -> list[dict[str, object]]:
    """Return the same as JSON: of a group the mean, the standard error and the number of runs of each metric."""
    header, rows = table(made)
    if not made.over:
        return [dict(zip(header[:-1], row[:-1], strict=True)) for row in rows]
    return [
        {
            "runs": [record.id for record in group.records],
            **group.point,
            **{metric: asdict(found) if (found := made.estimate(group, metric)) else None for metric in made.metrics},
            "states": dict(Counter(record.state.value for record in group.records)),
        }
        for group in made.groups
    ]


def as_csv(made: Comparison) -> list[list[object]]:
    """Return the same for a spreadsheet: a mean and its standard error are two columns, numbers in full."""
    header, rows = table(made)
    first = 1 + len(made.keys)
    last = first + (len(made.metrics) if made.over else 0)
    twice = [name for metric in header[first:last] for name in (metric, f"{metric} ±")]
    lines: list[list[object]] = [[*header[:first], *twice, *header[last:-1]]]
    for row in rows:
        numbers = [(value.mean, value.error) if value else (None, None) for value in row[first:last]]
        lines.append([*row[:first], *(number for pair in numbers for number in pair), *row[last:-1]])
    return lines


def _runs_of(group: Group) -> str:
    done, all_of_them = len(group.done), len(group.records)
    return str(done) if done == all_of_them else f"{done} of {all_of_them}"


def _ended(record: Record) -> str:
    return "pruned" if record.pruned else record.state.value


def _states_of(group: Group) -> str:
    counts = Counter(record.state for record in group.records)
    return ", ".join(f"{counts[state]} {state.value}" for state in RunState if counts[state])
