"""Adaptive sweeps on disk: what a launch keeps of one, and the config of a trial whose values are known."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.errors import StateError
from orchestrator.layout import LaunchPaths, RunPaths
from orchestrator.records.planned import PlannedRun, set_leaf
from orchestrator.spec import Point
from orchestrator.spec.search import Search, Template, Trial
from orchestrator.system.files import NOT_JSON, parsing, read_bytes, read_json, replace_text, unreadable


def read_trial(paths: LaunchPaths, planned: PlannedRun) -> Trial | None:
    """Return which trial of which adaptive sweep a run is; None of a run that is not a trial."""
    if planned.trial is None:
        return None
    path = paths.search(str(planned.search))
    with parsing(path):
        return Trial(search=Search.from_json(read_json(path)), number=planned.trial)


def read_trial_values(run: RunPaths) -> Mapping[str, Any] | None:
    """Return what a trial was given, its `point`, and what its sampler keeps, `attrs` and `study`; None before."""
    try:
        found = json.loads(read_bytes(run.trial))
        return {"point": dict(found["point"]), "attrs": dict(found["attrs"]), "study": dict(found.get("study", {}))}
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError, *NOT_JSON) as error:
        raise unreadable(run.trial, error) from error


def write_trial_values(run: RunPaths, values: Mapping[str, object]) -> None:
    """Write what a trial is given, for all of its attempts: forced to the disk, before anything is trained with it."""
    replace_text(run.trial, json.dumps(values), sync=True)


def trial_config(search: Search, point: Point) -> dict[str, object]:
    """Return a trial's config. Raises StateError for a point that is none of its search."""
    template = template_at(search, point)
    if template is None or not set(template.keys) <= point.keys():
        raise StateError(
            f"{dict(point)} is not a point of search {search.id}",
            why="it was written for another",
            fix="launch it again",
        )
    values = {tuple(key.split(".")): point[key] for key in template.keys}
    fills = {
        at: _joined([piece if isinstance(piece, str) else values[piece] for piece in pieces])
        for at, pieces in template.fills
    }
    config: dict[str, object] = copy.deepcopy(dict(template.config))
    for at, value in {**values, **fills}.items():
        if at[0] in config:
            set_leaf(config, at, value)
    return config


def template_at(search: Search, point: Point) -> Template | None:
    """Return the template that holds where a point's choices do."""
    fitting = (each for each in search.templates if all(k in point and point[k] == v for k, v in each.choices.items()))
    return next(fitting, None)


def _joined(pieces: Sequence[object]) -> object:
    return pieces[0] if len(pieces) == 1 else "".join(map(str, pieces))
