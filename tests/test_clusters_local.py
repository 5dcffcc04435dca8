"""The clusters of one machine keep the contract; and what is their own: a supervisor that may die at any time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from cluster_contract import OrderedClusterContract
from processes import tidy  # noqa: F401 - a fixture

from orchestrator.local.inline import Inline
from orchestrator.local.workstation import Workstation

# A supervisor is meant to outlive the process that started it.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")


class TestInline(OrderedClusterContract):
    kind = "inline"
    slots = 1

    @pytest.fixture
    def cluster(self) -> Inline:
        return Inline(grace_seconds=1.0)

    @contextmanager
    def at_work(self, cluster: Inline) -> Iterator[Callable[[], None]]:
        """Run it beside the test, which looks on; at the end of the test it is stopped."""
        stop, threads = threading.Event(), []

        def work() -> None:
            threads.append(threading.Thread(target=cluster.run, kwargs={"until": stop.is_set}))
            threads[-1].start()

        yield work
        stop.set()
        for thread in threads:
            thread.join()


class TestWorkstation(OrderedClusterContract):
    kind = "workstation"
    slots = 2

    @pytest.fixture
    def cluster(self) -> Workstation:
        return Workstation(cpus=2, grace_seconds=1.0)
