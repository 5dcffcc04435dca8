"""What can never change any more, kept in the user's cache folder: the attempts of runs that have ended.

A run is kept once it is settled (`Record.settled`), and for as long as no later launch names it: the processes that
wrote its attempts are gone, and nobody starts another one unasked. A kept run is found by the launch that named it
last (its token) and by its folder's inode, so that an experiment that was deleted, restored or launched again is not
taken for the old one.

It lies in the user's cache and not in runs/: reading changes nothing there, who may only look at another's runs has
one too, and nobody needs to believe what another user wrote. It may be missing, damaged or another version's: then it
is not used. Writers replace the whole file; the last one wins, and what it does not hold is read from the runs.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Self

from orchestrator.errors import StateError
from orchestrator.layout import ExperimentPaths, cache_dir
from orchestrator.records.record import Attempt, Claim, Failure, Origin, RunState
from orchestrator.spec import RunId
from orchestrator.system.files import make_private, replace_bytes

_FIELDS = tuple(field.name for field in fields(Attempt))
_PACKAGE = Path(__file__).parents[1]
_FOLD = ("records/record.py", "records/attempts.py", "records/ended.py")
"""The code that decides what is kept: what other code has written is not used, so that no version has to be counted."""

_WORTH_A_FILE = 200
"""Fewer runs than that are read again from their own files in less time than a file of all takes to write."""

Key = tuple[str, int]
"""What a run is kept by: the token of the last launch that names it, and the inode of its folder."""


class EndedRuns:
    """The ended runs of an experiment: in memory, and, once they are many, in a file of the user's cache."""

    @classmethod
    def of(cls, experiment: ExperimentPaths) -> Self:
        """Return those of an experiment. Two that share a file by chance spoil it for each other, and no more."""
        place = zlib.crc32(os.fsencode(experiment.path.absolute()))
        return cls(cache_dir() / "records" / f"{experiment.name}-{place:08x}")

    def __init__(self, file: Path, *, worth_a_file: int = _WORTH_A_FILE) -> None:
        self._file, self._worth_a_file = file, worth_a_file
        self._runs: dict[RunId, tuple[Key, tuple[Attempt, ...]]] | None = None
        self._unsaved = 0

    def attempts(self, keys: Mapping[RunId, Key]) -> dict[RunId, tuple[Attempt, ...]]:
        """Return the attempts of the runs that are kept by these keys; others are forgotten."""
        runs = _load(self._file) if self._runs is None else self._runs
        self._runs = {run: kept for run, kept in runs.items() if keys.get(run) == kept[0]}
        if len(self._runs) < len(runs):  # forgotten in the file too: a folder may come again, with the same inode
            self._unsaved = self._worth_a_file
        return {run: attempts for run, (_, attempts) in self._runs.items()}

    def keep(self, runs: Mapping[RunId, tuple[Key, tuple[Attempt, ...]]]) -> None:
        """Keep more runs, which have ended."""
        self._runs = {**(self._runs or {}), **runs}
        self._unsaved += len(runs)
        if self._unsaved >= self._worth_a_file:
            _save(self._file, self._runs)
            self._unsaved = 0


def _load(file: Path) -> dict[RunId, tuple[Key, tuple[Attempt, ...]]]:
    try:
        seal, _, body = file.read_bytes().partition(b"\n")
    except OSError:
        return {}
    rows = json.loads(body) if seal == _seal(body) else []
    return {run: ((token, folder), tuple(map(_attempt, attempts))) for run, token, folder, attempts in rows}


def _save(file: Path, runs: Mapping[RunId, tuple[Key, tuple[Attempt, ...]]]) -> None:
    rows = [[run, *key, list(map(_to_json, attempts))] for run, (key, attempts) in runs.items()]
    body = json.dumps(rows, separators=(",", ":")).encode()
    try:
        make_private(file.parent)
        replace_bytes(file, _seal(body) + b"\n" + body)
    except (OSError, StateError):
        return  # it only costs time


def _seal(body: bytes) -> bytes:
    """Return the first line of a file: by which code it was written, and what shows that it is whole."""
    code = zlib.crc32(b"".join((_PACKAGE / name).read_bytes() for name in _FOLD))
    return b"%08x %08x %d" % (code, zlib.crc32(body), len(body))


def _to_json(attempt: Attempt) -> list[object]:
    values = {name: getattr(attempt, name) for name in _FIELDS}
    claim, failure, origin = attempt.claim, attempt.failure, attempt.origin
    values |= {"claim": claim and claim.to_json(), "failure": failure and asdict(failure)}
    return [*(values | {"origin": origin and asdict(origin)}).values()]


def _attempt(row: Sequence[Any]) -> Attempt:
    values = dict(zip(_FIELDS, row, strict=True))
    claim, failure, origin = values["claim"], values["failure"], values["origin"]
    values["state"] = RunState(values["state"])
    values["claim"] = claim and Claim.from_json(claim)
    values["failure"] = failure and Failure(**failure)
    values["origin"] = origin and Origin(**origin)
    return Attempt(**values)
