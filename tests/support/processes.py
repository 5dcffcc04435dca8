"""For tests that start processes: wait for conditions, and check that no process is left running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import warm_parent as warm_process

import orchestrator

ROOT = Path(orchestrator.__file__).resolve().parents[1]
_PATIENCE_SECONDS = 600.0
_GRACE_SECONDS = 120.0


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Return once a condition holds; fail with `what` if it does not in time.

    Slow conditions are evaluated less often, so that waiting leaves the processors to the awaited processes.
    """
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        began = time.monotonic()
        if condition():
            return
        asked = time.monotonic()
        if asked > end:
            pytest.fail(f"waited {_PATIENCE_SECONDS:.0f} s in vain for {what}")
        time.sleep(min(max(0.05, 3 * (asked - began)), 1.0))


@pytest.fixture
def tidy(_private_user_folders: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the test's processes import this package, and check that all of them end by themselves."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield
    end = time.monotonic() + _GRACE_SECONDS
    while (left := of_this_test()) and time.monotonic() < end:
        time.sleep(0.1)
    told = [" ".join(process.info["cmdline"] or []) for process in left]
    for process in left:
        process.kill()
    assert not told, f"the test left processes behind: {told}"


def of_this_test() -> list[psutil.Process]:
    """Return the processes that were started with this test's own state folder."""
    mine = os.environ["XDG_STATE_HOME"]
    found = []
    for process in psutil.process_iter(["environ", "cmdline", "status"]):
        alive = process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
        if alive and (process.info["environ"] or {}).get("XDG_STATE_HOME") == mine:
            found.append(process)
    return found


@pytest.fixture(scope="session")
def warm_parent() -> Iterator[None]:
    """Fork runs that train from one process that has imported torch and Lightning: see warm_orch.py."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORCH_"))}
    argv = [sys.executable, str(Path(__file__).with_name("warm_parent.py")), "socket"]
    with tempfile.TemporaryDirectory(prefix="warm-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv(warm_process.SOCKET, str(Path(folder, "socket")))
        process = subprocess.Popen(argv, cwd=folder, env=environ, stdin=subprocess.PIPE)
        yield
        process.stdin.close()
        process.wait()


def orch_argv(*words: str, played: bool = False) -> list[str]:
    """Return `orch WORDS` as an argv; with `played`, runs are played by the scripted worker."""
    if played:
        return [sys.executable, "-m", "orchestrator.testing", *words]
    acts = words[:1] and words[0] in {"launch", "retry", "run"} and warm_process.SOCKET in os.environ
    program = [str(Path(__file__).with_name("warm_orch.py"))] if acts else ["-m", "orchestrator"]
    return [sys.executable, *program, *words]


class Launcher:
    """A running tests/support/launcher.py, in a session of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("launcher.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )

    def order(self, **order: object) -> None:
        print(json.dumps(order, default=str), file=self.process.stdin, flush=True)

    def answer(self) -> Any:
        """Wait for the next answer; None if it has died."""
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture
def launchers(tidy: None) -> Iterator[Callable[[int], list[Launcher]]]:
    """Yield a function that starts launchers, and returns once all are ready."""
    started: list[Launcher] = []

    def start(count: int) -> list[Launcher]:
        new = [Launcher() for _ in range(count)]
        started.extend(new)
        assert [launcher.answer() for launcher in new] == ["ready"] * count
        return new

    yield start
    for launcher in started:
        launcher.close()


def supervisors() -> list[int]:
    """Return the pids of this test's supervisors."""
    return [p.pid for p in of_this_test() if "orchestrator.local.workstation" in (p.info["cmdline"] or [])]
