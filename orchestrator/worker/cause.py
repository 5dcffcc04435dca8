"""Errors that are only symptoms: of a killed process, or of a disk that fails. The user's code is not to blame."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

from orchestrator.system.mounts import described

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DISK = (*_FULL, errno.EIO, errno.ESTALE)
_PACKAGE = Path(__file__).parents[1]
_WRITERS = tuple(
    str(_PACKAGE / part) for part in ("records/", "system/files.py", "tracking/spool.py", "worker/fit/writer.py")
)
"""The code that reads and writes files of a run: records, spool, and checkpoints, including those of callbacks."""
_KILLED_LOADER = re.compile(r"DataLoader worker \(pid (\d+)\) is killed by signal: Killed")
_LOST = re.compile(
    r"connection (was likely )?(closed|reset)|broken pipe|remote process exited|ncclRemoteError|got 0 bytes",
    re.IGNORECASE,
)


def lost_rank(error: BaseException) -> bool:
    """Return whether an error says only that torch.distributed lost another process, and not why that one ended."""
    return any(
        isinstance(each, RuntimeError)
        and (type(each).__name__.startswith("Dist") or "gloo" in str(each).lower())
        and _LOST.search(str(each))
        for each in _chain(error)
    )


def infrastructure(error: BaseException, folder: Path) -> tuple[str, str] | None:
    """Return the cause of an error that is not the user's, in a word of launch/recovery.py, and in a sentence."""
    if disk := failing_disk(error, folder):
        return "disk", disk
    if killed := _KILLED_LOADER.search(str(error)):
        return "killed", f"a data loader's worker was killed by SIGKILL (pid {killed[1]})"
    return None


def is_gpu_full(error: BaseException) -> bool:
    """Return whether a GPU's memory was too little."""
    return type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in str(error)


def advice(error: BaseException) -> str:
    """Return what to do about an error of which that can be said."""
    if not is_gpu_full(error):
        return ""
    return (
        "\nfix: a smaller batch (data.batch_size) with trainer.accumulate_grad_batches, trainer.precision=bf16-mixed,"
        " or a GPU with more memory (resources.gpu_type)"
    )


def failing_disk(error: BaseException, folder: Path) -> str:
    """Return how a disk failed for a run's files, and where; an empty text for any other error.

    `folder` is the run's; it is named if the error names no file, as for a file that is already open. Errors from the
    user's own files do not count, unless the disk of `folder` is full: then the log could not be written either.
    """
    chain = list(_chain(error))
    ours = any(map(_is_ours, chain))
    for each in chain:
        if isinstance(each, OSError) and each.errno in _DISK and (ours or (each.errno in _FULL and _is_full(folder))):
            place = Path(os.fsdecode(each.filename)) if isinstance(each.filename, str | bytes) else folder
            return f"{each.strerror}: {place}, on {described(place)}"
    return ""


def full_disk(error: BaseException) -> str:
    """Return the system's word for a full disk or an exceeded quota, if an error comes of that; otherwise nothing."""
    found = (each for each in _chain(error) if isinstance(each, OSError) and each.errno in _FULL)
    return next((str(each.strerror) for each in found), "")


def _is_full(folder: Path) -> bool:
    try:
        return os.statvfs(folder).f_bavail == 0
    except OSError:
        return False


def _is_ours(error: BaseException) -> bool:
    return any(frame.filename.startswith(_WRITERS) for frame in traceback.extract_tb(error.__traceback__))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its causes and contexts. Torch hides a write error behind that of closing the file."""
    seen: set[int] = set()
    left = [error]
    while left:
        each = left.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            left += [each.__cause__, each.__context__]
