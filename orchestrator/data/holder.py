"""Holder: the process that has something on scratch, and whether it is still there to need it.

It is written as a file's name and nothing else: an empty file is made whole in one system call, and there is no
content that a crash or a full disk could tear. A process is told apart from a later one with its number by its start
in clock ticks since the boot, which does not move when the clock is set.
"""

from __future__ import annotations

import functools
import os
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote

import psutil

Ask = Callable[[str], bool | None]
"""Ask a scheduler whether a job may still have processes; None if it does not answer."""

_SEPARATOR = ","


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """One process. `namespace` is that of its number, `job` the scheduler's job it is in, if any."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: str
    job: str
    nonce: str

    @classmethod
    def current(cls, job: str = "") -> Self:
        """Return this process, with a name that no other call returns."""
        return cls(
            host=socket.gethostname(), boot=boot_id(), namespace=_namespace(), pid=os.getpid(),
            started=_start_of(os.getpid()) or "", job=job, nonce=uuid.uuid4().hex[:12],
        )  # fmt: skip

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Return the holder of that name; None if it is the name of something else."""
        try:
            host, boot, namespace, pid, started, job, nonce = (unquote(part) for part in name.split(_SEPARATOR))
            return cls(host=host, boot=boot, namespace=namespace, pid=int(pid), started=started, job=job, nonce=nonce)
        except ValueError:
            return None

    @property
    def name(self) -> str:
        parts = (self.host, self.boot, self.namespace, str(self.pid), self.started, self.job, self.nonce)
        return _SEPARATOR.join(quote(part, safe="") for part in parts)

    def __str__(self) -> str:
        job = f" (job {self.job})" if self.job else ""
        return f"process {self.pid} on {self.host}{job}"

    def alive(self, ask: Ask | None = None) -> bool | None:
        """Return whether the process still runs; None if that cannot be told from here, nor by the scheduler."""
        if self.host == socket.gethostname():
            if self.boot != boot_id():
                return False
            if self.namespace == _namespace():
                return _start_of(self.pid) == self.started
        return ask(self.job) if ask and self.job else None


@functools.cache
def boot_id() -> str:
    """Return what names this boot of the machine; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:13]
    except OSError:
        return ""


def _namespace() -> str:
    """Return the namespace of process numbers: a container has its own."""
    try:
        return os.readlink("/proc/self/ns/pid")[len("pid:[") : -1]  # noqa: PTH115 - it is no path
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """Return when a process started, as it never changes; None if there is no such process, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _start_by_clock(pid)
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def _start_by_clock(pid: int) -> str | None:
    try:
        return str(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None
