"""The spool: a run's own metric log, append-only JSON lines, one file and one writer per attempt.

A line is handed to the operating system before the call returns, so a killed process loses nothing; a
thread forces it to the disk every two seconds, so a crashed node loses at most that. A network filesystem may
report a full disk only then: lines are kept until they have been forced, and written again if needed. A spool is not a
queue and is independent of any server: `upload` reads it. The lines, version 1:

    {"v":1,"kind":"metrics","step":3,"time_ms":1700000000000,"values":{"loss":0.5,"lr":"nan"}}
    {"v":1,"kind":"params","values":{"model":{"lr":0.001}}}
    {"v":1,"kind":"tags","values":{"best":"yes"}}
    {"v":1,"kind":"artifact","path":"../artifacts/plots/a.png","folder":"plots"}

JSON has no NaN: a value that is not finite is one of the strings "nan", "inf", "-inf". An artifact's path is
relative to the spool's folder. Uses the standard library only.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

from orchestrator.config.credentials import Redact, masked, masked_url, unchanged
from orchestrator.errors import StateError
from orchestrator.system.files import open_file, sync_folder

log = logging.getLogger(__name__)

VERSION = 1
FLUSH_SECONDS = 2.0
KEPT_RECORDS = 10_000
"""The most records kept in memory, to be tried again, while the file cannot be written or forced to the disk."""
_LONGEST_PAUSE_SECONDS = 60.0

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Values logged together at one step; `time_ms` since the epoch."""

    step: int
    time_ms: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Params:
    """Hyperparameters, a JSON tree."""

    values: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """Free-form labels of the run."""

    values: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactLine:
    """A file to show with the run, relative to the spool's folder, and the folder to show it in."""

    path: str
    folder: str


Record = Metrics | Params | Tags | ArtifactLine


class SpoolWriter:
    """The one writer of a spool. The file is opened by the first record; safe to use from several threads.

    A record that cannot be written (a full disk) never disturbs the training: it is kept and tried again,
    the failure is logged once, and `close` raises if something stayed unwritten.
    """

    def __init__(self, path: Path, *, redact: Redact = unchanged, force: Callable[[int], None] = os.fsync) -> None:
        """`redact` removes secrets from parameters and tags; `force` forces a file to the disk."""
        self.path, self._force = path, force
        self._redact = redact
        self.lost = 0
        """The number of lost records: logged after `close`, or more than could be kept."""
        self._unwritten: deque[bytes] = deque()
        self._head = b""  # the part of the first unwritten record that is in the file
        self._unforced: list[bytes] = []
        self._forgotten = 0  # records written since the last force that were too many to keep
        self._names: dict[object, str] = {}
        self._lock = threading.Lock()
        self._encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
        self._fd: int | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._warned = False

    def metrics(self, values: Mapping[str, object], step: int, time_ms: int | None = None) -> None:
        """Append values at a step. A value that is not a number is left out, with one warning."""
        parts = []
        for name, value in values.items():
            number = value if type(value) is float else self._number(name, value)
            if number is not None:
                # A finite float's repr is its JSON; for one that is not finite this difference is not zero.
                written = repr(number) if number - number == 0 else f'"{number}"'
                parts.append(f"{self._names.get(name) or self._named(name)}:{written}")
        if parts:
            now = time.time_ns() // 1_000_000 if time_ms is None else time_ms
            head = f'{{"v":{VERSION},"kind":"metrics","step":{int(step)},"time_ms":{now},"values":{{'
            self._put(f"{head}{','.join(parts)}}}}}\n".encode())

    def params(self, values: Mapping[str, object]) -> None:
        """Append hyperparameters: any nested tree; a value that JSON cannot represent is kept as text."""
        self._append({"v": VERSION, "kind": "params", "values": self._redact(masked(jsonable(values)))})

    def tags(self, values: Mapping[str, object]) -> None:
        texts = {str(key): masked_url(str(value)) for key, value in values.items()}
        self._append({"v": VERSION, "kind": "tags", "values": self._redact(texts)})

    def artifact(self, path: Path, folder: str = "") -> None:
        """Append that the file at `path`, which is already complete, belongs in `folder` of the run."""
        relative = os.path.relpath(path, self.path.parent)
        self._append({"v": VERSION, "kind": "artifact", "path": relative, "folder": folder})

    def flush(self) -> bool:
        """Force everything to the disk; return whether it is there."""
        with self._lock:
            self._drain()
        return self._sync()

    def size(self) -> int:
        """Return how many bytes the file has, or will have once everything logged so far is written."""
        with self._lock:
            self._drain()
            written = os.fstat(self._fd).st_size if self._fd is not None else 0
            return written + sum(map(len, self._unwritten))

    def close(self) -> None:
        """Flush and close. Raises StateError if records remain unwritten; closing again does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if not self.flush():
            self.flush()
        with self._lock:
            self.lost += len(self._unwritten)
            self._unwritten.clear()
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
        if self.lost:
            raise StateError(
                f"{self.lost} metric records could not be written to {self.path}",
                why="the disk is full or the folder is not writable; see the log for the first error",
                fix="free disk space and run `orch retry`; records written before are kept",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except StateError as lost:
            if error is None:
                raise
            log.warning("%s", lost)  # the error that ends the block matters more

    def _named(self, name: object) -> str:
        """Return a metric's name as JSON. Cached, because names repeat."""
        return self._names.setdefault(name, self._encode(str(name)))

    def _number(self, name: object, value: Any) -> float | None:
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
        except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several elements
            self._warn("metric %r is left out: %.100r is not a number", name, value)
            return None

    def _append(self, record: Mapping[str, object]) -> None:
        self._put(self._encode(record).encode("ascii") + b"\n")

    def _put(self, line: bytes) -> None:
        with self._lock:
            written = 0
            if self._fd is not None and not self._unwritten:
                written = self._write(self._fd, line)
                if written == len(line):  # nearly always: then training has waited for one write only
                    self._keep(line)
                    return
                self._head, line = line[:written], line[written:]
            if self._stop.is_set() and not written:
                self.lost += 1
                self._warn("%s is closed: records logged from now on are lost", self.path)
                return
            self._unwritten.append(line)
            self._drain()
            if len(self._unwritten) > KEPT_RECORDS:
                del self._unwritten[1]  # not the first: it may be half written, and its rest has to follow
                self.lost += 1

    def _drain(self) -> None:
        """Write the unwritten records in order; the lock is held. A short write continues where it stopped."""
        try:
            while self._unwritten:
                fd = self._open() if self._fd is None else self._fd
                left = self._unwritten[0]
                if not (written := self._write(fd, left)):
                    return
                if written == len(left):
                    self._unwritten.popleft()
                    self._keep(self._head + left)
                    self._head = b""
                else:
                    self._head, self._unwritten[0] = self._head + left[:written], left[written:]
        except OSError as error:
            self._refused(error)

    def _write(self, fd: int, line: bytes) -> int:
        """Write as much of a line as the disk takes; return the number of bytes."""
        try:
            return os.write(fd, line)
        except OSError as error:
            self._refused(error)
            return 0

    def _keep(self, line: bytes) -> None:
        """Remember a line that is written but not yet forced to the disk; the lock is held."""
        if len(self._unforced) < KEPT_RECORDS:
            self._unforced.append(line)
        else:
            self._forgotten += 1

    def _refused(self, error: OSError) -> None:
        self._warn("cannot write %s (%s): records are kept and tried again", self.path, error)

    def _open(self) -> int:
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            os.write(fd, b"\n")  # so that a line cut off by a crash does not absorb the next one
        self._fd = fd
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._sync_regularly, name="spool", daemon=True)
            self._thread.start()
        return fd

    def _sync_regularly(self) -> None:
        sync_folder(self.path.parent)  # the file's name has to survive a crash, too
        pause = FLUSH_SECONDS
        while not self._stop.wait(pause):
            pause = FLUSH_SECONDS if self.flush() else min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _sync(self) -> bool:
        """Force the file to the disk, without the lock: the training must not wait for a slow disk.

        Lines that could not be forced may be lost, though they were written without an error: they are written again.
        """
        with self._lock:
            fd, lines, forgotten = self._fd, self._unforced, self._forgotten
            self._unforced, self._forgotten = [], 0
        try:
            if fd is not None and lines:
                self._force(fd)
        except OSError as error:
            self._warn("cannot force %s to the disk (%s): records are kept and written again", self.path, error)
            self._write_again(lines, forgotten)
        return not self._unwritten

    def _write_again(self, lines: list[bytes], forgotten: int) -> None:
        with self._lock:
            if self._head:
                self._unwritten[0], self._head = self._head + self._unwritten[0], b""
            self._unwritten.extendleft([*reversed(lines[1:]), b"\n" + lines[0]])  # the file may end within a line
            self.lost += forgotten

    def _warn(self, message: str, *args: object) -> None:
        if not self._warned:
            self._warned = True
            log.warning(message, *args)


