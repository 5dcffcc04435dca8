"""`orch plan`: show what a launch would do and why, and the resources it would request."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from orchestrator import api
from orchestrator.cli.arguments import add_json, add_overrides, project_of
from orchestrator.cli.text import ROWS, print_json, print_lines, say, table
from orchestrator.config.credentials import described, masked, masked_script
from orchestrator.launch.plan import Action, Step
from orchestrator.launch.recovery import Room, memory_steps
from orchestrator.report.summary import count
from orchestrator.spec import Pack, Resources
from orchestrator.system.units import size

if TYPE_CHECKING:
    from orchestrator.dry_run import Plan
    from orchestrator.launch.estimate import DiskForecast, ShapeTotal
    from orchestrator.prepare import Prepared


def add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)
    parser.add_argument("--all", action="store_true", help="list every run, however many")
    parser.add_argument("--sbatch", action="store_true", help="print the scripts that a launch would pass to sbatch")
    parser.add_argument(
        "--forecast",
        action="store_true",
        help="build models that were never trained, to forecast the size of their checkpoints (takes seconds)",
    )
    add_json(parser)


def handle(arguments: Namespace) -> int:
    project = project_of(arguments)
    with api.prepare(project, arguments.words) as prepared:
        planned = api.plan(project, prepared, rerun=arguments.rerun, measure_models=arguments.forecast)
        scripts = api.scripts(prepared, planned) if arguments.sbatch else []
    if arguments.json:
        print_json(plan_json(prepared, planned, scripts if arguments.sbatch else None))
        return 0
    if arguments.sbatch:
        print_lines(script_lines(planned, scripts))
    else:
        print_lines(plan_lines(planned, everything=arguments.all))
    say(*(f"note: {note}" for note in (*prepared.notes, *planned.notes)))
    return 0


def plan_lines(planned: Plan, *, everything: bool = False) -> list[str]:
    """Return a plan as a table, with totals: time on the cluster, data, checkpoints."""
    steps = planned.steps
    shown = steps if everything else _first_of_each(steps)
    shapes = {step.run.resources for step in steps}
    rows = [
        [
            step.action.value,
            step.run.id[:8],
            described(step.run.point),
            need(step.run.resources) if len(shapes) > 1 else "",
            step.reason,
        ]
        for step in shown
    ]
    found = Counter(step.action for step in steps)
    total = ", ".join(f"{found[action]} to {action.value}" for action in Action if found[action])
    lines = table(["STEP", "RUN", "POINT", "RESOURCES", "REASON"], rows)
    if len(shown) < len(steps):
        lines.append(f"... and {len(steps) - len(shown)} more: --all")
    return [*lines, "", f"{count(len(steps))}: {total}", *_asked(planned)]


def _first_of_each(steps: Sequence[Step]) -> Sequence[Step]:
    """Return the first steps of each action, in their order, so that rare actions are shown in any plan."""
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
    """Return the resources requested by the steps to do; empty if there are none."""
    if not planned.shapes:
        return []
    rows = [_shape_row(shape) for shape in planned.shapes]
    lines = table(["RUNS", "ARRAYS", "TASKS", "EACH", "TIME LIMIT", "AT MOST"], rows)
    gpu_hours = sum(shape.gpu_hours or 0 for shape in planned.shapes)
    if len(rows) > 1 and gpu_hours:
        lines.append(f"at most {gpu_hours:,.4g} GPU-hours in all")
    return ["", *lines, "", *_memory_lines(planned), *_data_lines(planned), _checkpoint_line(planned.checkpoints)]


def _memory_lines(planned: Plan) -> list[str]:
    """Return what memory runs are given that have run out of it."""
    needs = {(shape.resources.attempts, shape.resources.mem_gb_per_node) for shape in planned.shapes}
    steps = {gb: memory_steps(attempts, Room(mem_gb=gb)) for attempts, gb in needs if gb}
    return [
        f"out of memory with {gb:.4g} GB: again with {', then '.join(f'{more:.4g}' for more in found)} GB at most"
        for gb, found in sorted(steps.items())
        if found
    ]


def _shape_row(shape: ShapeTotal) -> list[str]:
    need_of_one = need(replace(shape.resources, hours=None))
    limit = "none asked" if shape.hours is None else f"{shape.hours:.4g} h{'' if shape.asked else ', the default'}"
    hours = shape.gpu_hours or shape.cpu_hours
    unit = "GPU-hours" if shape.gpu_hours else "CPU-hours"
    return [
        str(shape.runs),
        str(shape.arrays or ""),
        str(shape.tasks),
        need_of_one,
        limit,
        "" if hours is None else f"{hours:,.4g} {unit}",
    ]


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
        why = found.problem or "none of these models was trained here; --forecast builds them to count parameters"
        return f"checkpoints: unknown ({why}); {free}"
    each = f"{size(found.largest_bytes)} a run" if found.runs > 1 else ""
    text = f"checkpoints: about {size(found.bytes)}{f', up to {each}' if each else ''}; {free}"
    return text + (f"; unknown of {count(missing)}{f' ({found.problem})' if found.problem else ''}" if missing else "")


def script_lines(planned: Plan, scripts: Sequence[tuple[Sequence[Step], str]]) -> list[str]:
    """Return the scripts that a launch would pass to sbatch, each below a line that names the runs of its tasks."""
    from orchestrator.slurm.preview import TOKEN

    lines = []
    for number, (steps, text) in enumerate(scripts, 1):
        some = ", ".join(step.run.id[:8] for step in steps[:8])
        more = f" and {len(steps) - 8} more" if len(steps) > 8 else ""
        where = f"launch {planned.launch.number:04d}, script {number} of {len(scripts)}"
        lines += [f"# {where}: {count(len(steps))}, {some}{more}; {TOKEN} is chosen at launch", masked_script(text)]
    return lines


def plan_json(
    prepared: Prepared, planned: Plan, scripts: Sequence[tuple[Sequence[Step], str]] | None
) -> dict[str, object]:
    """Return a plan as JSON, with `scripts` if requested."""
    printed = [{"runs": [step.run.id for step in steps], "text": masked_script(text)} for steps, text in scripts or ()]
    return {
        "experiment": prepared.experiment.name,
        "code": prepared.facts.code_id,
        "launch": planned.launch.number,
        "notes": [*prepared.notes, *planned.notes],
        "steps": [step_json(step) for step in planned.steps],
        "resources": [shape.to_json() for shape in planned.shapes],
        "data": [one.to_json() for one in planned.data],
        "scratch": asdict(planned.capacity.scratch),
        "checkpoints": planned.checkpoints.to_json(),
        **({} if scripts is None else {"scripts": printed}),
    }


def need(resources: Resources) -> str:
    """Return resources as text: `2 nodes x (4 GPUs, 8 CPUs, 32 GB), 4 h`."""
    count, kind = resources.gpus_per_node, f"{resources.gpu_type} " if resources.gpu_type else ""
    node = [f"{count} {kind}GPU{'s' if count > 1 else ''}"] if count else []
    node += [f"{resources.cpus_per_node} CPU{'s' if resources.cpus_per_node > 1 else ''}"]
    node += [f"{resources.mem_gb_per_node:g} GB"] if resources.mem_gb_per_node else []
    per_node = ", ".join(node)
    nodes = f"{resources.nodes} nodes x ({per_node})" if resources.nodes > 1 else per_node
    nodes += f", {_pack(resources.pack)}" if resources.pack else ""
    return f"{nodes}, {resources.hours:g} h" if resources.hours else nodes


def _pack(pack: Pack) -> str:
    text = f"packed by {pack.runs or 'auto'}"
    return f"{text}, {pack.at_once} at once" if pack.at_once > 1 else text


def step_json(step: Step) -> dict[str, object]:
    return {
        "run": step.run.id,
        "action": step.action.value,
        "reason": step.reason,
        "point": masked(step.run.point),
        "attempt": step.attempt,
        "generation": step.generation,
        "code": step.code,
        "resources": step.run.resources.to_json(),
        "data": step.run.data_digest,
    }
