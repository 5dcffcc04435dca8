"""Records -> text and JSON. Pure but for asking whether a stream is a terminal."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import IO, Any

from orchestrator import ledger
from orchestrator.api import best_value, told
from orchestrator.cluster import Waiting
from orchestrator.layout import ExperimentPaths
from orchestrator.ledger import Ledger
from orchestrator.plan import Action, Step
from orchestrator.record import Attempt, Record, RunState
from orchestrator.spec import Objective, Resources

_CODES = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "grey": "90", "bold": "1"}
STATE_COLOURS: Mapping[RunState, str] = {
    RunState.RUNNING: "blue", RunState.QUEUED: "grey", RunState.WAITING: "grey", RunState.DONE: "green",
    RunState.FAILED: "red", RunState.INTERRUPTED: "yellow", RunState.CANCELLED: "yellow",
    RunState.UNKNOWN: "yellow",
}  # fmt: skip
ROWS = 50
"""How many runs `status` lists before it asks for --all."""


def paint(text: str, colour: str, stream: IO[str]) -> str:
    """Return text in a colour, where the stream is a terminal and NO_COLOR is not set."""
    if os.environ.get("NO_COLOR") or not stream.isatty():
        return text
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return aligned lines; columns without any content are left out."""
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    columns = [[header[i], *(row[i] for row in rows)] for i in kept]
    widths = [max(map(len, column)) for column in columns]
    aligned = ([cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in zip(*columns, strict=True))
    return ["  ".join(cells).rstrip() for cells in aligned]


def terminal_width() -> int:
    return shutil.get_terminal_size((120, 24)).columns


# --- plan -------------------------------------------------------------------------------------------------


def plan_lines(steps: Sequence[Step]) -> list[str]:
    """Return a plan as a table, and what it comes to."""
    shapes = {step.run.resources for step in steps}
    rows = [
        [
            step.action.value, step.run.id[:8], told(step.run.point),
            need(step.run.resources) if len(shapes) > 1 else "", step.reason,
        ]
        for step in steps
    ]  # fmt: skip
    found = Counter(step.action for step in steps)
    total = ", ".join(f"{found[action]} to {action.value}" for action in Action if found[action])
    each = f", each {need(*shapes)}" if len(shapes) == 1 else ""
    return [*table(["STEP", "RUN", "POINT", "RESOURCES", "REASON"], rows), "", f"{count(len(steps))}: {total}{each}"]


def count(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs} runs"


def need(resources: Resources) -> str:
    """Return resources in words: `2 nodes x (4 GPUs, 8 CPUs, 32 GB), 4 h`."""
    node = (
        [f"{resources.gpus_per_node} GPU{'s' if resources.gpus_per_node > 1 else ''}"]
        if resources.gpus_per_node
        else []
    )
    node += [f"{resources.cpus_per_node} CPU{'s' if resources.cpus_per_node > 1 else ''}"]
    node += [f"{resources.mem_gb_per_node:g} GB"] if resources.mem_gb_per_node else []
    per_node = ", ".join(node)
    nodes = f"{resources.nodes} nodes x ({per_node})" if resources.nodes > 1 else per_node
    return f"{nodes}, {resources.hours:g} h" if resources.hours else nodes


def step_json(step: Step) -> dict[str, Any]:
    return {
        "run": step.run.id, "action": step.action.value, "reason": step.reason, "point": dict(step.run.point),
        "attempt": step.attempt, "generation": step.generation, "code": step.code,
        "resources": step.run.resources.to_json(), "data": step.run.data_digest,
    }  # fmt: skip


def submitted(runs: int, waiting: Waiting) -> str:
    """Return how much of a launch was submitted, and what becomes of the rest."""
    return f"{runs - waiting.tasks} of {runs} submitted, {waiting.tasks} waiting: {waiting.reason}; {waiting.later}"


# --- status -----------------------------------------------------------------------------------------------


def summary(book: Ledger) -> str:
    """Return one line: the experiment, its runs by state, its last launch."""
    counts = Counter(record.state for record in book.records.values())
    states = ", ".join(f"{counts[state]} {state.value}" for state in RunState if counts[state])
    last = book.launches[-1] if book.launches else None
    launch = f"   launch {last.number:04d} {_when(last.header['time'])} by {last.header['user']}" if last else ""
    why = f": {last.header['message']}" if last and last.header["message"] else ""
    return f"{book.experiment.name}   {count(len(book.records))}: {states}{launch}{why}"


def status_lines(book: Ledger, records: Sequence[Record], *, everything: bool = False) -> list[str]:
    """Return the runs as a table, failures grouped by signature, and what is to be done about them."""
    objective = objective_of(book)
    shown = sorted(records, key=lambda record: list(RunState).index(record.state))
    cut = shown if everything else shown[:ROWS]
    metric = objective.metric if objective else "METRIC"
    rows = [_status_row(record, objective) for record in cut]
    lines = [summary(book), *table(["RUN", "POINT", "STATE", "TRY", "PROGRESS", metric, "TIME", "WHERE", ""], rows)]
    if len(cut) < len(shown):
        lines.append(f"... and {len(shown) - len(cut)} more: orch status {book.experiment.name} --all")
    return [*lines, *_failures(book.experiment, records)]


def _status_row(record: Record, objective: Objective | None) -> list[str]:
    value = best_value(record, objective.metric) if objective else None
    number = str(record.last.number) if record.last else ""
    reason = "" if record.state in {RunState.DONE, RunState.RUNNING} else record.reason
    return [
        record.id[:8], told(record.planned.point), record.state.value, number, progress(record),
        "" if value is None else f"{value:.4g}", duration(record),
        record.node if record.state is RunState.RUNNING else "", reason,
    ]  # fmt: skip


def progress(record: Record) -> str:
    """Return how far the last attempt is: its stage, or epoch and step."""
    last = record.last
    if last is None or not last.progress:
        return record.reason if record.state is RunState.RUNNING else ""
    done = last.progress
    epochs = f"/{done['epochs']}" if done.get("epochs") else ""
    steps = f"/{done['steps']}" if done.get("steps") else ""
    return f"epoch {done.get('epoch')}{epochs} step {done.get('step')}{steps}"


def duration(record: Record) -> str:
    """Return how long the run's attempts have taken together; the time between them does not count."""
    spans = [_span(attempt) for attempt in record.history]
    return clock(sum(spans)) if any(spans) else ""


def _span(attempt: Attempt) -> float:
    end = attempt.ended or (time.time() if attempt.state is RunState.RUNNING else None)
    return end - attempt.claim.time if attempt.claim and end is not None else 0.0


def clock(seconds: float) -> str:
    """Return a duration as m:ss or h:mm:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


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


def objective_of(book: Ledger) -> Objective | None:
    """Return the objective of the last launch."""
    header = book.launches[-1].header if book.launches else {}
    return Objective(**header["objective"]) if header.get("objective") else None


def record_json(record: Record) -> dict[str, Any]:
    last = record.last
    return {
        "run": record.id, "state": record.state.value, "reason": record.reason, "point": dict(record.planned.point),
        "launch": record.planned.launch, "attempt": last.number if last else None,
        "generation": record.planned.generation, "code": record.code, "node": record.node, "job": record.job,
        "started": record.started, "ended": record.ended, "progress": dict(last.progress) if last else {},
        "metrics": dict(record.metrics), "best": dict(last.best) if last else {},
        "failure": asdict(record.failure) if record.failure else None,
    }  # fmt: skip


# --- compare ----------------------------------------------------------------------------------------------


def comparison(
    book: Ledger, records: Sequence[Record], objective: Objective | None
) -> tuple[list[str], list[list[Any]]]:
    """Return header and rows: runs ranked by the objective, the keys that were swept, their metrics."""
    keys = list(dict.fromkeys(key for record in records for key in record.planned.point))
    points = {record.id: point_of(book, record, keys) for record in records}
    names = sorted({name for record in records for name in record.metrics if not objective or name != objective.metric})
    target = [objective.metric] if objective else []
    ranked = sorted(records, key=lambda record: _rank(record, objective))
    rows = [
        [
            record.id[:8], *(points[record.id][key] for key in keys),
            *(best_value(record, name) for name in target), *(record.metrics.get(name) for name in names),
            record.state.value, duration(record),
        ]
        for record in ranked
    ]  # fmt: skip
    return ["run", *keys, *target, *names, "state", "time"], rows


def point_of(book: Ledger, record: Record, keys: Sequence[str]) -> dict[str, Any]:
    """Return a run's values of swept keys; one that its own launch did not sweep is looked up in its config."""
    point = dict(record.planned.point)
    if all(key in point for key in keys):
        return point
    launch = book.launch(record.planned.launch)
    config = ledger.read_config(launch.paths, ledger.read_line(launch.paths, record.planned.index))
    return {key: point.get(key, launch.header["choices"].get(key, _at(config, key))) for key in keys}


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config if not isinstance(config, dict) else None


def _rank(record: Record, objective: Objective | None) -> tuple[bool, float]:
    value = best_value(record, objective.metric) if objective else None
    if value is None or objective is None:
        return True, 0.0
    return False, -value if objective.mode == "max" else value


def cell(value: Any) -> str:
    """Return a table's cell: numbers short, nothing for nothing."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
