"""A temporary folder with its own caches and state, and commands that use them."""

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
    """The folder for the files of one benchmark. `environment` is added to that of its commands."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PYTHONPATH": str(CHECKOUT),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "XDG_STATE_HOME": str(self.folder / "state"),
            "DVC_SITE_CACHE_DIR": str(self.folder / "dvc"),
            "PYTHONDONTWRITEBYTECODE": "",  # bytecode is cached, as in an installation
            "DVC_NO_ANALYTICS": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "NO_COLOR": "1",
        }

    def seconds(self, argv: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Seconds:
        """Return the wall-clock seconds that a command takes."""
        return timed(lambda: self.run(argv, cwd=cwd, env=env))

    def cost(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> Cost:
        """Return the cost of a command."""
        before = _children_cpu_seconds()
        seconds = self.seconds(argv, cwd=cwd, env=env)
        return Cost(seconds=seconds, cpu_seconds=_children_cpu_seconds() - before)

    def peak_mb(self, argv: Sequence[str], *, cwd: Path) -> float:
        """Return the peak memory (10**6 bytes) of a command's process, or of the largest of its children."""
        wrapped = [PYTHON, "-c", _PEAK, *argv]
        return int(self.run(wrapped, cwd=cwd).splitlines()[-1]) * 1024 / 1e6

    def start(self, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command with its output in a file."""
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
        """Keep the workstation's queue from starting runs, by holding the lock that its supervisor needs."""
        with Queue(self.folder / "state" / "orchestrator" / "workstation" / socket.gethostname()).lock():
            yield

    def settle(self) -> None:
        """Let the disk catch up, so that prepared files are not written during the measurement."""
        subprocess.run(["sync", "-f", str(self.folder)], check=False)


def killed(process: subprocess.Popen[bytes]) -> Seconds:
    """Kill a process, and return the CPU seconds of it and its children."""
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
