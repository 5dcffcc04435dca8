"""Files of ours: private folders, whole or absent texts, and errors that name the file."""

from __future__ import annotations

import json
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.errors import StateError

NOT_JSON = (ValueError, RecursionError)
"""What reading a damaged JSON text raises."""


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


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise StateError where a file of ours cannot be written in a folder: a full disk, a quota, a lost mount."""
    try:
        yield
    except OSError as error:
        raise StateError(
            f"cannot write {folder}", why=error.strerror or str(error),
            fix="make room there, or choose another folder for runs with --runs or $ORCH_RUNS",
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
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file as `replace_text` does. Raises OSError where that is impossible, and then leaves nothing."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, *NOT_JSON) as error:
        raise damaged(path, str(error)) from error
    return as_object(path, value)


def as_object(path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise damaged(path, f"it holds {str(value)[:40]!r} instead of a JSON object")
    return value


def damaged(path: Path, why: str) -> StateError:
    return StateError(
        f"{path} is damaged", why=why,
        fix=f"restore it from a backup, or move {path.parent} away; the runs' own folders stay as they are",
    )  # fmt: skip


def inodes(folder: Path) -> dict[str, int]:
    """Return what lies in a folder, by name, each with its inode; no more than one listing."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.inode() for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def names(folder: Path) -> list[str]:
    """Return the names of what lies in a folder; none where there is no such folder."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
