"""Records -> text and JSON. Pure but for asking whether a stream is a terminal."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import IO, TYPE_CHECKING, Any

from orchestrator.api import TOKEN, Plan, Prepared, told
from orchestrator.cli import grouping
from orchestrator.cli.points import points
from orchestrator.cluster import Waiting
from orchestrator.comparison import Comparison, Group
from orchestrator.consumption import Consumption, consumption, most
from orchestrator.credentials import masked
from orchestrator.errors import size
from orchestrator.forecast import Forecast, forecast
from orchestrator.layout import ExperimentPaths
from orchestrator.ledger import Ledger
from orchestrator.plan import Action, Step
from orchestrator.record import Record, RunState
from orchestrator.spec import Objective, Pack, Resources

if TYPE_CHECKING:
    from orchestrator.estimate import DiskForecast, ShapeTotal

_CODES = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "grey": "90", "bold": "1"}
STATE_COLOURS: Mapping[RunState, str] = {
    RunState.RUNNING: "blue", RunState.QUEUED: "grey", RunState.WAITING: "grey", RunState.DONE: "green",
    RunState.FAILED: "red", RunState.INTERRUPTED: "yellow", RunState.CANCELLED: "yellow",
    RunState.UNKNOWN: "yellow",
}  # fmt: skip
_WEEK_SECONDS = 6 * 86_400
ROWS = 50
"""How many runs `status` and `plan` list before they ask for --all."""

_FEW_ROWS = 10
"""Of more runs than that `status` lists so many, below a table that counts all of them."""


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


def plan_lines(planned: Plan, *, everything: bool = False) -> list[str]:
    """Return a plan as a table, and what it comes to: time on the cluster, data, checkpoints."""
    steps = planned.steps
    shown = steps if everything else _first_of_each(steps)
    shapes = {step.run.resources for step in steps}
    rows = [
        [
            step.action.value, step.run.id[:8], told(step.run.point),
            need(step.run.resources) if len(shapes) > 1 else "", step.reason,
        ]
        for step in shown
    ]  # fmt: skip
    found = Counter(step.action for step in steps)
    total = ", ".join(f"{found[action]} to {action.value}" for action in Action if found[action])
    lines = table(["STEP", "RUN", "POINT", "RESOURCES", "REASON"], rows)
    if len(shown) < len(steps):
        lines.append(f"... and {len(steps) - len(shown)} more: --all")
    return [*lines, "", f"{count(len(steps))}: {total}", *_asked(planned)]


def _first_of_each(steps: Sequence[Step]) -> Sequence[Step]:
    """Return the first steps of each action, in their order: what is rare is seen, however much there is."""
    if len(steps) <= ROWS:
        return steps
    each = ROWS // len({step.action for step in steps})
    seen: Counter[Action] = Counter()
    kept = []
    for step in steps:
        seen[step.action] += 1
        if seen[step.action] <= each:
            kept.append(step)
    return kept


def _asked(planned: Plan) -> list[str]:
    """Return what the steps to do ask for; nothing where nothing is to be done."""
    if not planned.shapes:
        return []
    rows = [_shape_row(shape) for shape in planned.shapes]
    lines = table(["RUNS", "ARRAYS", "TASKS", "EACH", "TIME LIMIT", "AT MOST"], rows)
    gpu_hours = sum(shape.gpu_hours or 0 for shape in planned.shapes)
    if len(rows) > 1 and gpu_hours:
        lines.append(f"at most {gpu_hours:,.4g} GPU-hours in all")
    return ["", *lines, "", *_data_lines(planned), _checkpoint_line(planned.checkpoints)]


def _shape_row(shape: ShapeTotal) -> list[str]:
    need_of_one = need(replace(shape.resources, hours=None))
    limit = "none asked" if shape.hours is None else f"{shape.hours:.4g} h{'' if shape.asked else ', the default'}"
    hours = shape.gpu_hours or shape.cpu_hours
    unit = "GPU-hours" if shape.gpu_hours else "CPU-hours"
    return [
        str(shape.runs), str(shape.arrays or ""), str(shape.tasks), need_of_one, limit,
        "" if hours is None else f"{hours:,.4g} {unit}",
    ]  # fmt: skip


def _data_lines(planned: Plan) -> list[str]:
    scratch = planned.capacity.scratch
    room = f"{scratch.where} holds {size(scratch.bytes)}" if scratch.bytes is not None else scratch.where
    free = f", {size(scratch.free_bytes)} free" if scratch.free_bytes is not None else ""
    files = {one.name: "1 file" if one.files == 1 else f"{one.files} files" for one in planned.data}
    return [f"data {one.name}: {size(one.bytes)} in {files[one.name]}; {room}{free}" for one in planned.data]


def _checkpoint_line(found: DiskForecast) -> str:
    free = f"{size(found.free_bytes)} free in {found.folder}"
    missing = sum(found.unknown.values())
    if not found.runs:
        why = found.problem or "none of these models was trained here; --forecast builds and counts them"
        return f"checkpoints: unknown ({why}); {free}"
    each = f"{size(found.largest_bytes)} a run" if found.runs > 1 else ""
    told = f"checkpoints: about {size(found.bytes)}{f', up to {each}' if each else ''}; {free}"
    return told + (f"; unknown of {count(missing)}{f' ({found.problem})' if found.problem else ''}" if missing else "")


def script_lines(planned: Plan, scripts: Sequence[tuple[Sequence[Step], str]]) -> list[str]:
    """Return the scripts that a launch would hand to sbatch, each below a line that says which runs are its tasks."""
    lines = []
    for number, (steps, text) in enumerate(scripts, 1):
        some = ", ".join(step.run.id[:8] for step in steps[:8])
        more = f" and {len(steps) - 8} more" if len(steps) > 8 else ""
        where = f"launch {planned.launch.number:04d}, script {number} of {len(scripts)}"
        lines += [f"# {where}: {count(len(steps))}, {some}{more}; {TOKEN} is made up at launch", text]
    return lines


def plan_json(
    prepared: Prepared, planned: Plan, scripts: Sequence[tuple[Sequence[Step], str]] | None
) -> dict[str, Any]:
    """Return a plan as JSON; `scripts` are in it where they were asked for."""
    printed = [{"runs": [step.run.id for step in steps], "text": text} for steps, text in scripts or ()]
    return {
        "experiment": prepared.experiment.name, "code": prepared.facts.code_id, "launch": planned.launch.number,
        "notes": [*prepared.notes, *planned.notes], "steps": [step_json(step) for step in planned.steps],
        "resources": [shape.to_json() for shape in planned.shapes],
        "data": [one.to_json() for one in planned.data], "scratch": asdict(planned.capacity.scratch),
        "checkpoints": planned.checkpoints.to_json(), **({} if scripts is None else {"scripts": printed}),
    }  # fmt: skip


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
    nodes += f", {_pack(resources.pack)}" if resources.pack else ""
    return f"{nodes}, {resources.hours:g} h" if resources.hours else nodes


def _pack(pack: Pack) -> str:
    told = f"packed by {pack.runs or 'auto'}"
    return f"{told}, {pack.at_once} at once" if pack.at_once > 1 else told


def step_json(step: Step) -> dict[str, Any]:
    return {
        "run": step.run.id, "action": step.action.value, "reason": step.reason, "point": masked(step.run.point),
        "attempt": step.attempt, "generation": step.generation, "code": step.code,
        "resources": step.run.resources.to_json(), "data": step.run.data_digest,
    }  # fmt: skip


def submitted(runs: int, waiting: Waiting) -> str:
    """Return how much of a launch was submitted, and what becomes of the rest."""
    return f"{runs - waiting.tasks} of {runs} submitted, {waiting.tasks} waiting: {waiting.reason}; {waiting.later}"


# --- status -----------------------------------------------------------------------------------------------


def summary(book: Ledger) -> str:
    """Return one line: the experiment, its runs by state, its last launch."""
    last = book.launches[-1] if book.launches else None
    launch = f"   launch {last.number:04d} {_when(last.header['time'])} by {last.header['user']}" if last else ""
    why = f": {last.header['message']}" if last and last.header["message"] else ""
    return f"{book.experiment.name}   {states(book)}{launch}{why}"


def states(book: Ledger) -> str:
    """Return how many runs there are, and how many in each state."""
    counts = Counter(record.state for record in book.records.values())
    each = ", ".join(f"{counts[state]} {state.value}" for state in RunState if counts[state])
    return f"{count(len(book.records))}: {each}"


def outlook(book: Ledger, now: float) -> list[str]:
    """Return, where there is something to say, when all will have ended, and what was taken of what was asked."""
    end = forecast(book.records.values(), now)
    return [*([_end(end, now)] if end else []), *filter(None, [_taken(most(book.records.values(), now))])]


def _end(end: Forecast, now: float) -> str:
    if end.seconds is None:
        return f"end: unknown, {end.unknown}"
    at = time.localtime(now + end.seconds)
    day = "%a %H:%M" if end.seconds < _WEEK_SECONDS else "%a %Y-%m-%d %H:%M"
    return f"end: about {about(end.seconds)} left, done {time.strftime(day, at)}"


def about(seconds: float) -> str:
    """Return a duration in two units at most: `3 h 20 min`."""
    minutes = round(seconds / 60)
    if not minutes:
        return f"{max(1, round(seconds))} s"
    hours, days = minutes // 60, minutes // 1440
    parts = [(days, "d"), (hours % 24, "h")] if days else [(hours, "h"), (minutes % 60, "min")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


def _taken(most_taken: Consumption) -> str:
    memory, gpu = most_taken.memory_gb, most_taken.gpu_memory_gb
    parts = [
        f"memory: {_of(_gb(memory), most_taken.memory_gb_asked, 'GB')} at most" if memory else "",
        f"GPU memory: {_gb(gpu)} GB at most" if gpu else "",
        _time_taken(most_taken),
    ]  # fmt: skip
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


def status_lines(book: Ledger, records: Sequence[Record], *, everything: bool = False) -> list[str]:
    """Return the runs as a table, failures grouped by signature, and what is to be done about them.

    Many runs are counted by state and by what was swept, and only the first of them are listed.
    """
    objective = objective_of(book)
    order = {state: place for place, state in enumerate(RunState)}
    shown = sorted(records, key=lambda record: order[record.state])
    grouped = len(shown) > ROWS and not everything
    cut = shown[:_FEW_ROWS] if grouped else shown
    metric, at = objective.metric if objective else "METRIC", points(book, cut)
    rows = [_status_row(record, told(at[record.id]), objective) for record in cut]
    header = ["RUN", "POINT", "STATE", "TRY", "PROGRESS", metric, "TIME", "WHERE", ""]
    lines = [summary(book), *outlook(book, time.time())]
    if grouped:
        groups = grouping.rows(records, objective)
        lines += ["", *table(*groups), ""] if groups[1] else []
    lines += table(header, rows)
    if grouped:
        lines.append(f"... and {len(shown) - len(cut)} more: orch status {book.experiment.name} --all")
    return [*lines, *_failures(book.experiment, records)]


def _status_row(record: Record, point: str, objective: Objective | None) -> list[str]:
    number = str(record.last.number) if record.last else ""
    return [
        record.id[:8], point, record.state.value, number, progress(record), _metric(record, objective),
        duration(record), _where(record), note(record),
    ]  # fmt: skip


def _where(record: Record) -> str:
    """Return the node on which a run is running, and the GPUs that our supervisor gave it."""
    if record.state is not RunState.RUNNING:
        return ""
    claim = record.last.claim if record.last else None
    return f"{record.node} GPU {','.join(claim.devices)}" if claim and claim.devices else record.node


def _metric(record: Record, objective: Objective | None) -> str:
    """Return the objective's best value; without an objective, the last of a loss, or of what comes first."""
    if objective:
        value = record.best_value(objective.metric)
        return "" if value is None else f"{value:.4g}"
    names = sorted(record.metrics, key=lambda name: ("loss" not in name, name))
    return f"{names[0]} {record.metrics[names[0]]:.4g}" if names else ""


