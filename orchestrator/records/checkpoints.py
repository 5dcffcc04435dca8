"""The checkpoints that a run resumes from, as they lie on disk. Finding them needs no torch.

    <attempt>/state/step-120.ckpt          the whole state after 120 steps; never written again under this name
    <attempt>/state/latest.json            the file to resume from, and the ones before it; written after them
    <attempt>/state/best.ckpt              for people: another name of the best one, which the record names by its step
    <attempt>/checkpoints/                 what callbacks of the user's own save; never read

The pointer has each file's size and hash, and how many bytes of the attempt's metrics the run had written by then:
a damaged file is passed over for the one before it.

Version 0.1 kept `checkpoints/last.ckpt` and `checkpoints/best.ckpt`, among the user's own files. They are still read,
in attempts that have no `state/`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.layout import LAST, AttemptPaths, RunPaths
from orchestrator.system.files import NOT_JSON, lies_in, listed, names_in, read_bytes, replace_text

_log = logging.getLogger(__name__)
_VERSION = 1
_NAME = re.compile(r"step-(\d+)(?:-(\d+))?\.ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint of the engine's. What is not known of it is None.

    `bytes` and `sha256` are of its content. `metrics_bytes`: the size of the attempt's metric log when it was saved.
    """

    path: Path
    step: int | None = None
    epoch: int | None = None
    bytes: int | None = None
    sha256: str | None = None
    metrics_bytes: int | None = None

    @property
    def attempt(self) -> int:
        return AttemptPaths(self.path.parent.parent).number

    def to_json(self) -> dict[str, object]:
        return {"file": self.path.name, **{key: getattr(self, key) for key in _NUMBERS}, "sha256": self.sha256}

    def problem(self) -> str:
        """Return why the file cannot be what was saved, or nothing. Reads all of it where its hash is known."""
        try:
            found = self.path.stat()
            if self.bytes is not None and found.st_size != self.bytes:
                return f"it has {found.st_size} bytes, and {self.bytes} were saved"
            if self.sha256 is not None and sha256_of(self.path) != self.sha256:
                return "its content has changed since it was saved"
            if self.sha256 is None and stat.S_ISREG(found.st_mode) and not zipfile.is_zipfile(self.path):
                return "its end is missing"
        except FileNotFoundError:
            return "it is missing"
        return ""


_NUMBERS = ("step", "epoch", "bytes", "metrics_bytes")


def write_latest(attempt: AttemptPaths, saved: Sequence[Checkpoint]) -> None:
    """Name the checkpoints that the attempt's run can resume from, the newest first. They must be whole already."""
    newest, *before = [one.to_json() for one in saved]
    pointer = {"v": _VERSION, **newest, "before": before}
    replace_text(attempt.latest, json.dumps(pointer), sync=True)


def best_of(run: RunPaths, best: Mapping[str, object]) -> Path | None:
    """Return the checkpoint that a record names as the best one; None where it names none of the run's own files."""
    found = run.path / str(best.get("checkpoint") or "")
    return found if found.suffix and lies_in(found, run.path) else None


def latest_of(attempt: AttemptPaths) -> Path | None:
    """Return the checkpoint that an attempt saved last; None where it saved none. Its content is not looked at."""
    return next((one.path for one in _candidates(attempt)), None)


def _candidates(attempt: AttemptPaths) -> Iterator[Checkpoint]:
    """Yield the checkpoints of an attempt that are there: those that its pointer names, then the others.

    Each became whole before it got its name. Another node may see the pointer of a moment ago, by when that file was
    removed: without the others, the run would start from scratch there.
    """
    if not listed(attempt.state):
        if listed(found := attempt.checkpoints / LAST):
            yield Checkpoint(path=found)
        return
    there = {name: order for name in names_in(attempt.state) if (order := _order(name))}
    for one in _named(attempt):
        if there.pop(one.path.name, None):
            yield one
    for name in sorted(there, key=lambda name: there[name], reverse=True):
        yield Checkpoint(path=attempt.state / name, step=there[name][0])


def _named(attempt: AttemptPaths) -> list[Checkpoint]:
    try:
        pointer = json.loads(read_bytes(attempt.latest))
        return [_parsed(attempt, one) for one in (pointer, *pointer.get("before", []))]
    except (OSError, KeyError, TypeError, AttributeError, *NOT_JSON):
        return []


def _parsed(attempt: AttemptPaths, value: Mapping[str, Any]) -> Checkpoint:
    name = Path(str(value["file"])).name  # a name, never a path
    numbers = {key: value[key] if isinstance(value.get(key), int) else None for key in _NUMBERS}
    sha256 = value.get("sha256")
    return Checkpoint(path=attempt.state / name, **numbers, sha256=sha256 if isinstance(sha256, str) else None)


def _order(name: str) -> tuple[int, int] | None:
    """Return the step in a checkpoint's name, and how many of this step were saved before; None for other files."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def latest(attempts: Sequence[AttemptPaths]) -> Path | None:
    """Return the newest checkpoint of the given attempts, the latest attempt first. Its content is not looked at."""
    return next((found for attempt in _newest_first(attempts) if (found := latest_of(attempt))), None)


def to_resume(attempts: Sequence[AttemptPaths]) -> Checkpoint | None:
    """Return the newest checkpoint of the given attempts that is undamaged; say which ones are passed over."""
    for attempt in _newest_first(attempts):
        for candidate in _candidates(attempt):
            if not (problem := candidate.problem()):
                return candidate
            _log.warning("not resumed from %s: %s", candidate.path, problem)
    return None


def _newest_first(attempts: Sequence[AttemptPaths]) -> list[AttemptPaths]:
    return sorted(attempts, key=lambda attempt: attempt.number, reverse=True)


def saved_by(attempt: AttemptPaths) -> list[Path]:
    """Return the files of the checkpoints that the engine has saved in an attempt, each once."""
    folder = attempt.state if listed(attempt.state) else attempt.checkpoints
    files = {path.stat().st_ino: path for path in sorted(folder.glob("*.ckpt"))}
    return sorted(files.values())


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
