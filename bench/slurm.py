"""A real Slurm cluster whose nodes are all busy: submitted jobs stay pending, and use no CPU time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.slurm.devcluster import DevCluster, Options
from orchestrator.system.processes import run

_BUSY = ("--job-name=busy", "--exclusive", "--output=/dev/null", "--chdir=/", "--wrap=sleep infinity")
_PATIENCE_SECONDS = 60


class BusySlurm:
    """The cluster that Slurm's commands talk to with `environment`."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def waiting(self) -> int:
        """Return the number of pending tasks; each task of an array counts."""
        return len(self._ask("squeue", "-r", "--noheader", "--states=PENDING", "--format=%i").splitlines())

    def clear(self) -> None:
        """Cancel all pending tasks."""
        self._ask("scancel", "--state=PENDING", "--me")
        self._await(lambda: self.waiting() == 0)

    def fill(self) -> None:
        self._ask("sbatch", *_BUSY)
        self._await(lambda: self._ask("squeue", "--noheader", "--states=RUNNING", "--format=%j").split() == ["busy"])

    def _ask(self, *argv: str) -> str:
        return run(argv, env=self.environment).decode()

    @staticmethod
    def _await(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise RuntimeError("the development cluster did not come to rest")
            time.sleep(0.1)


@contextmanager
def busy_slurm() -> Iterator[BusySlurm]:
    """Bring up a development cluster of one busy node, and delete all of it afterwards."""
    with tempfile.TemporaryDirectory(prefix="dc-", dir="/tmp") as folder:  # paths of sockets must be short
        cluster = DevCluster(Path(folder) / "state")
        try:
            cluster.up(Options(nodes=1, gpus=0, max_job_count=100_000))
            slurm = BusySlurm(cluster.environ())
            slurm.fill()
            yield slurm
        finally:
            cluster.down()
