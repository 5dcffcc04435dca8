"""The page of a comparison, with the curves that it shows read from the runs."""

from __future__ import annotations

import time

from orchestrator.records.experiment import ExperimentState
from orchestrator.report.comparison import Comparison
from orchestrator.report.curves import curves
from orchestrator.report.html.axes import spread
from orchestrator.report.html.document import html
from orchestrator.report.html.learning import BEHIND, COLOURED, RUNS, Drawn
from orchestrator.report.summary import states


def page(state: ExperimentState, made: Comparison) -> str:
    """Return a comparison as a page; reads the curves of the best groups, and of some of the others."""
    return html(made, name=state.experiment.name, summary=states(state), drawn=_drawn(state, made), made=time.time())


def _drawn(state: ExperimentState, made: Comparison) -> list[Drawn]:
    begun = [group for group in made.groups if any(record.last for record in group.records)]
    chosen = spread(begun, COLOURED + BEHIND, first=COLOURED)
    return [(group.point, [curves(state.experiment, record) for record in group.records[:RUNS]]) for group in chosen]
