"""Launches on disk: published whole by one rename, then only read."""

from __future__ import annotations

import getpass
import json
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import StateError
from orchestrator.layout import ExperimentPaths, LaunchPaths
from orchestrator.ledger.files import NOT_JSON, as_object, damaged, make_private, read_json, write_text, writing
from orchestrator.ledger.searches import filled, read_trial, set_leaf
from orchestrator.process import ProcessId
from orchestrator.record import Planned
from orchestrator.spec import Point, Resources, RunId, Search

FORMAT_VERSION = 1
SILENT_SECONDS = 300.0
"""Who submits touches the launch's folder before each request, which takes seconds; whoever cannot be asked here, and
has been silent for so long, is taken for dead. If that is wrong, still no run starts twice: see `slurm/turns.py`."""
_OFFSET_WIDTH = 16
_HEADER = frozenset({"token", "time", "user", "process", "cluster"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A published launch: its folder, its header, and who published it."""

    paths: LaunchPaths
    header: Mapping[str, Any]

    @property
    def number(self) -> int:
        return self.paths.number

    @property
    def token(self) -> str:
        """What tells it from every other launch, also from one of the same number in another time or place."""
        return str(self.header["token"])

    @property
    def launcher(self) -> ProcessId:
        return ProcessId.from_json(self.header["process"])


def read_launch(paths: LaunchPaths) -> Launch:
    """Return a launch. Raises StateError if its header is damaged."""
    header = read_json(paths.header)
    if header.get("v") != FORMAT_VERSION:
        raise StateError(
            f"{paths.header} has format {header.get('v')!r}", why=f"this version reads {FORMAT_VERSION}",
            fix="use the version of orch that wrote it",
        )  # fmt: skip
    if missing := _HEADER - header.keys():
        raise damaged(paths.header, f"it lacks {', '.join(sorted(missing))}")
    return Launch(paths=paths, header=header)


def submitting(launch: Launch) -> bool | None:
    """Return whether the launch's own launcher still submits it; None if it may: nobody here can ask it."""
    if launch.paths.complete.exists():
        return False
    alive = launch.launcher.alive()
    silent = time.time() - launch.paths.path.stat().st_mtime > SILENT_SECONDS
    return False if alive is None and silent else alive


def publish(
    experiment: ExperimentPaths,
    number: int,
    header: Mapping[str, Any],
    bases: Sequence[Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
    *,
    searches: Iterable[Search] = (),
    packs: Sequence[Sequence[int]] = (),
) -> LaunchPaths | None:
    """Publish launch `number` whole, by one rename; None if somebody else has published it first.

    This is the compare-and-swap of a launch: it was planned against all launches before `number`. `packs` are the
    indices of lines that share a job.
    """
    folder = experiment.path / "launches"
    make_private(folder)
    token = uuid.uuid4().hex
    temporary = LaunchPaths(folder / f".tmp-{token}")
    body = {
        "v": FORMAT_VERSION, "token": token, "time": time.time(), "user": getpass.getuser(),
        "process": ProcessId.current().to_json(), **header,
    }  # fmt: skip
    try:
        with writing(temporary.path):
            make_private(temporary.cancelled)
            write_text(temporary.header, json.dumps(body, indent=1))
            for i, base in enumerate(bases):
                write_text(temporary.base(i), json.dumps(base))
            _write_lines(temporary, lines)
            for search in searches:
                write_text(temporary.search(search.id), json.dumps(search.to_json()))
            if packs:
                write_text(temporary.packs, json.dumps(packs))
    except StateError:
        shutil.rmtree(temporary.path, ignore_errors=True)
        raise
    return _swap(temporary, experiment.launch(number), token)


def _swap(temporary: LaunchPaths, final: LaunchPaths, token: str) -> LaunchPaths | None:
    try:
        temporary.path.rename(final.path)
    except OSError as error:
        # Over NFS an answer can be lost and the rename repeated: it then fails although it has succeeded.
        mine = final.header.exists() and read_launch(final).header["token"] == token
        shutil.rmtree(temporary.path, ignore_errors=True)
        if not final.path.exists():
            raise StateError(
                f"cannot publish {final.path}", why=error.strerror or str(error),
                fix="make room, or choose another folder for runs with --runs or $ORCH_RUNS",
            ) from error  # fmt: skip
        return final if mine else None
    return final


def _write_lines(paths: LaunchPaths, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write one line per task, and fixed-width offsets so that a job reads its own line only."""
    offset, text, offsets = 0, [], []
    for line in lines:
        row = (json.dumps(line) + "\n").encode()
        text.append(row)
        offsets.append(f"{offset:0{_OFFSET_WIDTH}d}\n")
        offset += len(row)
    paths.plan.write_bytes(b"".join(text))
    write_text(paths.offsets, "".join(offsets))


def read_line(paths: LaunchPaths, index: int) -> dict[str, Any]:
    """Return one line of a launch's plan, without reading the others."""
    return read_some_lines(paths, [index])[index]


def read_some_lines(paths: LaunchPaths, indices: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Return lines of a launch's plan by their index, without reading the others."""
    lines = {}
    index, path = None, paths.plan
    try:
        with paths.offsets.open("rb") as offsets, path.open("rb") as plan:
            for index in indices:
                offsets.seek(index * (_OFFSET_WIDTH + 1))
                plan.seek(int(offsets.read(_OFFSET_WIDTH)))
                lines[index] = as_object(path, json.loads(plan.readline()))
    except (OSError, *NOT_JSON) as error:
        raise damaged(paths.plan, f"line {index}: {error}") from error
    return lines


def read_lines(paths: LaunchPaths) -> list[dict[str, Any]]:
    """Return all lines of a launch's plan. Raises StateError if one is damaged or missing."""
    try:
        text = b",".join(paths.plan.read_bytes().splitlines())
        lines = json.loads(b"[%b]" % text)  # all at once: half the time
        tasks = paths.offsets.stat().st_size // (_OFFSET_WIDTH + 1)
    except (OSError, *NOT_JSON) as error:
        raise damaged(paths.plan, str(error)) from error
    if len(lines) != tasks or not lines:  # runs that are forgotten would be run again
        raise damaged(paths.plan, f"it has {len(lines)} lines, and plan.offsets {tasks}")
    plan = paths.plan
    return [as_object(plan, line) for line in lines]


def read_config(paths: LaunchPaths, line: Mapping[str, Any], point: Point | None = None) -> dict[str, Any]:
    """Return a task's resolved config: its base with the leaves of its line set; of a trial, with those of its point.

    Before a trial has begun it has no `point`, and what is searched has a value that only stands for others.
    """
    if point and (trial := read_trial(paths, line)):
        return filled(trial.search, point)
    config = read_json(paths.base(line["base"]))
    try:
        for path, value in line["set"]:
            set_leaf(config, path, value)
    except (KeyError, TypeError) as error:
        raise damaged(paths.base(line["base"]), f"it has no {error}") from error
    return config


def braked(paths: LaunchPaths) -> dict[str, str]:
    """Return why runs of a launch were cancelled, by their id, where its brake has done it."""
    try:
        found = json.loads(paths.brake.read_bytes())
        return dict.fromkeys(found["runs"], str(found["reason"]))
    except (OSError, KeyError, TypeError, *NOT_JSON):
        return {}


def planned(line: Mapping[str, Any], launch: int) -> Planned:
    """Return what a plan's line asks for."""
    return Planned(
        run=RunId(line["run"]), launch=launch, index=line["index"], action=line["action"], attempt=line["attempt"],
        generation=line["generation"], history=line["history"], code=line["code"], point=line["point"],
        resources=Resources.from_json(line["resources"]),
    )  # fmt: skip


def wishes(launch: Launch) -> list[Planned]:
    number = launch.number
    try:
        return [planned(line, number) for line in read_lines(launch.paths)]
    except (KeyError, TypeError) as error:
        raise damaged(launch.paths.plan, f"a line has no {error}") from error
