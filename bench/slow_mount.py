"""A folder seen through a mount where each metadata operation takes a millisecond, as on a cluster's filesystem.

    with slow_mount(folder, at) as mount: ...      `mount.counts()` says what was asked of it so far

It is FUSE, in a process of its own, with threads: operations of several callers wait at the same time, as a file
server's do. What costs a millisecond is what asks a file server something: looking up a name, stat, open, create,
mkdir, readdir, rename, link, unlink, chmod and the like, also where the answer is that there is no such file.
Reading, writing and closing cost nothing extra. The kernel remembers what Linux's NFS client does by default: names
for 30 seconds (acdirmin), attributes for 3 (acregmin), nothing of what is not there; every open is asked. Names
within one folder are looked up one after another, which a file server would not ask for but libfuse 3.14 does.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LATENCY_SECONDS = 0.001
_COUNTS = "user.operations"  # an extended attribute of every file: asking for it costs nothing and is not counted
_NAMES_SECONDS, _ATTRIBUTES_SECONDS = 30, 3
_THREADS = 64
_READY_SECONDS = 20
_NOW, _OMIT = (1 << 30) - 1, (1 << 30) - 2  # see utimensat(2)


def unavailable() -> str | None:
    """Return in one line why there can be no such mount here, or None if there can."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    try:
        import mfusepy  # noqa: F401, PLC0415 - needs libfuse, which it looks for as it is imported
    except (ImportError, OSError) as error:
        return f"{error} (pip install mfusepy; Debian, Ubuntu: apt-get install -y fuse3)"
    return None


@dataclass(frozen=True, slots=True)
class SlowMount:
    """Where the folder is seen slowly."""

    path: Path

    def counts(self) -> Counter[str]:
        """Return how many operations of each kind have been waited for."""
        return Counter(json.loads(os.getxattr(self.path, _COUNTS)))


@contextmanager
def slow_mount(folder: Path, at: Path) -> Iterator[SlowMount]:
    """Mount `folder` at the empty folder `at`, which is made."""
    at.mkdir(parents=True)
    argv = [sys.executable, "-m", "bench.slow_mount", str(folder), str(at)]
    process = subprocess.Popen(argv, cwd=Path(__file__).parents[1])
    try:
        deadline = time.monotonic() + _READY_SECONDS
        while not os.path.ismount(at):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no mount at {at} after {_READY_SECONDS} s")
            time.sleep(0.02)
        yield SlowMount(at)
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=False)
        process.kill()  # by TERM it would complain of having been stopped
        process.wait()


def _slow(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Have an operation wait, and count it."""

    @functools.wraps(operation)
    def slowed(files: Any, *given: Any) -> Any:
        files.wait(operation.__name__)
        return operation(files, *given)

    return slowed


def _changes(operation: Callable[..., Any]) -> Callable[..., Any]:
    """The same for what makes or changes a file: its attributes, which libfuse asks for next, come with the answer."""

    @functools.wraps(operation)
    def changing(files: Any, path: str, *given: Any) -> Any:
        files.wait(operation.__name__)
        answer = operation(files, path, *given)
        files.known[threading.get_ident()] = path
        return answer

    return changing


class Files:
    """The operations of FUSE on a folder. Names and arguments are mfusepy's."""

    use_ns = True

    def __init__(self, folder: str, latency_seconds: float) -> None:
        self._folder = folder
        self._latency_seconds = latency_seconds
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self.known: dict[int, str] = {}

    def wait(self, name: str) -> None:
        with self._counting:
            self._counts[name] += 1
        time.sleep(self._latency_seconds)

    def _real(self, path: str) -> str:
        return self._folder + path

    # --- what a file server is asked ----------------------------------------------------------------------

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        if self.known.pop(threading.get_ident(), None) != path:
            self.wait("getattr")
        found = os.fstat(fh) if fh is not None else os.lstat(self._real(path))
        times = {f"st_{name}": getattr(found, f"st_{name}_ns") for name in ("atime", "mtime", "ctime")}
        names = ("mode", "ino", "nlink", "uid", "gid", "size", "blocks")
        return times | {f"st_{name}": getattr(found, f"st_{name}") for name in names}

    @_slow
    def readdir(self, path: str, _handle: int) -> Iterable[tuple[str, dict[str, int], int]]:
        with os.scandir(self._real(path)) as entries:
            return [(entry.name, {"st_mode": _kind(entry), "st_ino": entry.inode()}, 0) for entry in entries]

    @_slow
    def readlink(self, path: str) -> str:
        return os.readlink(self._real(path))

    @_slow
    def open(self, path: str, flags: int) -> int:
        return os.open(self._real(path), flags)

    @_changes
    def create(self, path: str, mode: int, flags: int) -> int:
        return os.open(self._real(path), flags | os.O_CREAT, mode)

    @_changes
    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._real(path), mode)

    @_changes
    def symlink(self, path: str, target: str) -> None:
        os.symlink(target, self._real(path))

    @_changes
    def link(self, path: str, source: str) -> None:
        os.link(self._real(source), self._real(path), follow_symlinks=False)

    @_slow
    def rename(self, old: str, new: str) -> None:
        os.rename(self._real(old), self._real(new))

    @_slow
    def unlink(self, path: str) -> None:
        os.unlink(self._real(path))

    @_slow
    def rmdir(self, path: str) -> None:
        os.rmdir(self._real(path))

    @_changes
    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._real(path), mode)

    @_changes
    def chown(self, path: str, uid: int, gid: int) -> None:
        os.chown(self._real(path), uid, gid, follow_symlinks=False)

    @_changes
    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        os.truncate(self._real(path) if fh is None else fh, length)

    @_changes
    def utimens(self, path: str, times: tuple[int, int]) -> None:
        found = os.lstat(self._real(path))
        known = {_NOW: (time.time_ns(), time.time_ns()), _OMIT: (found.st_atime_ns, found.st_mtime_ns)}
        atime, mtime = (known.get(given, times)[which] for which, given in enumerate(times))
        os.utime(self._real(path), ns=(atime, mtime), follow_symlinks=False)

    @_slow
    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self._real(path))
        return {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}

    # --- what it is not -----------------------------------------------------------------------------------

    def read(self, _path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, _path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def fsync(self, _path: str, data_only: int, fh: int) -> None:
        (os.fdatasync if data_only else os.fsync)(fh)

    def release(self, _path: str, fh: int) -> None:
        os.close(fh)

    def getxattr(self, _path: str, name: str, _position: int = 0) -> bytes:
        if name != _COUNTS:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        with self._counting:
            return json.dumps(self._counts).encode()


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return stat.S_IFLNK
    return stat.S_IFDIR if entry.is_dir(follow_symlinks=False) else stat.S_IFREG


def main(folder: str, at: str) -> None:
    """Serve the mount until it is unmounted."""
    import mfusepy  # noqa: PLC0415 - is not there everywhere

    os.umask(0)
    mfusepy.FUSE(
        Files(folder, LATENCY_SECONDS), at, foreground=True, fsname="orch-bench", use_ino=True, max_threads=_THREADS,
        entry_timeout=_NAMES_SECONDS, attr_timeout=_ATTRIBUTES_SECONDS, negative_timeout=0,
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
