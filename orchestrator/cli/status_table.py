"""The runs of an experiment as `orch status` shows them, once or live."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from orchestrator.cli.text import ROWS, table
from orchestrator.config.credentials import described
from orchestrator.layout import ExperimentPaths
from orchestrator.records.experiment import ExperimentState
from orchestrator.records.record import Record, RunState
from orchestrator.report.forecast import Forecast, forecast
from orchestrator.report.points import points
from orchestrator.report.summary import duration, note, objective_of, progress, states
from orchestrator.report.usage import Consumption, most
from orchestrator.spec import Objective
from orchestrator.system.units import about

_WEEK_SECONDS = 6 * 86_400
_FEW_ROWS = 10
"""How many runs are listed if there are more than ROWS, below a table that counts all of them."""


def status_lines(
    experiment_state: ExperimentState, records: Sequence[Record], *, everything: bool = False
) -> list[str]:
    """Return the runs as a table, with failures grouped by signature, and the commands that show more of them.

    If there are many, they are counted by state and swept values, and only the first are listed.
    """
    objective = objective_of(experiment_state)
    order = {state: place for place, state in enumerate(RunState)}
    shown = sorted(records, key=lambda record: order[record.state])
    grouped = len(shown) > ROWS and not everything
    cut = shown[:_FEW_ROWS] if grouped else shown
    metric, at = objective.metric if objective else "METRIC", points(experiment_state, cut)
    rows = [_status_row(record, described(at[record.id]), objective) for record in cut]
    header = ["RUN", "POINT", "STATE", "TRY", "PROGRESS", metric, "TIME", "WHERE", ""]
    lines = [summary(experiment_state), *outlook(experiment_state, time.time())]
    if grouped:
        from orchestrator.report import grouping

        groups = grouping.rows(records, objective)
        lines += ["", *table(*groups), ""] if groups[1] else []
    lines += table(header, rows)
    if grouped:
        lines.append(f"... and {len(shown) - len(cut)} more: orch status {experiment_state.experiment.name} --all")
    return [*lines, *_inexact(records), *_failures(experiment_state.experiment, records)]


def _inexact(records: Sequence[Record]) -> list[str]:
    """Return why runs that have not ended would not resume exactly, if an interruption ended them now."""
    lasts = [record.last for record in records if record.state in {RunState.RUNNING, RunState.INTERRUPTED}]
    found = Counter(last.exact for last in lasts if last and last.exact not in {"", "yes"})
    return [f"not exact if resumed ({count}): {why}" for why, count in found.items()]


def summary(state: ExperimentState) -> str:
    """Return one line: the experiment, its runs by state, its last launch."""
    last = state.launches[-1] if state.launches else None
    launch = f"   launch {last.number:04d} {_when(last.header.time)} by {last.header.user}" if last else ""
    why = f": {last.header.message}" if last and last.header.message else ""
    return f"{state.experiment.name}   {states(state)}{launch}{why}"


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def outlook(state: ExperimentState, now: float) -> list[str]:
    """Return the forecast of the end, and the share of the requested resources that was used, as far as known."""
    end = forecast(state.records.values(), now)
    return [*([_end(end, now)] if end else []), *filter(None, [_taken(most(state.records.values(), now))])]


def _end(end: Forecast, now: float) -> str:
    if end.seconds is None:
        return f"end: unknown, {end.unknown}"
    at = time.localtime(now + end.seconds)
    day = "%a %H:%M" if end.seconds < _WEEK_SECONDS else "%a %Y-%m-%d %H:%M"
    return f"end: about {about(end.seconds)} left, done {time.strftime(day, at)}"


def _taken(most_taken: Consumption) -> str:
    memory, gpu = most_taken.memory_gb, most_taken.gpu_memory_gb
    parts = [
        f"memory: {_of(_gb(memory), most_taken.memory_gb_asked, 'GB')} at most" if memory else "",
        f"GPU memory: {_gb(gpu)} GB at most" if gpu else "",
        _time_taken(most_taken),
    ]
    return "; ".join(filter(None, parts))


def _of(taken: str, asked: float | None, unit: str) -> str:
    return f"{taken} of {asked:g} {unit} asked" if asked else f"{taken} {unit}"


def _gb(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _time_taken(most_taken: Consumption) -> str:
    if not most_taken.hours:
        return ""
    taken = about(most_taken.hours * 3600)
    asked = most_taken.hours_asked
    return f"time: {taken} of {about(asked * 3600)} asked at most" if asked else f"time: {taken} at most"


def _status_row(record: Record, point: str, objective: Objective | None) -> list[str]:
    number = str(record.last.number) if record.last else ""
    return [
        record.id[:8],
        point,
        record.state.value,
        number,
        progress(record),
        _metric(record, objective),
        duration(record),
        _where(record),
        note(record),
    ]


def _where(record: Record) -> str:
    """Return the node on which a run is running, and the GPUs that the workstation's supervisor gave it."""
    if record.state is not RunState.RUNNING:
        return ""
    claim = record.last.claim if record.last else None
    return f"{record.node} GPU {','.join(claim.devices)}" if claim and claim.devices else record.node


def _metric(record: Record, objective: Objective | None) -> str:
    """Return the objective's best value; without an objective, the last value of a loss, or of the first metric."""
    if objective:
        value = record.best_value(objective.metric)
        return "" if value is None else f"{value:.4g}"
    names = sorted(record.metrics, key=lambda name: ("loss" not in name, name))
    return f"{names[0]} {record.metrics[names[0]]:.4g}" if names else ""


def _failures(experiment: ExperimentPaths, records: Sequence[Record]) -> list[str]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.failure:
            groups.setdefault(record.failure.signature, []).append(record)
    lines = []
    for name, found in sorted(groups.items(), key=lambda item: -len(item[1])):
        message = found[0].failure.message.splitlines()[0] if found[0].failure and found[0].failure.message else ""
        lines.append(f"{len(found)} x {name}{': ' + message if message else ''}")
        lines.append(f"    orch logs {experiment.name} {found[0].id[:8]}")
    return ["", *lines] if lines else []