def progress(record: Record) -> str:
    """Return how far the last attempt is: its stage, or epoch and step."""
    last = record.last
    if last is None or not last.progress:
        return (last.stage if last else record.reason) if record.state is RunState.RUNNING else ""
    done = last.progress
    epochs = f"/{done['epochs']}" if done.get("epochs") else ""
    steps = f"/{done['steps']}" if done.get("steps") else ""
    epoch = f"epoch {done['epoch']}{epochs} " if done.get("epoch") is not None else ""
    return f"{'pruned: ' if record.pruned else ''}{epoch}step {done.get('step')}{steps}"


def note(record: Record) -> str:
    """Return what explains a state: what a run waits for, why it has ended, that it was suspended."""
    if record.state is RunState.RUNNING:
        seen = record.observation
        return seen.reason if seen else ""
    return "" if record.state is RunState.DONE else record.reason


def duration(record: Record) -> str:
    """Return how long the run's attempts have taken together."""
    seconds = record.seconds(time.time())
    return clock(seconds) if seconds else ""


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
        "run": record.id, "state": record.state.value, "reason": record.reason, "point": masked(record.point),
        "launch": record.planned.launch, "attempt": last.number if last else None,
        "generation": record.planned.generation, "code": record.code, "node": record.node, "job": record.job,
        "started": record.started, "ended": record.ended, "progress": dict(last.progress) if last else {},
        "metrics": dict(record.metrics), "best": dict(last.best) if last else {},
        "failure": asdict(record.failure) if record.failure else None,
        "usage": asdict(consumption(record, time.time())),
    }  # fmt: skip


