"""Processes: run a program to its end, and recognise one that was started earlier."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self


class ProgramError(Exception):
    """A program could not be started, or ended with another exit status than 0."""

    def __init__(self, argv: Sequence[str], status: int | None, stderr: str) -> None:
        super().__init__(f"{argv[0]}: {stderr.strip() or f'exit status {status}'}")
        self.argv, self.status, self.stderr = tuple(argv), status, stderr


def run(
    argv: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    timeout_s: float | None = None,
) -> bytes:
    """Run a program and return its standard output; `env` is added to this process's environment.

    Raises ProgramError if it cannot be started, fails, or runs longer than `timeout_s` seconds.
    """
    try:
        done = subprocess.run(
            argv, cwd=cwd, env={**os.environ, **(env or {})}, input=stdin,
            capture_output=True, timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ProgramError(argv, None, f"no answer within {timeout_s} s") from error
    except OSError as error:
        raise ProgramError(argv, None, str(error)) from error
    if done.returncode != 0:
        raise ProgramError(argv, done.returncode, done.stderr.decode(errors="replace"))
    return done.stdout


def start_detached(argv: Sequence[str], *, cwd: Path, log: Path) -> None:
    """Start a program that outlives this process, in a session of its own; what it prints is appended to `log`.

    Raises OSError if it cannot be started.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd=cwd
        )
    threading.Thread(target=process.wait, daemon=True).start()  # a long-lived parent keeps no zombie


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """One process, told apart from a later one that was given the same number.

    `started` is the process's start in seconds since the epoch, as the operating system reports it.
    """

    host: str
    pid: int
    started: float

    @classmethod
    def current(cls) -> Self:
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Self:
        import psutil

        return cls(host=socket.gethostname(), pid=pid, started=psutil.Process(pid).create_time())

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(host=str(value["host"]), pid=int(value["pid"]), started=float(value["started"]))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def alive(self) -> bool | None:
        """Return whether the process still runs; None if it is on another host and cannot be asked."""
        if self.host != socket.gethostname():
            return None
        import psutil

        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 2.0  # the boot time drifts with NTP
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
