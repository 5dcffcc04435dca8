"""Holder: the process that has something on scratch, and whether it is still there to need it.

It is written as a file's name and nothing else: an empty file is made whole in one system call, and there is no
content that a crash or a full disk could tear.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self
from urllib.parse import quote, unquote

from orchestrator.system.processes import boot_id, pid_namespace, start_ticks, still_runs

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
            host=socket.gethostname(),
            boot=boot_id(),
            namespace=pid_namespace(),
            pid=os.getpid(),
            started=start_ticks(os.getpid()) or "",
            job=job,
            nonce=uuid.uuid4().hex[:12],
        )

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
        """Return whether the process still runs; None if that cannot be seen from here, nor by the scheduler."""
        if self.host == socket.gethostname():
            alive = still_runs(self.pid, boot=self.boot, namespace=self.namespace, ticks=self.started)
            if alive is not None:
                return alive
        return ask(self.job) if ask and self.job else None
