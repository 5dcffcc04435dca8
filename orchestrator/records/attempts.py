"""Attempts on disk: claimed once, then written by one process; and what observers saw of them."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from orchestrator.config.credentials import Redact, unchanged
from orchestrator.errors import StateError
from orchestrator.layout import ATTEMPT_NAME, AttemptPaths, ExperimentPaths, LaunchPaths, RunPaths
from orchestrator.records.record import EVENT_VERSION, Attempt, Claim, Event, RunState, fold, parse_event
from orchestrator.system.files import (
    NOT_JSON,
    again,
    draft_of,
    make_private,
    names_in,
    open_file,
    read_bytes,
    take_by_rename,
    unreadable,
    write_text,
)

_OUTPUT_BYTES = 65_536
_TEXTS = ("signature", "message", "traceback", "reason")
"""What an event holds for people; what programs read, such as a checkpoint's path, must stay as it is."""
_OBSERVED = re.compile(r"a(\d{3,})\.[0-9a-f]+\.jsonl")
_MARK = re.compile(r"([0-9a-f]+)\.a(\d{3,})\.([a-z]+)")
_ENDINGS = (RunState.RUNNING, RunState.INTERRUPTED, RunState.CANCELLED, RunState.FAILED, RunState.DONE)
_STRENGTH = {state.value: number for number, state in enumerate(_ENDINGS)}


def claim_attempt(attempt: AttemptPaths, claim: Claim) -> bool:
    """Take an attempt by renaming a folder that holds the claim to it; False if somebody has taken it.

    Nobody ever sees an attempt without its claim: who takes over from a dead supervisor must know whose it is.
    """
    make_private(attempt.path.parent)
    with draft_of(attempt.path) as draft:
        make_private(draft)
        write_text(AttemptPaths(draft).claim, json.dumps(claim.to_json()))
        return take_by_rename(draft, attempt.path, mine=lambda: read_claim(attempt) == claim)


def is_superseded(attempt: AttemptPaths) -> bool:
    """Return whether a later attempt of the run has been claimed, by one listing.

    Then this one is to end, and to write nothing outside its own folder. A folder that cannot be listed proves nothing.
    """
    try:
        return RunPaths(attempt.path.parent).attempts()[-1].number > attempt.number
    except (OSError, LookupError):
        return False


def read_claim(attempt: AttemptPaths) -> Claim | None:
    """Return who took an attempt; None where the folder exists, but the claim was never written."""
    try:
        return Claim.from_json(json.loads(read_bytes(attempt.claim)))
    except (OSError, KeyError, TypeError, *NOT_JSON):
        return None


