"""A temporary folder with caches and state of its own, and commands that run with them."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Cost, Seconds, timed
from orchestrator.local.workstation import Queue
from orchestrator.system.processes import run

CHECKOUT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """Where one benchmark keeps its files. `environment` is added to that of the commands."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PYTHONPATH": str(CHECKOUT),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "XDG_STATE_HOME": str(self.folder / "state"),
            "DVC_SITE_CACHE_DIR": str(self.folder / "dvc"),
            "PYTHONDONTWRITEBYTECODE": "",  # as installed: nothing is compiled again and again
            "DVC_NO_ANALYTICS": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "NO_COLOR": "1",
        }

    def seconds(self, argv: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Seconds:
        """Return how long a command takes, from before its start until after its end."""
        return timed(lambda: self.run(argv, cwd=cwd, env=env))

    def cost(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Cost:
        """Return what a command costs."""
        before = _children_cpu_seconds()
        seconds = self.seconds(argv, cwd=cwd, env=env)
        return Cost(seconds=seconds, cpu_seconds=_children_cpu_seconds() - before)

    def peak_mb(self, argv: Sequence[str], *, cwd: Path) -> float:
        """Return the most memory (10**6 bytes) that a command's process has had, or the largest of its children."""
        wrapped = [PYTHON, "-c", _PEAK, *argv]
        return int(self.run(wrapped, cwd=cwd).splitlines()[-1]) * 1024 / 1e6

    def start(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command that prints to a file."""
        with log.open("wb") as output:
            return subprocess.Popen(
                argv,
                cwd=cwd,
                env={**os.environ, **self.environment, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def run(self, argv: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> bytes:
        return run(argv, cwd=cwd or self.folder, env={**self.environment, **(env or {})})

    def orch(self, *words: str) -> list[str]:
        """Return the argv of an `orch` command."""
        return [PYTHON, "-m", "orchestrator", *words]

    @contextmanager
    def idle_workstation(self) -> Iterator[None]:
        """Have the workstation's queue start nothing: we hold the lock that its supervisor would need."""
        with Queue(self.folder / "state" / "orchestrator" / "workstation" / socket.gethostname()).lock():
            yield

    def settle(self) -> None:
        """Have the disk catch up, so that what was prepared is not written during the measurement."""
        subprocess.run(["sync", "-f", str(self.folder)], check=False)


def killed(process: subprocess.Popen[bytes]) -> Seconds:
    """End a process, and return the CPU seconds of it and its children."""
    before = _children_cpu_seconds()
    process.kill()
    process.wait()
    return _children_cpu_seconds() - before


def _children_cpu_seconds() -> Seconds:
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


@contextmanager
def sandbox() -> Iterator[Sandbox]:
    folder = Path(tempfile.mkdtemp(prefix="orch-bench-"))
    try:
        yield Sandbox(folder=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
