"""Adaptive sweeps on disk: what a launch keeps of one, and the config of a trial whose values are known."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.errors import StateError
from orchestrator.layout import LaunchPaths, RunPaths
from orchestrator.ledger.files import NOT_JSON, damaged, read_json
from orchestrator.spec import Point, Search, Template, Trial


def read_trial(paths: LaunchPaths, line: Mapping[str, Any]) -> Trial | None:
    """Return which trial of which adaptive sweep a task is; None of a task that is none."""
    if "trial" not in line:
        return None
    path = paths.search(str(line["search"]))
    try:
        return Trial(search=Search.from_json(read_json(path)), number=int(line["trial"]))
    except (KeyError, TypeError) as error:
        raise damaged(path, f"it has no {error}") from error


def read_values(run: RunPaths) -> Mapping[str, Any] | None:
    """Return what a trial was given, its `point`, and what its sampler keeps, `attrs` and `study`; None before."""
    try:
        found = json.loads(run.trial.read_bytes())
        return {"point": dict(found["point"]), "attrs": dict(found["attrs"]), "study": dict(found.get("study", {}))}
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError, *NOT_JSON) as error:
        raise damaged(run.trial, str(error)) from error


def write_values(run: RunPaths, values: Mapping[str, Any]) -> None:
    """Write what a trial is given, for all of its attempts: forced to the disk, before anything is trained with it."""
    draft = run.trial.with_name(f".{run.trial.name}.draft")
    with draft.open("w", encoding="utf-8") as file:
        file.write(json.dumps(values))
        file.flush()
        os.fsync(file.fileno())
    draft.rename(run.trial)


def filled(search: Search, point: Point) -> dict[str, Any]:
    """Return a trial's config. Raises StateError for a point that is none of its search."""
    template = template_at(search, point)
    if template is None or not set(template.keys) <= point.keys():
        raise StateError(
            f"{dict(point)} is no point of search {search.id}", why="it was written for another", fix="launch it anew"
        )
    values = {tuple(key.split(".")): point[key] for key in template.keys}
    fills = {
        at: _joined([piece if isinstance(piece, str) else values[piece] for piece in pieces])
        for at, pieces in template.fills
    }
    config: dict[str, Any] = copy.deepcopy(dict(template.config))
    for at, value in {**values, **fills}.items():
        if at[0] in config:
            set_leaf(config, at, value)
    return config


def template_at(search: Search, point: Point) -> Template | None:
    """Return the template that holds where a point's choices do."""
    fitting = (each for each in search.templates if all(k in point and point[k] == v for k, v in each.choices.items()))
    return next(fitting, None)


def _joined(pieces: Sequence[Any]) -> Any:
    return pieces[0] if len(pieces) == 1 else "".join(map(str, pieces))


def set_leaf(config: dict[str, Any], at: Sequence[str], value: Any) -> None:
    """Set the leaf of a config at a path; raises KeyError or TypeError where there is no such place."""
    for key in at[:-1]:
        config = config[key]
    config[at[-1]] = value
