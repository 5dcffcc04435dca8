"""The plan of a launch: a line per task, written once, and read whole or a line at a time."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from typing import Any

from orchestrator.layout import LaunchPaths
from orchestrator.spec import Point, Resources, RunId
from orchestrator.system.files import (
    NOT_JSON,
    as_object,
    damaged,
    open_file,
    read_bytes,
    unreadable,
    write_bytes,
    write_text,
)

_OFFSET_WIDTH = 16
_TYPES: Mapping[str, tuple[type, ...]] = {
    "index": (int,),
    "run": (str,),
    "action": (str,),
    "reason": (str,),
    "attempt": (int,),
    "generation": (int,),
    "history": (int,),
    "code": (str,),
    "data": (str, type(None)),
    "base": (int,),
    "set": (list,),
    "point": (dict,),
    "resources": (dict,),
}
"""What each line holds, in this order."""
_TRIAL: Mapping[str, tuple[type, ...]] = {"search": (str,), "trial": (int,)}
"""What the line of a trial of an adaptive sweep holds, too."""
_NAMES = {str: "text", int: "a whole number", list: "a list", dict: "an object", type(None): "null"}
_DEFAULTS = {"reason": "", "data": None}
_KNOWN = {*_TYPES, *_TRIAL}
_NOTHING: Mapping[str, object] = {}
_values = itemgetter(*_TYPES)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One line of a plan: what its launch, by number, wants done with a run.

    `attempt` is the first that may be started, `history` the one whose metrics it carries on. `changes` are the leaves
    to set in the base config of number `base`. A trial of an adaptive sweep has a number in its `search`. `unknown` are
    the entries of a newer version: kept, and ignored.
    """

    run: RunId
    launch: int
    index: int
    action: str
    attempt: int
    generation: int
    history: int
    code: str
    point: Point
    resources: Resources
    reason: str = ""
    data: str | None = None
    base: int = 0
    changes: Sequence[tuple[Sequence[str], object]] = ()
    search: str | None = None
    trial: int | None = None
    unknown: tuple[tuple[str, object], ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the line. Its launch is the one that the plan belongs to."""
        return {
            "index": self.index,
            "run": self.run,
            "action": self.action,
            "reason": self.reason,
            "attempt": self.attempt,
            "generation": self.generation,
            "history": self.history,
            "code": self.code,
            "data": self.data,
            "base": self.base,
            "set": self.changes,
            "point": dict(self.point),
            "resources": self.resources.to_json(),
            **({} if self.trial is None else {"search": self.search, "trial": self.trial}),
            **dict(self.unknown),
        }


class _Parser:
    """Makes lines of one plan into runs: `orch status` reads 10,000 of them, which ask for few kinds of resources."""

    def __init__(self, paths: LaunchPaths) -> None:
        self._plan, self._launch = paths.plan, paths.number
        self._needs: object = None
        self._resources = Resources()

    def planned(self, line: Any) -> PlannedRun:
        """Return what a line holds. Raises StateError where a key is missing or of a wrong type."""
        try:
            values = _values(line)
        except (KeyError, TypeError):
            line = self._completed(as_object(self._plan, line))
            values = _values(line)
        if not _are_right(tuple(map(type, values))):
            self._check(line, _TYPES)
        index, run, action, reason, attempt, generation, history, code, data, base, changes, point, needs = values
        if needs != self._needs:
            self._needs, self._resources = needs, self._resources_of(needs)
        return PlannedRun(
            run=run,
            launch=self._launch,
            index=index,
            action=action,
            attempt=attempt,
            generation=generation,
            history=history,
            code=code,
            point=point,
            resources=self._resources,
            reason=reason,
            data=data,
            base=base,
            changes=changes,
            **(self._rest(line) if len(line) > len(_TYPES) else _NOTHING),
        )

    def _completed(self, line: Mapping[str, object]) -> Mapping[str, object]:
        """Return a line with what it may do without."""
        if missing := _TYPES.keys() - _DEFAULTS.keys() - line.keys():
            raise damaged(self._plan, f"a line lacks {', '.join(sorted(missing))}")
        return {**_DEFAULTS, **line}

    def _check(self, line: Mapping[str, object], types: Mapping[str, tuple[type, ...]]) -> None:
        for key, allowed in types.items():
            if type(line[key]) not in allowed:
                expected = " or ".join(_NAMES[each] for each in allowed)
                raise damaged(self._plan, f"{key} of a line is {line[key]!r:.60}, not {expected}")

    def _rest(self, line: Mapping[str, object]) -> Mapping[str, Any]:
        """Return what else a line holds: which trial it is, and what only a newer version knows."""
        trial = {key: line[key] for key in _TRIAL if key in line}
        self._check(trial, {key: _TRIAL[key] for key in trial})
        return {**trial, "unknown": tuple(item for item in line.items() if item[0] not in _KNOWN)}

    def _resources_of(self, needs: Mapping[str, object]) -> Resources:
        try:
            return Resources.from_json(needs)
        except TypeError as error:
            raise damaged(self._plan, f"resources of a line is {needs!r}: {error}") from error


@lru_cache
def _are_right(types: tuple[type, ...]) -> bool:
    return all(found in allowed for found, allowed in zip(types, _TYPES.values(), strict=True))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pause the garbage collector, which takes a third of the time where many objects are made and none is freed."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def write_plan(paths: LaunchPaths, runs: Iterable[PlannedRun]) -> None:
    """Write one line per task, and fixed-width offsets so that a job reads its own line only."""
    offset, text, offsets = 0, [], []
    for run in runs:
        row = (json.dumps(run.to_json()) + "\n").encode()
        text.append(row)
        offsets.append(f"{offset:0{_OFFSET_WIDTH}d}\n")
        offset += len(row)
    write_bytes(paths.plan, b"".join(text))
    write_text(paths.offsets, "".join(offsets))


def read_planned_run(paths: LaunchPaths, index: int) -> PlannedRun:
    """Return one line of a launch's plan, without reading the others."""
    return read_planned_runs(paths, [index])[index]


def read_planned_runs(paths: LaunchPaths, indices: Iterable[int]) -> dict[int, PlannedRun]:
    """Return lines of a launch's plan by their index, without reading the others."""
    lines = {}
    index = None
    try:
        with open_file(paths.offsets) as offsets, open_file(paths.plan) as plan:
            for index in indices:
                offsets.seek(index * (_OFFSET_WIDTH + 1))
                plan.seek(int(offsets.read(_OFFSET_WIDTH)))
                lines[index] = json.loads(plan.readline())
    except (OSError, *NOT_JSON) as error:
        raise unreadable(paths.plan, error, f"line {index}: {error}") from error
    parser = _Parser(paths)
    return {index: parser.planned(line) for index, line in lines.items()}


def read_plan(paths: LaunchPaths) -> list[PlannedRun]:
    """Return all lines of a launch's plan. Raises StateError if one is damaged or missing."""
    with _uncollected():
        return list(map(_Parser(paths).planned, _lines(paths)))


def _lines(paths: LaunchPaths) -> list[object]:
    try:
        text = read_bytes(paths.plan).rstrip(b"\n").replace(b"\n", b",")
        lines: list[object] = json.loads(b"[%b]" % text)  # all at once: half the time
        tasks = paths.offsets.stat().st_size // (_OFFSET_WIDTH + 1)
    except (OSError, *NOT_JSON) as error:
        raise unreadable(paths.plan, error) from error
    if len(lines) != tasks or not lines:  # runs that are forgotten would be run again
        raise damaged(paths.plan, f"it has {len(lines)} lines, and plan.offsets {tasks}")
    return lines


def set_leaf(config: dict[str, Any], at: Sequence[str], value: Any) -> None:
    """Set the leaf of a config at a path; raises KeyError or TypeError where there is no such place."""
    for key in at[:-1]:
        config = config[key]
    config[at[-1]] = value
