"""For tests that start processes: waiting for what is to happen, and seeing to it that nothing is left running."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import orchestrator

ROOT = Path(orchestrator.__file__).resolve().parents[1]
_PATIENCE_SECONDS = 120.0
_GRACE_SECONDS = 30.0


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Return once a condition holds; a test that waits in vain says what for."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {_PATIENCE_SECONDS:.0f} s in vain for {what}")
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def tidy(_private_user_folders: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the test's processes import this package, and see that all of them end by themselves."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    yield
    end = time.monotonic() + _GRACE_SECONDS
    while (left := _of_this_test()) and time.monotonic() < end:
        time.sleep(0.05)
    told = [" ".join(process.info["cmdline"] or []) for process in left]
    for process in left:
        process.kill()
    assert not told, f"the test left processes behind: {told}"


def _of_this_test() -> list[psutil.Process]:
    """Return the processes that were started with this test's own state folder."""
    mine = os.environ["XDG_STATE_HOME"]
    found = []
    for process in psutil.process_iter(["environ", "cmdline", "status"]):
        alive = process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
        if alive and (process.info["environ"] or {}).get("XDG_STATE_HOME") == mine:
            found.append(process)
    return found
