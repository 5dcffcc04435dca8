"""The checkpoints that a run resumes from, as they lie on disk. Finding them needs no torch.

    <attempt>/state/step-120.ckpt          the whole state after 120 steps; never written again under this name
    <attempt>/state/latest.json            the file to resume from, written after it
    <attempt>/state/best.ckpt              for people: another name of the best one, which the record names by its step
    <attempt>/checkpoints/                 what callbacks of the user's own save; never read

Version 0.1 kept `checkpoints/last.ckpt` and `checkpoints/best.ckpt`, among the user's own files. They are still read,
in attempts that have no `state/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.layout import LAST, AttemptPaths, RunPaths
from orchestrator.system.files import NOT_JSON, lies_in, listed, read_bytes, replace_text

_VERSION = 1
_NAME = re.compile(r"step-(\d+)(?:-(\d+))?\.ckpt")


def write_latest(attempt: AttemptPaths, checkpoint: Path, *, step: int, epoch: int) -> None:
    """Name the checkpoint that the attempt's run resumes from. It must be whole already."""
    pointer = {"v": _VERSION, "file": checkpoint.name, "step": step, "epoch": epoch, "bytes": checkpoint.stat().st_size}
    replace_text(attempt.latest, json.dumps(pointer), sync=True)


def best_of(run: RunPaths, best: Mapping[str, object]) -> Path | None:
    """Return the checkpoint that a record names as the best one; None where it names none of the run's own files."""
    found = run.path / str(best.get("checkpoint") or "")
    return found if found.suffix and lies_in(found, run.path) else None


def latest_of(attempt: AttemptPaths) -> Path | None:
    """Return the checkpoint that an attempt saved last; None where it saved none."""
    if not listed(attempt.state):
        return found if listed(found := attempt.checkpoints / LAST) else None
    try:
        name = str(json.loads(read_bytes(attempt.latest))["file"])
    except (OSError, KeyError, TypeError, *NOT_JSON):
        name = ""
    found = attempt.state / Path(name).name  # a name, never a path
    return found if _order(found) and listed(found) else _newest(attempt.state)


def _newest(state: Path) -> Path | None:
    """Return the checkpoint with the most steps, where none that is there is named.

    Each became whole before it got its name. Another node may see the pointer of a moment ago, by when that file was
    removed: without this, the run would start from scratch there.
    """
    return max(filter(_order, state.iterdir()), key=lambda path: _order(path) or (0, 0), default=None)


def _order(path: Path) -> tuple[int, int] | None:
    """Return the step in a checkpoint's name, and how many of this step were saved before; None for other files."""
    match = _NAME.fullmatch(path.name)
    return (int(match[1]), int(match[2] or 0)) if match else None


def latest(attempts: Sequence[AttemptPaths]) -> Path | None:
    """Return the newest checkpoint of the given attempts, the latest attempt first."""
    newest_first = sorted(attempts, key=lambda attempt: attempt.number, reverse=True)
    return next((found for attempt in newest_first if (found := latest_of(attempt))), None)


def saved_by(attempt: AttemptPaths) -> list[Path]:
    """Return the files of the checkpoints that the engine has saved in an attempt, each once."""
    folder = attempt.state if listed(attempt.state) else attempt.checkpoints
    files = {path.stat().st_ino: path for path in sorted(folder.glob("*.ckpt"))}
    return sorted(files.values())
