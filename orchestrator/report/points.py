"""The points of runs as people tell them apart: the swept keys, and where those are equal, what else differs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from orchestrator.config.credentials import masked
from orchestrator.records.experiment import ExperimentState
from orchestrator.records.launches import read_run_config
from orchestrator.records.planned import read_planned_run
from orchestrator.records.record import Record
from orchestrator.report.difference import leaves
from orchestrator.spec import RunId

_MOST_KEYS = 3
"""How many of the keys in which runs differ are shown: more would not help anybody."""


def points(state: ExperimentState, records: Sequence[Record]) -> dict[RunId, dict[str, object]]:
    """Return each run's point; runs whose points are equal get the keys in which their configurations differ."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(_text(dict(record.point)), []).append(record)
    found = {record.id: masked(record.point) for record in records}
    for group in groups.values():
        if len(group) > 1:
            for run_id, more in _differing(state, group).items():
                found[run_id] |= more
    return found


def _differing(state: ExperimentState, records: Sequence[Record]) -> dict[RunId, dict[str, object]]:
    configs = {record.id: dict(leaves(settings(state, record))) for record in records}
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    chosen = [key for key in keys if len({_text(config.get(key)) for config in configs.values()}) > 1]
    return {run_id: {key: config.get(key) for key in chosen[:_MOST_KEYS]} for run_id, config in configs.items()}


def settings(state: ExperimentState, record: Record) -> dict[str, object]:
    """Return a run's resolved configuration, its number of ranks, and the start of its data version's digest."""
    launch = state.launch(record.planned.launch)
    planned = read_planned_run(launch.paths, record.planned.index)
    config = read_run_config(launch.paths, planned, record.given)
    ranks = {key: getattr(planned.resources, key) for key in ("nodes", "gpus_per_node")}
    return {**config, "resources": ranks, "data.digest": (planned.data or "")[:8]}


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a key's value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def complete(
    state: ExperimentState, record: Record, point: Mapping[str, object], keys: Sequence[str]
) -> dict[str, object]:
    """Return a run's values of keys; what its own launch did not sweep is looked up in its config."""
    if all(key in point for key in keys):
        return dict(point)
    config = dict(leaves(settings(state, record)))
    known = {**config, **state.launch(record.planned.launch).header.choices, **point}
    return {key: known.get(key) for key in keys}