class EventWriter:
    """Appends the events of one attempt. One process writes; each line is one write to an O_APPEND file.

    `redact` takes out of the texts of an event what may not be written; not out of what is read by programs.
    """

    def __init__(self, path: Path, *, redact: Redact = unchanged) -> None:
        self._path, self._sequence, self._torn, self.redact = path, 0, False, redact
        self._lock = threading.Lock()

    def write(self, kind: str, **data: object) -> Event:
        with self._lock:
            return self._write(kind, data)

    def _write(self, kind: str, data: dict[str, object]) -> Event:
        event = Event(sequence=self._sequence, kind=kind, time=time.time(), data=data)
        texts = {key: self.redact(data[key]) for key in _TEXTS if key in data}
        line = json.dumps({**event.to_json(), **texts}, default=lambda value: self.redact(str(value)))
        line += "\n"
        left = ("\n" + line if self._torn else line).encode()  # what a full disk cut off must not swallow this one
        descriptor = again(lambda: os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        try:
            self._torn = True
            while left:
                left = left[os.write(descriptor, left) :]
            self._torn = False
        finally:
            os.close(descriptor)
        self._sequence += 1
        return event


def write_observed(run: RunPaths, attempt: int, kind: str, **data: object) -> None:
    """Record what an observer saw of an attempt that ended without a final event, in a file of its own."""
    import uuid

    make_private(run.observed)
    EventWriter(run.observed / f"a{attempt:03d}.{uuid.uuid4().hex[:8]}.jsonl").write(kind, **data)


def mark_state(experiment: ExperimentPaths, run_id: str, attempt: int, state: str) -> None:
    """Leave an empty file in the index: one listing of it counts an experiment's runs by state."""
    make_private(experiment.index)
    mark = experiment.index / f"{run_id}.a{attempt:03d}.{state}"
    again(lambda: mark.touch(mode=0o600))


def strength_of(state: str) -> int:
    """Return which of an attempt's marks counts: it may first be taken for interrupted, and then have failed."""
    return _STRENGTH.get(state, 0)


def read_marks(experiment: ExperimentPaths) -> dict[str, tuple[int, str]]:
    """Return the last attempt of each run that has started, and its state, from the index alone."""
    last: dict[str, tuple[int, int, str]] = {}
    for match in filter(None, map(_MARK.fullmatch, names_in(experiment.index))):
        run_id, attempt, state = match.groups()
        key = (int(attempt), strength_of(state), state)
        last[run_id] = max(last.get(run_id, key), key)
    return {run_id: (attempt, state) for run_id, (attempt, _, state) in last.items()}


def read_attempts(run: RunPaths) -> tuple[Attempt, ...]:
    """Return the attempts of a run, oldest first: those that were claimed, and those that only an observer saw."""
    found = names_in(run.path)
    # An attempt that failed before it could claim its folder is known only by what its supervisor saw.
    observed = names_in(run.observed) if run.observed.name in found else []
    matches = (*map(ATTEMPT_NAME.fullmatch, found), *map(_OBSERVED.fullmatch, observed))
    numbers = sorted({int(match[1]) for match in matches if match})
    return tuple(_read(run, run.attempt(number), observed) for number in numbers)


def read_attempt(run: RunPaths, attempt: AttemptPaths) -> Attempt:
    """Return the fold of one attempt's events and of what observers saw of it."""
    return _read(run, attempt, names_in(run.observed))


def _read(run: RunPaths, attempt: AttemptPaths, observed: Iterable[str]) -> Attempt:
    """Return the fold of one attempt; `observed` are the names of the files that observers wrote of the run."""
    seen = [run.observed / name for name in _event_files(observed, f"{attempt.path.name}.")]
    ranks = [attempt.path / name for name in _event_files(names_in(attempt.path), "events.rank")]
    return fold(
        attempt.number,
        read_claim(attempt),
        read_events(attempt.events),
        chain.from_iterable(map(read_events, seen)),
        chain.from_iterable(map(read_events, ranks)),
    )


def _event_files(found: Iterable[str], start: str) -> list[str]:
    return sorted(name for name in found if name.startswith(start) and name.endswith(".jsonl"))


def read_events(path: Path) -> Iterator[Event]:
    """Yield the events of a file; what is torn, NUL or foreign is skipped."""
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise unreadable(path, error, error.strerror or "") from error
    for value in _values(content):
        if isinstance(value, dict) and type(version := value.get("v")) is int and version > EVENT_VERSION:
            raise StateError(  # a run that is done would be taken for interrupted, and run again
                f"{path} has events of version {version}",
                why=f"this version reads {EVENT_VERSION}",
                fix="use the version of orch that ran the job, or a newer one",
            )
        try:
            event = parse_event(value)
        except (TypeError, AttributeError, *NOT_JSON):
            continue
        if event is not None:
            yield event


def _values(content: bytes) -> list[Any]:
    """Return the JSON values of lines, those left out that are none."""
    lines = [line for line in content.split(b"\n") if line.strip(b"\0")]
    try:
        values = json.loads(f"[{b','.join(lines).decode()}]")  # all at once: a third of the time
    except NOT_JSON:
        values = []
    return values if len(values) == len(lines) else list(_each(lines))


def _each(lines: Iterable[bytes]) -> Iterator[object]:
    for line in lines:
        with suppress(*NOT_JSON):
            yield json.loads(line.decode())


def read_job_output(launch: LaunchPaths, job: str, *, processes: int = 1) -> str:
    """Return the end of what a scheduler's job printed outside the logs of its run."""
    found = [_end(path) for path in launch.outputs(job, processes=processes)]
    return "".join(found)


def _end(path: Path) -> str:
    try:
        with open_file(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _OUTPUT_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
