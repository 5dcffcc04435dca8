"""`orch compare`: rank the runs of an experiment."""

from __future__ import annotations

import io
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from orchestrator.cli.arguments import add_hidden, add_json, add_selection, project_of
from orchestrator.cli.selection import select, shown
from orchestrator.cli.text import ROWS, harmless, print_json, print_lines, say, table
from orchestrator.errors import RequestError, nearest
from orchestrator.records.experiment import ExperimentState
from orchestrator.records.record import Record
from orchestrator.report import columns
from orchestrator.report.comparison import SEEDS, Comparison
from orchestrator.report.ranking import ranked
from orchestrator.report.summary import objective_of
from orchestrator.spec import Objective
from orchestrator.system.extras import require
from orchestrator.system.files import replace_text


def add_arguments(parser: ArgumentParser) -> None:
    add_selection(parser)
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="rank by this metric (default: the objective), and show no others; may be repeated",
    )
    each = parser.add_mutually_exclusive_group()
    each.add_argument("--each", action="store_true", help="a row for every run, even if only seeds differ")
    each.add_argument(
        "--over", action="append", metavar="KEY", help="average over this swept key (default: seed); may be repeated"
    )
    parser.add_argument("--all", action="store_true", help="every row, however many")
    parser.add_argument("--html", metavar="FILE", help="write a self-contained page with curves and plots")
    add_hidden(parser)
    add_json(parser)
    parser.add_argument("--csv", action="store_true", help="as CSV")


def handle(arguments: Namespace) -> int:
    project = project_of(arguments)
    _, state, records = select(project, arguments.words)
    records = shown(state, records, arguments)
    metrics = [name for text in arguments.metric for name in text.split(",")]
    objective = _objective(metrics[0] if metrics else None, state, records)
    over = () if arguments.each else arguments.over or SEEDS
    made = ranked(state, records, objective, metrics, over=over)
    if arguments.html:
        return _write_page(state, made, Path(arguments.html))
    if arguments.json:
        print_json(columns.as_json(made))
    elif arguments.csv:
        import csv

        written = io.StringIO(newline="")
        csv.writer(written).writerows(columns.as_csv(made))
        sys.stdout.write(harmless(written.getvalue()) if sys.stdout.isatty() else written.getvalue())
    else:
        header, rows = columns.table(made, most=None if arguments.all else ROWS)
        print_lines(table(header, [[_cell(value) for value in row] for row in rows]))
        if len(rows) < len(made.groups):
            say(f"... and {len(made.groups) - len(rows)} more: --all")
    return 0


def _cell(value: object) -> str:
    """Return a table's cell: short numbers, and an empty cell for None."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _write_page(state: ExperimentState, made: Comparison, path: Path) -> int:
    require("plotly", "--html")
    from orchestrator.report.html.page import page

    text = page(state, made)
    try:
        replace_text(path, text)
    except OSError as error:
        raise RequestError(
            f"cannot write {path}", why=error.strerror or str(error), fix="--html with another file"
        ) from error
    print_lines([str(path)])
    return 0


def _objective(metric: str | None, state: ExperimentState, records: Sequence[Record]) -> Objective | None:
    objective = objective_of(state)
    if metric is None:
        return objective
    known = sorted({name for record in records for name in record.metrics})
    if metric not in known:
        raise RequestError(
            f"no chosen run has logged {metric!r}{nearest(metric, known)}",
            why=f"logged are {', '.join(known) or 'none'}",
            fix="--metric with one of them",
        )
    mode = objective.mode if objective and objective.metric == metric else "min" if "loss" in metric else "max"
    return Objective(metric=metric, mode=mode)
