"""The heartbeat of a rank: a number in memory that it shares with its node's watcher, and where its stack is written.

A beat costs a microsecond. The stack is written by `faulthandler`, when the watcher sends a signal: in C, without the
interpreter's lock, so also while a C function holds it. All of it lies on the node: a shared filesystem may hang, too.
"""

from __future__ import annotations

import faulthandler
import hashlib
import logging
import mmap
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import IO

import psutil

from orchestrator.errors import OrchError
from orchestrator.layout import AttemptPaths
from orchestrator.system.files import make_own
from orchestrator.system.processes import NEUTRAL, python
from orchestrator.worker.assignment import Assignment

_log = logging.getLogger(__name__)
_OLD_SECONDS = 3600.0
_LAYOUT = struct.Struct("=qqq")
SIGNAL: int | None = getattr(signal, "SIGRTMIN", None) and signal.SIGRTMIN + 7
"""Has a rank write its stack; None where there are no such signals, and nothing is watched."""


class Stage(IntEnum):
    """What a rank is at, and so what counts as progress."""

    STARTING = 0  # until the first batch
    STAGING = 1
    TRAINING = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a rank has last said."""

    pid: int
    stage: Stage
    count: int


class Heartbeat:
    """The writing side, in the rank itself."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._stack: IO[bytes] = _stack(folder, rank).open("wb")
        path = _file(folder, rank)
        with path.open("wb+") as file:
            file.truncate(_LAYOUT.size)
            self._memory = mmap.mmap(file.fileno(), _LAYOUT.size)
        self._count = 0
        self.beat(Stage.STARTING)
        if SIGNAL is not None:
            faulthandler.register(SIGNAL, file=self._stack, all_threads=True, chain=False)

    def beat(self, stage: Stage) -> None:
        self._count += 1
        _LAYOUT.pack_into(self._memory, 0, os.getpid(), stage, self._count)

    def close(self) -> None:
        if SIGNAL is not None:
            faulthandler.unregister(SIGNAL)
        self._memory.close()
        self._stack.close()


_own: list[Heartbeat] = []


def beat(stage: Stage = Stage.TRAINING) -> None:
    """Say that this process gets on; where nobody watches it, nothing happens."""
    for heartbeat in _own:
        heartbeat.beat(stage)


def beats(folder: Path) -> dict[int, Beat]:
    """Return the last beat of each rank of a node."""
    found = {}
    for path in folder.glob("rank*.beat"):
        with suppress(OSError, struct.error, ValueError):
            pid, stage, count = _LAYOUT.unpack(path.read_bytes())
            found[int(path.stem.removeprefix("rank"))] = Beat(pid=pid, stage=Stage(stage), count=count)
    return found


def take_stack(folder: Path, rank: int, seen: int) -> str:
    """Return what a rank, and its children, have written since `seen` bytes of it."""
    try:
        return _stack(folder, rank).read_bytes()[seen:].decode(errors="replace")
    except OSError:
        return ""


def stack_bytes(folder: Path, rank: int) -> int:
    try:
        return _stack(folder, rank).stat().st_size
    except OSError:
        return 0


def folder_of(attempt: AttemptPaths) -> Path:
    """Return the folder of an attempt's heartbeats on this node."""
    name = hashlib.sha256(str(attempt.path).encode(errors="surrogateescape")).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"orch-{os.getuid()}-beats" / name


@contextmanager
def watched(assignment: Assignment) -> Iterator[None]:
    """Have the body watched: every rank beats, and the first of a node starts the watcher."""
    policy = assignment.planned.resources.attempts
    if policy is None or SIGNAL is None:
        yield
        return
    watcher: subprocess.Popen[bytes] | None = None
    try:
        folder = folder_of(assignment.attempt)
        make_own(folder.parent)
        make_own(folder)
        if assignment.context.first_on_node:
            _remove_old(folder.parent, time.time() - _OLD_SECONDS)
        _own[:] = [Heartbeat(folder, assignment.context.rank)]
        if assignment.context.first_on_node:
            watcher = _start(assignment, folder)
    except (OSError, OrchError) as error:
        _log.warning("a hang of this run is not noticed: %s", error)
    try:
        yield
    finally:
        while _own:
            _own.pop().close()
        if watcher is not None and watcher.stdin is not None:
            with suppress(OSError):  # it has died
                watcher.stdin.write(b"\n")  # a forked child that lives on holds the pipe open, too
                watcher.stdin.close()


def _remove_old(folder: Path, before: float) -> None:
    """Remove what watchers have left that were killed with their ranks."""
    for each in folder.iterdir():
        with suppress(OSError):
            if each.stat().st_mtime < before and not any(map(_lives, beats(each).values())):
                shutil.rmtree(each, ignore_errors=True)


def _lives(last: Beat) -> bool:
    return psutil.pid_exists(last.pid)


def _start(assignment: Assignment, folder: Path) -> subprocess.Popen[bytes]:
    task = (str(assignment.launch.path), str(assignment.planned.index), str(assignment.planned.attempt))
    words = (*task, str(assignment.context.rank), str(folder))
    return subprocess.Popen(
        python("-m", "orchestrator.worker.monitor.watcher", *words), stdin=subprocess.PIPE, cwd=NEUTRAL
    )


def _file(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.beat"


def _stack(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.stack"
