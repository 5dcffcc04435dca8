"""The points of runs as people tell them apart: the swept keys, and where those are equal, what else differs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator import ledger
from orchestrator.cli.difference import leaves
from orchestrator.credentials import masked
from orchestrator.ledger import Ledger
from orchestrator.record import Record
from orchestrator.spec import RunId

_MOST_KEYS = 3
"""Of so many keys in which runs differ the values are shown: more would tell nobody anything."""


def points(book: Ledger, records: Sequence[Record]) -> dict[RunId, dict[str, Any]]:
    """Return each run's point; runs whose points are equal get the keys in which their configurations differ."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(_text(dict(record.point)), []).append(record)
    found = {record.id: masked(record.point) for record in records}
    for group in groups.values():
        if len(group) > 1:
            for run_id, more in _differing(book, group).items():
                found[run_id] |= more
    return found


def _differing(book: Ledger, records: Sequence[Record]) -> dict[RunId, dict[str, Any]]:
    configs = {record.id: dict(leaves(settings(book, record))) for record in records}
    keys = dict.fromkeys(key for config in configs.values() for key in config)
    chosen = [key for key in keys if len({_text(config.get(key)) for config in configs.values()}) > 1]
    return {run_id: {key: config.get(key) for key in chosen[:_MOST_KEYS]} for run_id, config in configs.items()}


def settings(book: Ledger, record: Record) -> dict[str, Any]:
    """Return a run's resolved configuration, its number of ranks, and the start of its data version's digest."""
    launch = book.launch(record.planned.launch)
    line = ledger.read_line(launch.paths, record.planned.index)
    config = ledger.read_config(launch.paths, line, record.given)
    ranks = {key: line["resources"].get(key) for key in ("nodes", "gpus_per_node")}
    return {**config, "resources": ranks, "data.digest": (line["data"] or "")[:8]}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def complete(book: Ledger, record: Record, point: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return a run's values of keys; what its own launch did not sweep is looked up in its config."""
    if all(key in point for key in keys):
        return dict(point)
    config = dict(leaves(settings(book, record)))
    known = {**config, **book.launch(record.planned.launch).header["choices"], **point}
    return {key: known.get(key) for key in keys}
