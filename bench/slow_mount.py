"""A folder seen through a mount where each metadata operation takes a millisecond, as on a cluster's filesystem.

    with slow_mount(folder, at) as mount: ...      `mount.counts()` returns the operations so far

It uses FUSE (slow_mount.c, compiled when needed), in a separate process with threads: operations of several callers are
delayed concurrently, as on a file server, even in the same folder. An operation costs a millisecond if a client has to
ask a file server for it: looking up a name, stat, open, create, mkdir, readdir, rename, link, unlink, chmod and the
like, also if the file does not exist; with `reads` also each read request, of which the kernel makes one per 128 KiB,
ahead of a sequential reader. Writing and closing cost nothing extra. The kernel caches what Linux's NFS client caches
by default: names for 30 seconds (acdirmin), attributes for 3 (acregmin), but no missing names, and no opens.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

LATENCY_SECONDS = 0.001
_SOURCE = Path(__file__).with_name("slow_mount.c")
_COUNTS = "user.operations"  # an extended attribute of every file: reading it is free, and not counted
_THREADS = 256
_READY_SECONDS = 20


@functools.cache
def unavailable() -> str | None:
    """Return why no such mount is possible here, as one line; None if it is."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    lacking = [program for program in ("cc", "pkg-config", "fusermount3") if not shutil.which(program)]
    if lacking or subprocess.run(["pkg-config", "--exists", "fuse3"], check=False).returncode:
        lack = ", ".join(lacking) or "libfuse 3's headers"
        return f"{lack} missing (Debian, Ubuntu: apt-get install -y gcc libc6-dev pkg-config fuse3 libfuse3-dev)"
    return None


@dataclass(frozen=True, slots=True)
class SlowMount:
    """A mount through which a folder is slow."""

    path: Path

    def counts(self) -> Counter[str]:
        """Return the number of delayed operations of each kind."""
        return Counter(json.loads(os.getxattr(self.path, _COUNTS)))


@contextmanager
def slow_mount(folder: Path, at: Path, *, reads: bool = False) -> Iterator[SlowMount]:
    """Mount `folder` at the new folder `at`; the kernel's caches hold nothing of it."""
    at.mkdir(parents=True, exist_ok=True)
    microseconds = str(round(LATENCY_SECONDS * 1e6))
    argv = [_compiled(), str(folder), microseconds, microseconds if reads else "0", str(at)]
    process = subprocess.Popen([*argv, "-f", "-o", f"max_threads={_THREADS},max_idle_threads={_THREADS},clone_fd"])
    try:
        _wait(process, at)
        yield SlowMount(at)
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=False)
        process.kill()
        process.wait()


@functools.cache
def _compiled() -> str:
    """Compile the mount's server, which takes half a second, and return its path."""
    folder = tempfile.mkdtemp(prefix="orch-bench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    program = f"{folder}/slow_mount"
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], check=True, capture_output=True, text=True)
    subprocess.run(["cc", "-O2", "-Wall", "-o", program, str(_SOURCE), *flags.stdout.split()], check=True)
    return program


def _wait(process: subprocess.Popen[bytes], at: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not os.path.ismount(at):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"no mount at {at} after {_READY_SECONDS} s")
        time.sleep(0.02)
