"""Two runs side by side: what differs in config, code, data and environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from orchestrator.config.credentials import masked
from orchestrator.records.experiment import ExperimentState
from orchestrator.records.launches import Launch, read_run_config
from orchestrator.records.planned import PlannedRun, read_planned_run
from orchestrator.records.record import Record

_TEXT_LIMIT = 200_000


def lines(state_a: ExperimentState, a: Record, state_b: ExperimentState, b: Record) -> list[str]:
    """Return the differences as text, section by section; sections without any say so."""
    from orchestrator.snapshot.environment import Environment, differences

    launch_a, launch_b = state_a.launch(a.planned.launch), state_b.launch(b.planned.launch)
    sections = {
        "config": list(_config(launch_a, a, launch_b, b)),
        "data": list(_data(launch_a, a, launch_b, b)),
        "environment": differences(
            Environment.from_json(launch_a.header.environment), Environment.from_json(launch_b.header.environment)
        ),
        "code": list(_code(state_a, a, state_b, b)),
    }
    printed = [f"- {a.id} ({a.state.value})", f"+ {b.id} ({b.state.value})"]
    for name, found in sections.items():
        printed += [f"{name}:" if found else f"{name}: the same", *(f"  {line}" for line in found)]
    return printed


def _planned(launch: Launch, record: Record) -> PlannedRun:
    return read_planned_run(launch.paths, record.planned.index)


def _config(launch_a: Launch, a: Record, launch_b: Launch, b: Record) -> Iterator[str]:
    planned_a, planned_b = _planned(launch_a, a), _planned(launch_b, b)
    config_a = {**read_run_config(launch_a.paths, planned_a, a.given), "resources": planned_a.resources.to_json()}
    config_b = {**read_run_config(launch_b.paths, planned_b, b.given), "resources": planned_b.resources.to_json()}
    one, two = dict(leaves(config_a)), dict(leaves(config_b))
    shown = [dict(leaves(masked(config))) for config in (config_a, config_b)]
    for key in dict.fromkeys([*one, *two]):
        if one.get(key) != two.get(key) or (key in one) != (key in two):
            old, new = (found.get(key, "(not there)") for found in shown)
            yield f"{key}: {old} -> {new}"


def leaves(tree: object, at: str = "") -> Iterator[tuple[str, object]]:
    """Yield the leaves of a configuration by their dotted keys; an empty mapping is a leaf."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, f"{at}.{key}" if at else str(key))
    else:
        yield at, tree


def _data(launch_a: Launch, a: Record, launch_b: Launch, b: Record) -> Iterator[str]:
    one, two = _planned(launch_a, a).data, _planned(launch_b, b).data
    if one != two:
        yield f"{one or 'no data version'} -> {two or 'no data version'}"


def _code(state_a: ExperimentState, a: Record, state_b: ExperimentState, b: Record) -> Iterator[str]:
    if a.code == b.code:
        return
    yield f"tree {a.code[:12]} -> {b.code[:12]}"
    import difflib

    one = _files(state_a.experiment.code(a.code.split("+")[0]).tree)
    two = _files(state_b.experiment.code(b.code.split("+")[0]).tree)
    for name in sorted(one.keys() | two.keys()):
        old, new = _text(one.get(name)), _text(two.get(name))
        if old != new:
            yield from difflib.unified_diff(old, new, f"a/{name}", f"b/{name}", lineterm="", n=2)


def _files(root: Path) -> dict[str, Path]:
    return {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}


def _text(path: Path | None) -> list[str]:
    if path is None:
        return []
    if path.stat().st_size > _TEXT_LIMIT:
        return [f"({path.stat().st_size} bytes)"]
    return path.read_text(errors="replace").splitlines()