def read(path: Path, offset: int = 0, *, end: int | None = None, growing: bool = False) -> Iterator[tuple[Record, int]]:
    """Yield each record from `offset` on, up to `end`, with the offset at which the next one starts.

    A last line without a newline is not consumed, since it may be incomplete. If a file that is still `growing` has
    zeros, pages of a network filesystem have arrived out of order, and the rest is not read yet. Otherwise anything
    that is not a record (zeros left by a node crash, a broken line, a kind unknown to this version) is skipped. A
    missing file is an empty spool. Raises StateError for a line of a newer version.
    """
    try:
        file = open_file(path)
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n") or (growing and b"\0" in line):
                return
            offset += len(line)
            if end is not None and offset > end:
                return
            record = _parse(line, path)
            if record is not None:
                yield record, offset


def _parse(line: bytes, path: Path) -> Record | None:
    try:
        value = json.loads(line.rpartition(b"\0")[2].decode("utf-8"))  # zeros left by a crash contain no newline
        version = int(value["v"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if version > VERSION:
        raise StateError(
            f"{path} has lines of version {version}",
            why=f"this installation reads version {VERSION}",
            fix="use the version of this program that ran the job, or a newer one",
        )
    try:
        return _record(value)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def _record(value: Mapping[str, Any]) -> Record | None:
    match value["kind"]:
        case "metrics":
            values = {name: float(number) for name, number in value["values"].items()}
            return Metrics(step=int(value["step"]), time_ms=int(value["time_ms"]), values=values)
        case "params":
            return Params(values=dict(value["values"]))
        case "tags":
            return Tags(values={name: str(text) for name, text in value["values"].items()})
        case "artifact" if is_inside(value["folder"]):
            return ArtifactLine(path=str(value["path"]), folder=value["folder"])
        case _:
            return None


def is_inside(folder: str) -> bool:
    """Return whether a run's artifact folder stays inside the run."""
    path = PurePosixPath(folder)
    return not path.is_absolute() and ".." not in path.parts


def jsonable(value: object) -> object:
    """Return a tree that strict JSON can represent. Text has no memory addresses, so a resumed run repeats it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return _ADDRESS.sub("", str(value))
