"""`orch compare`: runs or points ranked, as a table, as JSON or CSV, and as a page of its own."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cli.points import complete, points
from orchestrator.cli.render import ROWS, duration, objective_of, states, table
from orchestrator.comparison import SEEDS, Group, averages, best, grouped
from orchestrator.errors import RequestError, StateError, nearest
from orchestrator.ledger import Ledger
from orchestrator.record import Record
from orchestrator.spec import Objective, Point, RunId

if TYPE_CHECKING:
    from orchestrator.page.learning import Drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Chosen runs, what they are ranked by, the metrics to show of them, and their points, the best first.

    `at` holds each run's values of `keys`; `over` is what is averaged over.
    """

    book: Ledger
    records: Sequence[Record]
    objective: Objective | None
    metrics: Sequence[str]
    keys: Sequence[str]
    at: Mapping[RunId, Point]
    over: Collection[str]
    groups: Sequence[Group]


def compared(
    book: Ledger, records: Sequence[Record], *, metrics: Sequence[str] = (), over: Collection[str] = SEEDS
) -> Compared:  # fmt: skip
    """Compare runs by the first of some metrics, else by the objective; without metrics, all are shown.

    Raises RequestError for a metric that no run has logged, or a key that no point has.
    """
    known = sorted({name for record in records for name in record.metrics})
    objective = _objective(book, metrics, known)
    target = [objective.metric] if objective else []
    shown = list(dict.fromkeys(metrics)) or [*target, *(name for name in known if name not in target)]
    found = points(book, records)
    keys = list(dict.fromkeys(key for point in found.values() for key in point))
    _check_over(set(over) - SEEDS, keys)
    at = {record.id: complete(book, record, found[record.id], keys) for record in records}
    groups = grouped(records, at, over=over, objective=objective, metrics=shown)
    return Compared(
        book=book, records=records, objective=objective, metrics=shown, keys=keys, at=at, over=over, groups=groups
    )


def _objective(book: Ledger, metrics: Sequence[str], known: Sequence[str]) -> Objective | None:
    objective = objective_of(book)
    for metric in metrics:
        if metric not in known:
            raise RequestError(
                f"no chosen run has logged {metric!r}{nearest(metric, known)}",
                why=f"logged are {', '.join(known) or 'none'}", fix="--metric with one of them",
            )  # fmt: skip
    if not metrics or (objective and objective.metric == metrics[0]):
        return objective
    return Objective(metric=metrics[0], mode="min" if "loss" in metrics[0] else "max")


def _check_over(wanted: Collection[str], keys: Sequence[str]) -> None:
    for key in wanted:
        if key not in keys:
            raise RequestError(
                f"--over {key}: no point has it{nearest(key, keys)}", why=f"points differ in {', '.join(keys)}",
                fix="--over with one of them",
            )  # fmt: skip


# --- rows -------------------------------------------------------------------------------------------------


def rows(found: Compared) -> tuple[list[str], list[list[Any]]]:
    """Return header and rows: of points where there is something to average, else of runs."""
    return _of_points(found) if averages(found.groups) else _of_runs(found)


def _of_runs(found: Compared) -> tuple[list[str], list[list[Any]]]:
    """Return a row of each run; those that are not done are in it with what they have reached so far."""
    ranked = sorted(found.records, key=lambda record: _rank(record, found.objective))
    top = best(found.groups, found.objective) if len(ranked) > 1 else None
    lines = [
        [
            record.id[:8], *(found.at[record.id][key] for key in found.keys),
            *(_value(record, name, found.objective) for name in found.metrics),
            record.state.value, duration(record), "best" if top and record in top.runs else "",
        ]
        for record in ranked
    ]  # fmt: skip
    return ["run", *found.keys, *found.metrics, "state", "time", "best"], lines


def _of_points(found: Compared) -> tuple[list[str], list[list[Any]]]:
    """Return a row of each point: the mean of its runs that are done, its standard error, and how many these are."""
    keys = [key for key in found.keys if key not in found.over]
    top = best(found.groups, found.objective) if len(found.groups) > 1 else None
    columns = [column for name in found.metrics for column in (name, f"{name} ±")]
    lines = [
        [
            *(group.point.get(key) for key in keys), *_means(group, found.metrics), group.done, len(group.runs),
            ", ".join(f"{count} {state.value}" for state, count in group.states.items()),
            min(group.runs, key=lambda record: _rank(record, found.objective)).id[:8],
            "best" if group is top else "",
        ]
        for group in found.groups
    ]  # fmt: skip
    return [*keys, *columns, "done", "runs", "state", "best run", "best"], lines


def _means(group: Group, metrics: Sequence[str]) -> list[float | None]:
    values = [group.values.get(name) for name in metrics]
    return [number for value in values for number in ((value.mean, value.error) if value else (None, None))]


def _value(record: Record, name: str, objective: Objective | None) -> float | None:
    return record.best_value(name) if objective and name == objective.metric else record.metrics.get(name)


def _rank(record: Record, objective: Objective | None) -> tuple[bool, float]:
    value = record.best_value(objective.metric) if objective else None
    if value is None or objective is None or value != value:  # noqa: PLR0124 - NaN differs from itself
        return True, 0.0
    return False, -value if objective.mode == "max" else value


def documents(found: Compared) -> list[dict[str, Any]]:
    """Return the rows for scripts and spreadsheets, numbers in full."""
    header, content = rows(found)
    return [dict(zip(header, row, strict=True)) for row in content]


def lines(found: Compared, *, everything: bool = False) -> list[str]:
    """Return the rows as a table, the first of them unless all are asked for."""
    header, content = rows(found)
    shown = content if everything else content[:ROWS]
    told = table([*header[:-1], ""], [[_cell(value) for value in row] for row in shown])
    if len(shown) < len(content):
        told.append(f"... and {len(content) - len(shown)} more: --all")
    return told


def _cell(value: Any) -> str:
    """Return a table's cell: numbers short, nothing for nothing."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- the page ---------------------------------------------------------------------------------------------


def write_page(found: Compared, file: Path) -> None:
    """Write the comparison as one HTML page. Raises StateError where the file cannot be written."""
    from orchestrator.page import Comparison, html

    page = html(
        Comparison(
            experiment=found.book.experiment.name, summary=states(found.book), objective=found.objective,
            metrics=found.metrics, groups=found.groups, drawn=_drawn(found), made=time.time(),
            over=[key for key in found.keys if key in found.over],
        )
    )  # fmt: skip
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StateError(f"cannot write {file}", why=error.strerror or str(error), fix="choose another file") from error


def _drawn(found: Compared) -> list[Drawn]:
    """Read the curves of the best points, and of others spread over the ranking."""
    from orchestrator.curves import curves
    from orchestrator.page.axes import spread
    from orchestrator.page.learning import BEHIND, COLOURED, SEEDS

    begun = [group for group in found.groups if any(record.last for record in group.runs)]
    chosen = spread(begun, COLOURED + BEHIND, first=COLOURED)
    return [(group.point, [curves(found.book.experiment, record) for record in group.runs[:SEEDS]]) for group in chosen]