def outlook_json(book: Ledger, now: float) -> dict[str, Any]:
    """Return the forecast and the consumption of a whole experiment."""
    end = forecast(book.records.values(), now)
    at = now + end.seconds if end and end.seconds is not None else None
    return {
        "end": {**asdict(end), "at": at} if end else None,
        "usage": asdict(most(book.records.values(), now)),
    }  # fmt: skip


# --- compare ----------------------------------------------------------------------------------------------


def comparison_table(made: Comparison, *, most: int | None = None) -> tuple[list[str], list[list[Any]]]:
    """Return header and rows of ranked runs, or of groups over seeds: `runs` are then those that count, of how many.

    The last column marks the best. `most`: only so many rows.
    """
    rows = []
    for group in made.groups[:most]:
        values = [made.estimate(group, metric) for metric in made.metrics]
        rows.append([
            _runs_of(group) if made.over else group.records[0].id[:8], *(group.point[key] for key in made.keys),
            *(value if made.over else value and value.mean for value in values),
            _states_of(group) if made.over else _ended(group.records[0]),
            "" if made.over else duration(group.records[0]), "",
        ])  # fmt: skip
    if made.best:
        rows[0][-1] = "best"
    return ["runs" if made.over else "run", *made.keys, *made.metrics, "state", "time", ""], rows


def comparison_json(made: Comparison) -> list[dict[str, Any]]:
    """Return the same as JSON: of a group the mean, the standard error and the number of runs of each metric."""
    header, rows = comparison_table(made)
    if not made.over:
        return [dict(zip(header[:-1], row[:-1], strict=True)) for row in rows]
    return [
        {
            "runs": [record.id for record in group.records], **group.point,
            **{metric: asdict(found) if (found := made.estimate(group, metric)) else None for metric in made.metrics},
            "states": dict(Counter(record.state.value for record in group.records)),
        }
        for group in made.groups
    ]  # fmt: skip


def comparison_csv(made: Comparison) -> list[list[Any]]:
    """Return the same for a spreadsheet: a mean and its standard error are two columns, numbers in full."""
    header, rows = comparison_table(made)
    first = 1 + len(made.keys)
    last = first + (len(made.metrics) if made.over else 0)
    twice = [name for metric in header[first:last] for name in (metric, f"{metric} ±")]
    lines: list[list[Any]] = [[*header[:first], *twice, *header[last:-1]]]
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


def cell(value: Any) -> str:
    """Return a table's cell: numbers short, nothing for nothing."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
