"""The records on disk: launches published whole, attempts claimed once, events appended by one writer.

`mkdir` and `rename` are the only locks (atomic on NFS too); nothing here relies on flock.
Reading never writes. Torn or NUL lines at the end of a file that a dying process left are skipped.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.cluster import Cluster
from orchestrator.errors import StateError
from orchestrator.layout import AttemptPaths, ExperimentPaths, LaunchPaths, RunPaths
from orchestrator.process import ProcessId
from orchestrator.record import (
    Attempt,
    Claim,
    Event,
    JobState,
    Observation,
    Planned,
    Record,
    RunState,
    fold,
    parse_event,
    reconcile,
)
from orchestrator.spec import Resources, RunId

FORMAT_VERSION = 1
_OFFSET_WIDTH = 16
_OUTPUT_BYTES = 65_536
_NOT_JSON = (ValueError, RecursionError)
_HEADER = frozenset({"token", "time", "user", "process", "cluster"})
_MARK = re.compile(r"([0-9a-f]+)\.a(\d{3,})\.([a-z]+)")
_OBSERVED = re.compile(r"a(\d{3,})\.[0-9a-f]+\.jsonl")


# --- launches ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A published launch: its folder, its header, and who published it."""

    paths: LaunchPaths
    header: Mapping[str, Any]

    @property
    def number(self) -> int:
        return self.paths.number

    @property
    def launcher(self) -> ProcessId:
        return ProcessId.from_json(self.header["process"])


def read_launch(paths: LaunchPaths) -> Launch:
    """Return a launch. Raises StateError if its header is damaged."""
    header = _read_json(paths.header)
    if header.get("v") != FORMAT_VERSION:
        raise StateError(
            f"{paths.header} has format {header.get('v')!r}", why=f"this version reads {FORMAT_VERSION}",
            fix="use the version of orch that wrote it",
        )  # fmt: skip
    if missing := _HEADER - header.keys():
        raise _damaged(paths.header, f"it lacks {', '.join(sorted(missing))}")
    return Launch(paths=paths, header=header)


