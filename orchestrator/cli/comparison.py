"""What `orch compare` compares: chosen runs at their points, and the page of it."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from orchestrator.cli import render
from orchestrator.cli.points import complete, points
from orchestrator.comparison import SEEDS, Comparison, compared
from orchestrator.errors import RequestError, nearest
from orchestrator.ledger import Ledger
from orchestrator.record import Record
from orchestrator.spec import Objective

if TYPE_CHECKING:
    from orchestrator.page import Drawn


def compare(
    book: Ledger, records: Sequence[Record], objective: Objective | None, metrics: Sequence[str], *,
    over: Collection[str] = SEEDS,
) -> Comparison:  # fmt: skip
    """Rank runs. `metrics`: those to show beside the objective's; none: all. `over`: the keys to average over.

    Raises RequestError for a key that no point has.
    """
    found = points(book, records)
    keys = list(dict.fromkeys(key for point in found.values() for key in point))
    for key in over:
        if key not in keys and key not in SEEDS:
            raise RequestError(
                f"--over {key}: no point has it{nearest(key, keys)}",
                why=f"points differ in {', '.join(keys) or 'nothing'}", fix="--over with one of them",
            )  # fmt: skip
    at = {record.id: complete(book, record, found[record.id], keys) for record in records}
    target = [objective.metric] if objective else []
    shown = dict.fromkeys([*target, *(metrics or sorted({name for record in records for name in record.metrics}))])
    return compared(records, at, keys, objective=objective, metrics=list(shown), over=over)


def page(book: Ledger, made: Comparison) -> str:
    """Return a comparison as a page; reads the curves of the best groups, and of some of the others."""
    from orchestrator.page import html

    return html(
        made, name=book.experiment.name, summary=render.states(book), drawn=_drawn(book, made), made=time.time()
    )


def _drawn(book: Ledger, made: Comparison) -> list[Drawn]:
    from orchestrator.curves import curves
    from orchestrator.page import BEHIND, COLOURED, RUNS, spread

    begun = [group for group in made.groups if any(record.last for record in group.records)]
    chosen = spread(begun, COLOURED + BEHIND, first=COLOURED)
    return [(group.point, [curves(book.experiment, record) for record in group.records[:RUNS]]) for group in chosen]
