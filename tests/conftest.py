"""What every test needs: caches and state of its own, so that no test reads or leaves anything in the user's."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

# How long something takes says nothing here: machines are shared and noisy.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("house")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell: programs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ("processes", "buckets", "repositories", "small_disk", "browser")
pytest.register_assert_rewrite("cluster_contract")


@pytest.fixture(autouse=True)
def _private_user_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lead this test, and the programs that it starts, away from the user's own folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))  # answers outlive a test
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    monkeypatch.delenv("ORCH_RUNS", raising=False)


# --- the tests on a real Slurm: counted, and begun first: they take longest ----------------------------------

PINNED = 211
"""In CI at least so many tests must have passed on a real Slurm: none may be lost without a word."""

_passed: set[str] = set()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "slurm" not in item.keywords)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed and "slurm" in report.keywords:
        _passed.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):  # one of several processes, whose reports go to the first
        return
    if os.environ.get("CI") and len(_passed) < PINNED:
        told = f"error: {len(_passed)} tests passed on a real Slurm, and {PINNED} are pinned"
        session.config.get_terminal_writer().line(f"\n{told}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
