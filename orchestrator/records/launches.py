"""Launches on disk: published whole by one rename, then only read; and the user's own memory of those made here."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import StateError
from orchestrator.layout import ExperimentPaths, LaunchPaths, RunsRoot, state_dir
from orchestrator.records.header import LaunchHeader, parse_header
from orchestrator.records.planned import PlannedRun, set_leaf, write_plan
from orchestrator.spec import Config, Point
from orchestrator.system.files import (
    NOT_JSON,
    PRIVATE,
    create,
    damaged,
    listed,
    make_own,
    make_private,
    parsing,
    read_bytes,
    read_json,
    replace_text,
    reporting_write_errors,
    take_by_rename,
    write_text,
)
from orchestrator.system.processes import ProcessId

if TYPE_CHECKING:
    from orchestrator.spec.search import Search

SILENT_SECONDS = 300.0
"""Who submits touches the launch's folder before each request, which takes seconds; a process that cannot be asked
here, and has been silent for this long, is taken for dead. If that is wrong, still no run starts twice: see
`slurm/leases.py`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A published launch: its folder, its header, and who published it."""

    paths: LaunchPaths
    header: LaunchHeader

    @property
    def number(self) -> int:
        return self.paths.number

    @property
    def token(self) -> str:
        """What tells it from every other launch, also from one of the same number in another time or place."""
        return self.header.token

    @property
    def launcher(self) -> ProcessId:
        return self.header.process


def read_launch(paths: LaunchPaths) -> Launch:
    """Return a launch. Raises StateError if its header is damaged."""
    return Launch(paths=paths, header=parse_header(paths.header, read_json(paths.header)))


def was_made_here(launch: Launch) -> bool:
    """Return whether this user has made a launch, or adopted it, and not one that it was copied from."""
    try:
        return _memory(launch.token, launch.paths.path).exists()
    except (OSError, ValueError):  # there is no such folder, or its token cannot be a name
        return False


def remember(token: str, folder: Path) -> None:
    """Keep in the user's own state that they have made a launch. Raises StateError where that cannot be written."""
    choose = "choose another folder for your own state with $XDG_STATE_HOME"
    memory = _memory(token, folder)
    make_own(state_dir())
    make_private(memory.parent, choose=choose)
    with reporting_write_errors(memory.parent, choose=choose), suppress(FileExistsError):
        create(memory, PRIVATE)


def _memory(token: str, folder: Path) -> Path:
    """Return the empty file that stands for a launch: its token and its folder's inode, which no copy has."""
    if not token.isalnum():
        raise ValueError(token)
    return state_dir() / "launches" / f"{token}.{folder.stat().st_ino}"


def is_submitting(launch: Launch) -> bool | None:
    """Return whether the launch's own launcher still submits it; None if it may: nobody here can ask it."""
    if listed(launch.paths.complete):
        return False
    alive = launch.launcher.alive()
    silent = time.time() - launch.paths.path.stat().st_mtime > SILENT_SECONDS
    return False if alive is None and silent else alive


def publish_launch(
    experiment: ExperimentPaths,
    number: int,
    header: LaunchHeader,
    bases: Sequence[Config],
    runs: Iterable[PlannedRun],
    *,
    searches: Iterable[Search] = (),
    packs: Sequence[Sequence[int]] = (),
) -> LaunchPaths | None:
    """Publish launch `number` whole, by one rename; None if somebody else has published it first.

    This is the compare-and-swap of a launch: it was planned against all launches before `number`. `packs` are the
    indices of runs that share a job.
    """
    folder = experiment.path / "launches"
    make_private(folder)
    temporary = LaunchPaths(folder / f".tmp-{header.token}")
    try:
        with reporting_write_errors(temporary.path):
            make_private(temporary.cancelled)
            write_text(temporary.header, json.dumps(header.to_json(), indent=1))
            for i, base in enumerate(bases):
                write_text(temporary.base(i), json.dumps(base))
            write_plan(temporary, runs)
            for search in searches:
                write_text(temporary.search(search.id), json.dumps(search.to_json()))
            if packs:
                write_text(temporary.packs, json.dumps(packs))
        remember(header.token, temporary.path)  # first: who looks once it is published takes it for what it is
    except StateError:
        shutil.rmtree(temporary.path, ignore_errors=True)  # its rename comes later
        raise
    return _swap(temporary, experiment.launch(number), header.token)


def _swap(temporary: LaunchPaths, final: LaunchPaths, token: str) -> LaunchPaths | None:
    def is_ours() -> bool:
        return listed(final.header) and read_launch(final).token == token

    try:
        return final if take_by_rename(temporary.path, final.path, mine=is_ours) else None
    except OSError as error:
        raise StateError(
            f"cannot publish {final.path}",
            why=error.strerror or str(error),
            fix="free some space, or choose another folder for runs with --runs or $ORCH_RUNS",
        ) from error


def read_run_config(paths: LaunchPaths, planned: PlannedRun, point: Point | None = None) -> dict[str, Any]:
    """Return a task's resolved config: its base with its changes made; of a trial, with those of its point.

    Before a trial has begun it has no `point`, and what is searched has a value that only stands for others.
    """
    if point:
        from orchestrator.records.searches import read_trial, trial_config

        if trial := read_trial(paths, planned):
            with parsing(paths.search(trial.search.id)):
                return trial_config(trial.search, point)
    config = read_json(paths.base(planned.base))
    try:
        for path, value in planned.changes:
            set_leaf(config, path, value)
    except NOT_JSON as error:
        raise damaged(paths.base(planned.base), f"it has no {error}") from error
    return config


def read_failure_limit_reasons(paths: LaunchPaths) -> dict[str, str]:
    """Return why runs of a launch were cancelled, by their id, where the failure limit has done it."""
    try:
        found = json.loads(read_bytes(paths.brake))
        return dict.fromkeys(found["runs"], str(found["reason"]))
    except (OSError, KeyError, TypeError, *NOT_JSON):
        return {}


def ignore_in_git(runs: RunsRoot) -> None:
    """Make the runs/ folder, and keep it out of the user's git."""
    make_private(runs.path)
    ignore = runs.path / ".gitignore"
    if not ignore.exists():
        replace_text(ignore, "*\n")