def publish(
    experiment: ExperimentPaths,
    number: int,
    header: Mapping[str, Any],
    bases: Sequence[Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
) -> LaunchPaths | None:
    """Publish launch `number` whole, by one rename; None if somebody else has published it first.

    This is the compare-and-swap of a launch: it was planned against all launches before `number`.
    """
    folder = experiment.path / "launches"
    make_private(folder)
    token = uuid.uuid4().hex
    temporary = LaunchPaths(folder / f".tmp-{token}")
    make_private(temporary.cancelled)
    body = {
        "v": FORMAT_VERSION, "token": token, "time": time.time(), "user": getpass.getuser(),
        "process": ProcessId.current().to_json(), **header,
    }  # fmt: skip
    _write(temporary.header, json.dumps(body, indent=1))
    for i, base in enumerate(bases):
        _write(temporary.base(i), json.dumps(base))
    _write_lines(temporary, lines)
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
    _write(paths.offsets, "".join(offsets))


def read_line(paths: LaunchPaths, index: int) -> dict[str, Any]:
    """Return one line of a launch's plan, without reading the others."""
    try:
        with paths.offsets.open("rb") as offsets:
            offsets.seek(index * (_OFFSET_WIDTH + 1))
            offset = int(offsets.read(_OFFSET_WIDTH))
        with paths.plan.open("rb") as plan:
            plan.seek(offset)
            line = json.loads(plan.readline())
    except (OSError, *_NOT_JSON) as error:
        raise _damaged(paths.plan, f"line {index}: {error}") from error
    return _object(paths.plan, line)


def read_lines(paths: LaunchPaths) -> list[dict[str, Any]]:
    """Return all lines of a launch's plan. Raises StateError if one is damaged or missing."""
    try:
        lines = [json.loads(line) for line in paths.plan.read_bytes().splitlines()]
        tasks = paths.offsets.stat().st_size // (_OFFSET_WIDTH + 1)
    except (OSError, *_NOT_JSON) as error:
        raise _damaged(paths.plan, str(error)) from error
    if len(lines) != tasks or not lines:  # runs that are forgotten would be run again
        raise _damaged(paths.plan, f"it has {len(lines)} lines, and plan.offsets {tasks}")
    return [_object(paths.plan, line) for line in lines]


def read_config(paths: LaunchPaths, line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's resolved config: its base with the leaves of its line set."""
    config = _read_json(paths.base(line["base"]))
    try:
        for path, value in line["set"]:
            node = config
            for key in path[:-1]:
                node = node[key]
            node[path[-1]] = value
    except (KeyError, TypeError) as error:
        raise _damaged(paths.base(line["base"]), f"it has no {error}") from error
    return config


def planned(line: Mapping[str, Any], launch: int) -> Planned:
    """Return what a plan's line asks for."""
    return Planned(
        run=RunId(line["run"]), launch=launch, index=line["index"], action=line["action"], attempt=line["attempt"],
        generation=line["generation"], history=line["history"], code=line["code"], point=line["point"],
        resources=Resources(**line["resources"]),
    )  # fmt: skip


def _wishes(launch: Launch) -> list[Planned]:
    try:
        return [planned(line, launch.number) for line in read_lines(launch.paths)]
    except (KeyError, TypeError) as error:
        raise _damaged(launch.paths.plan, f"a line has no {error}") from error


# --- attempts ---------------------------------------------------------------------------------------------


def claim_attempt(attempt: AttemptPaths, claim: Claim) -> bool:
    """Take an attempt by renaming a folder that holds the claim to it; False if somebody has taken it.

    Nobody ever sees an attempt without its claim: who takes over from a dead supervisor must know whose it is.
    """
    make_private(attempt.path.parent)
    draft = AttemptPaths(attempt.path.with_name(f".tmp-{attempt.path.name}-{uuid.uuid4().hex}"))
    make_private(draft.path)
    _write(draft.claim, json.dumps(claim.to_json()))
    try:
        draft.path.rename(attempt.path)
    except OSError:
        # As in publish: over NFS a rename may succeed and be reported as failed.
        mine = read_claim(attempt) == claim
        shutil.rmtree(draft.path, ignore_errors=True)
        return mine
    return True


def read_claim(attempt: AttemptPaths) -> Claim | None:
    """Return who took an attempt; None where the folder exists, but the claim was never written."""
    try:
        return Claim.from_json(json.loads(attempt.claim.read_bytes()))
    except (OSError, KeyError, TypeError, *_NOT_JSON):
        return None


class EventWriter:
    """Appends the events of one attempt. One process writes; each line is one write to an O_APPEND file."""

    def __init__(self, path: Path) -> None:
        self._path, self._sequence, self._torn = path, 0, False

    def write(self, kind: str, **data: Any) -> Event:
        event = Event(sequence=self._sequence, kind=kind, time=time.time(), data=data)
        line = json.dumps(event.to_json(), default=str) + "\n"
        left = ("\n" + line if self._torn else line).encode()  # what a full disk cut off must not swallow this one
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._torn = True
            while left:
                left = left[os.write(descriptor, left) :]
            self._torn = False
        finally:
            os.close(descriptor)
        self._sequence += 1
        return event


def write_observed(run: RunPaths, attempt: int, kind: str, **data: Any) -> None:
    """Record what an observer saw of an attempt that ended without a word, in a file of its own."""
    make_private(run.observed)
    EventWriter(run.observed / f"a{attempt:03d}.{uuid.uuid4().hex[:8]}.jsonl").write(kind, **data)


def mark(experiment: ExperimentPaths, run_id: str, attempt: int, state: str) -> None:
    """Leave an empty file in the index: one listing of it counts an experiment's runs by state."""
    make_private(experiment.index)
    (experiment.index / f"{run_id}.a{attempt:03d}.{state}").touch(mode=0o600)


def counts(experiment: ExperimentPaths) -> dict[str, int]:
    """Return the number of runs by the state of their last attempt, from the index alone."""
    last: dict[str, tuple[int, bool, bool, str]] = {}
    for match in filter(None, map(_MARK.fullmatch, _names(experiment.index))):
        run_id, attempt, state = match.groups()
        key = (int(attempt), state != RunState.RUNNING, state == RunState.DONE, state)
        last[run_id] = max(last.get(run_id, key), key)
    states = [state for *_, state in last.values()]
    return {state: states.count(state) for state in sorted(set(states))}


def read_attempt(run: RunPaths, attempt: AttemptPaths) -> Attempt:
    """Return the fold of one attempt's events and of what observers saw of it."""
    observed = [e for path in _event_files(run.observed, f"a{attempt.number:03d}.") for e in read_events(path)]
    ranks = [e for path in _event_files(attempt.path, "events.rank") for e in read_events(path)]
    return fold(attempt.number, read_claim(attempt), read_events(attempt.events), observed, ranks)


def read_events(path: Path) -> Iterator[Event]:
    """Yield the events of a file; what is torn, NUL or foreign is skipped."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    for line in lines:
        try:
            event = parse_event(json.loads(line.decode())) if line.strip(b"\0") else None
        except (TypeError, AttributeError, *_NOT_JSON):
            continue
        if event is not None:
            yield event


def _event_files(folder: Path, start: str) -> list[Path]:
    """Return a folder's event files by the start of their names; a glob takes eight times as long."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [folder / name for name in names if name.startswith(start) and name.endswith(".jsonl")]


def job_output(launch: LaunchPaths, job: str, *, processes: int = 1) -> str:
    """Return the end of what a scheduler's job printed outside the logs of its run."""
    found = [_end(path) for path in launch.outputs(job, processes=processes)]
    return "".join(found)


def _end(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _OUTPUT_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


# --- records ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All that is known of an experiment at one moment."""

    experiment: ExperimentPaths
    launches: tuple[Launch, ...]
    records: Mapping[RunId, Record]

    def launch(self, number: int) -> Launch:
        return next(launch for launch in self.launches if launch.number == number)


def read(experiment: ExperimentPaths, cluster_of: Mapping[str, Cluster]) -> Ledger:
    """Return an experiment's launches and records. `cluster_of` maps a cluster's kind to one that can be asked."""
    launches = tuple(read_launch(paths) for paths in experiment.launches())
    latest: dict[RunId, Planned] = {}
    for launch in launches:
        latest |= {wish.run: wish for wish in _wishes(launch)}
    started = set(_names(experiment.path / "runs"))
    attempts = {run_id: _attempts(experiment, run_id) if run_id in started else () for run_id in latest}
    seen = _observe(launches, latest, attempts, cluster_of)
    # An attempt may have begun, or ended with a last word, between our reading it and the scheduler's answer.
    ended = [run_id for run_id, observation in seen.items() if observation.state is JobState.ENDED]
    attempts |= {run_id: _attempts(experiment, run_id) for run_id in ended}
    cancelled = {launch.number: set(_names(launch.paths.cancelled)) for launch in launches}
    records = {
        run_id: reconcile(
            wish, attempts[run_id], observation=seen.get(run_id), cancelled=run_id in cancelled[wish.launch]
        )
        for run_id, wish in latest.items()
    }
    return Ledger(experiment=experiment, launches=launches, records=records)


def _attempts(experiment: ExperimentPaths, run_id: RunId) -> tuple[Attempt, ...]:
    run = experiment.run(run_id)
    # An attempt that failed before it could claim its folder is known only by what its supervisor saw.
    seen = {int(match[1]) for match in map(_OBSERVED.fullmatch, _names(run.observed)) if match}
    numbers = sorted(seen | {attempt.number for attempt in run.attempts()})
    return tuple(read_attempt(run, run.attempt(number)) for number in numbers)


def _observe(
    launches: Iterable[Launch], latest: Mapping[RunId, Planned],
    attempts: Mapping[RunId, Sequence[Attempt]], cluster_of: Mapping[str, Cluster],
) -> dict[RunId, Observation]:  # fmt: skip
    """Ask the clusters about the runs that have no final event for what their latest plan wants."""
    asked: dict[int, dict[int, RunId]] = {}
    for run_id, wish in latest.items():
        last = attempts[run_id][-1] if attempts[run_id] else None
        if last is None or last.number < wish.attempt or last.state in {RunState.RUNNING, RunState.INTERRUPTED}:
            # A launch that was thought lost may have come to work before the one that took its runs over.
            claim = last.claim if last and last.number >= wish.attempt else None
            number, index = (claim.launch, claim.index) if claim else (wish.launch, wish.index)
            asked.setdefault(number, {})[index] = run_id
    answers: dict[RunId, Observation] = {}
    for launch in launches:
        tasks = asked.get(launch.number, {})
        found = _ask(launch, tasks.keys(), cluster_of) if tasks else {}
        answers |= {tasks[index]: observation for index, observation in found.items() if index in tasks}
    return answers


def _ask(launch: Launch, tasks: Collection[int], cluster_of: Mapping[str, Cluster]) -> Mapping[int, Observation]:
    if not launch.paths.complete.exists() and (alive := launch.launcher.alive()) is not False:
        told = f"being submitted by process {launch.launcher.pid} on {launch.launcher.host}"
        state = JobState.PENDING if alive else JobState.UNKNOWN
        return dict.fromkeys(tasks, Observation(state=state, reason=told))
    kind = str(launch.header["cluster"]["kind"])
    if kind not in cluster_of:
        return dict.fromkeys(tasks, Observation(state=JobState.UNKNOWN, reason=f"cluster {kind} is not known here"))
    return cluster_of[kind].observe(launch.paths, tasks)


# --- files ------------------------------------------------------------------------------------------------


def make_private(folder: Path) -> None:
    """Make a folder, and those above it, for this user alone. Raises StateError where that is impossible."""
    try:
        if not folder.is_dir():
            make_private(folder.parent)
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StateError(
            f"cannot make {folder}", why=error.strerror or str(error),
            fix="choose another folder for runs with --runs or $ORCH_RUNS",
        ) from error  # fmt: skip


def check_private(folder: Path) -> None:
    """Refuse a folder that others may write: they could make this user's jobs run their code."""
    status = folder.stat()
    if status.st_uid not in {os.getuid(), 0}:
        raise StateError(
            f"{folder} belongs to another user (uid {status.st_uid})", why="its owner could change what your jobs run",
            fix="choose another folder for runs with --runs or $ORCH_RUNS",
        )  # fmt: skip
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise StateError(
            f"others may write {folder} (mode {stat.S_IMODE(status.st_mode):04o})",
            why="they could change what your jobs run", fix=f"chmod go-w {folder}",
        )  # fmt: skip


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees it whole or not at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    _write(temporary, text)
    temporary.replace(path)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, *_NOT_JSON) as error:
        raise _damaged(path, str(error)) from error
    return _object(path, value)


def _object(path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _damaged(path, f"it holds {str(value)[:40]!r} instead of a JSON object")
    return value


def _damaged(path: Path, why: str) -> StateError:
    return StateError(
        f"{path} is damaged", why=why,
        fix=f"restore it from a backup, or move {path.parent} away; the runs' own folders stay as they are",
    )  # fmt: skip


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
