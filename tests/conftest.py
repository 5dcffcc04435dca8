"""What every test needs: caches and state of its own, so that no test reads or leaves anything in the user's."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import campaigns
import pytest
from hypothesis import HealthCheck, settings
from states import own_state
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

# How long something takes says nothing here: machines are shared and noisy.
settings.register_profile("house", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "fuzz", settings.get_profile("house"), derandomize=False, database=None, print_blob=True, max_examples=1000
)
settings.load_profile("fuzz" if campaigns.NAME == "fuzz" else "house")

# Several tests run at once: numerical threads that wait for each other take minutes for what one does in seconds.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell: programs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ("processes", "buckets", "repositories", "small_disk", "browser")
pytest.register_assert_rewrite("cluster_contract")


@pytest.fixture(scope="session", autouse=True)
def _user_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Lead the session, and the programs that it starts, away from the user's own folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))  # answers outlive a test
        patch.setenv("XDG_STATE_HOME", own_state(tmp_path_factory))
        yield


@pytest.fixture(autouse=True)
def _private_user_folders(
    _user_folders: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give each test a state of its own, by which its processes are known."""
    monkeypatch.setenv("XDG_STATE_HOME", own_state(tmp_path_factory))
    monkeypatch.delenv("ORCH_RUNS", raising=False)


# --- several processes ----------------------------------------------------------------------------------------

SPREAD = ("tests/test_docs.py::test_every_command_shown",)
"""Tests that share nothing with the others of their file, and may run in any process."""


class ByFile(LoadFileScheduling):
    """Keeps the tests of one file in one process, since they share servers and clusters; but for those in SPREAD."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if nodeid.startswith(SPREAD) else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile | None:
    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None


# --- campaigns: what takes long is left out here, see tests/support/campaigns.py ------------------------------


@pytest.hookimpl(trylast=True)  # after Hypothesis has marked its tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if not _belongs_here(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if _belongs_here(item)]
    items.sort(key=lambda item: "slurm" not in item.keywords)  # begun first: they take longest


def _belongs_here(item: pytest.Item) -> bool:
    marks = list(item.iter_markers("campaign"))
    if unknown := {name for mark in marks for name in mark.args} - set(campaigns.BY_NAME):
        raise pytest.UsageError(f"{item.nodeid}: no such campaign: {', '.join(sorted(unknown))}")
    if not campaigns.NAME:
        return all(mark.kwargs.get("sample") for mark in marks)
    fuzzed = campaigns.NAME == "fuzz" and "hypothesis" in item.keywords
    return fuzzed or any(campaigns.NAME in mark.args for mark in marks)


@pytest.fixture
def campaign_seed() -> int:
    """What chooses a test's random moments; whoever sees it fail needs it."""
    return campaigns.SEED


# --- the tests on a real Slurm: counted --------------------------------------------------------------------

PINNED = {"": 160, "slurm": 54, "chaos": 1, "scale": 1, "scale-10000": 1}
"""In CI at least so many tests must have passed on a real Slurm, in `make test` (the first) and in each campaign.

There are 212: the campaign `slurm` alone has 51 of them, `scale` one, and three more are in `slurm` in a larger form.
"""

_passed: set[str] = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed and "slurm" in report.keywords:
        _passed.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):  # one of several processes, whose reports go to the first
        return
    pinned = PINNED.get(campaigns.NAME, 0)
    if os.environ.get("CI") and len(_passed) < pinned:
        told = f"error: {len(_passed)} tests passed on a real Slurm, and {pinned} are pinned"
        session.config.get_terminal_writer().line(f"\n{told}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
