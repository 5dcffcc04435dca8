"""What is compared: chosen runs at their points, ranked; as far as it has to be, their configs are read."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from orchestrator.errors import RequestError, nearest
from orchestrator.records.experiment import ExperimentState
from orchestrator.records.record import Record
from orchestrator.report.comparison import SEEDS, Comparison, compared
from orchestrator.report.points import complete, points
from orchestrator.spec import Objective


def ranked(
    state: ExperimentState,
    records: Sequence[Record],
    objective: Objective | None,
    metrics: Sequence[str],
    *,
    over: Collection[str] = SEEDS,
) -> Comparison:
    """Rank runs. `metrics`: those to show beside the objective's; none: all. `over`: the keys to average over.

    Raises RequestError for a key that no point has.
    """
    found = points(state, records)
    keys = list(dict.fromkeys(key for point in found.values() for key in point))
    for key in over:
        if key not in keys and key not in SEEDS:
            raise RequestError(
                f"--over {key}: no point has it{nearest(key, keys)}",
                why=f"points differ in {', '.join(keys) or 'nothing'}",
                fix="--over with one of them",
            )
    at = {record.id: complete(state, record, found[record.id], keys) for record in records}
    target = [objective.metric] if objective else []
    shown = dict.fromkeys([*target, *(metrics or sorted({name for record in records for name in record.metrics}))])
    return compared(records, at, keys, objective=objective, metrics=list(shown), over=over)
