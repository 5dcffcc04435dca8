"""Processes: run a program to its end, ask a program of this package, and recognise one that was started earlier.

A process is distinguished from a later one with its number by its start in clock ticks since the boot, which does not
move when the clock is set.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

NEUTRAL = Path("/")
"""The folder that programs of ours are started in: what Python, or a library, looks for there is nobody's."""


class ProgramError(Exception):
    """A program could not be started, or ended with another exit status than 0."""

    def __init__(self, argv: Sequence[str], status: int | None, stderr: str) -> None:
        super().__init__(f"{argv[0]}: {stderr.strip() or f'exit status {status}'}")
        self.argv, self.status, self.stderr = tuple(argv), status, stderr

    @property
    def reason(self) -> str:
        """The last line that the program has written to standard error, else how it ended."""
        return (self.stderr.strip() or f"exit status {self.status}").splitlines()[-1]


class Run(Protocol):
    """Runs a program and returns its standard output, as `run` does."""

    def __call__(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None, stdin: bytes, timeout_s: float | None
    ) -> bytes: ...


def run(
    argv: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    inherited: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    timeout_s: float | None = None,
) -> bytes:
    """Run a program and return its standard output; `env` is added to `inherited`, by default our environment.

    Raises ProgramError if it cannot be started, fails, or runs longer than `timeout_s` seconds.
    """
    try:
        done = subprocess.run(
            argv,
            cwd=cwd,
            env={**(os.environ if inherited is None else inherited), **(env or {})},
            input=stdin,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ProgramError(argv, None, f"no answer within {timeout_s} s") from error
    except OSError as error:
        raise ProgramError(argv, None, str(error)) from error
    if done.returncode != 0:
        raise ProgramError(argv, done.returncode, done.stderr.decode(errors="replace"))
    return done.stdout


def ask(
    program: Sequence[str],
    question: object,
    *,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    run: Run = run,
) -> Any:
    """Return the answer of a Python program of ours: it reads JSON, and writes JSON.

    `program`: its file, or `-m` and its module. Its folder is not on the search path, as Python would have it. Raises
    ProgramError, also where it ends without an answer (with `status` 0); the error's `reason` is what it last said.
    """
    argv = python(*program)
    said = run(argv, env=env, stdin=json.dumps(question).encode(), timeout_s=timeout_s)
    try:
        return json.loads(said)
    except ValueError as error:
        raise ProgramError(argv, 0, "it ended without an answer") from error


def python(*program: str) -> list[str]:
    """Return the command of a Python program: its file, or `-m` and its module, and arguments.

    With `-P` no module is looked for in the folder that it is started in: others may have put files there.
    """
    return [sys.executable, "-P", *program]


def with_our_package() -> dict[str, str]:
    """Return the environment in which a program finds this package, wherever it lies."""
    package_root = str(Path(__file__).resolve().parents[2])
    return {"PYTHONPATH": os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))}


def start_detached(argv: Sequence[str], *, log: Path) -> None:
    """Start a program that outlives this process, in a session of its own; what it prints is appended to `log`.

    It keeps no folder busy, and finds nothing in the one that it is in. Raises OSError if it cannot be started.
    """
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "ab") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd=NEUTRAL
        )
    threading.Thread(target=process.wait, daemon=True).start()  # a long-lived parent keeps no zombie


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """One process, distinguished from a later one that was given the same number.

    `started` is its start in seconds since the epoch, as the operating system reports it; `boot`, `namespace` and
    `ticks` say which process it is, and are empty where version 0.1 has written it.
    """

    host: str
    pid: int
    started: float
    boot: str = ""
    namespace: str = ""
    ticks: str = ""

    @classmethod
    def current(cls) -> Self:
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Self:
        import psutil

        return cls(
            host=host_name(),
            pid=pid,
            started=psutil.Process(pid).create_time(),
            boot=boot_id(),
            namespace=pid_namespace(),
            ticks=start_ticks(pid) or "",
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        added = {key: str(value.get(key, "")) for key in _ADDED}
        return cls(host=str(value["host"]), pid=int(value["pid"]), started=float(value["started"]), **added)

    def to_json(self) -> dict[str, object]:
        return {key: value for key, value in asdict(self).items() if value or key not in _ADDED}

    def alive(self) -> bool | None:
        """Return whether the process still runs; None if it cannot be seen from here, as on another host."""
        if self.host != host_name():
            return None
        if self.ticks:
            return still_runs(self.pid, boot=self.boot, namespace=self.namespace, ticks=self.ticks)
        return _runs_since(self.pid, self.started)


_ADDED = ("boot", "namespace", "ticks")
"""What version 0.1 did not write."""


def host_name() -> str:
    """Return what `socket.gethostname` returns, whose module takes milliseconds to import."""
    return os.uname().nodename


def still_runs(pid: int, *, boot: str, namespace: str, ticks: str) -> bool | None:
    """Return whether a process of this host still runs; None if its number belongs to another namespace."""
    if boot != boot_id():
        return False
    return start_ticks(pid) == ticks if namespace == pid_namespace() else None


@functools.cache
def boot_id() -> str:
    """Return what names this boot of the machine; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:13]
    except OSError:
        return ""


def pid_namespace() -> str:
    """Return the namespace of process numbers: a container has its own."""
    try:
        return os.readlink("/proc/self/ns/pid")[len("pid:[") : -1]  # noqa: PTH115 - it is not a path
    except OSError:
        return ""


def start_ticks(pid: int) -> str | None:
    """Return when a process started, as it never changes; None if there is no such process, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _start_by_clock(pid)
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def _start_by_clock(pid: int) -> str | None:
    import psutil

    try:
        return str(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def _runs_since(pid: int, started: float) -> bool:
    """Return whether a process that version 0.1 has written down still runs."""
    import psutil

    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < 2.0  # the boot time drifts with NTP
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
