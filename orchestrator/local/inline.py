"""The inline cluster: runs in the foreground of the command that launched them, one after another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Unpack

from orchestrator.cluster import Capacity, Change, Cluster, Observation
from orchestrator.errors import RequestError
from orchestrator.layout import LaunchPaths
from orchestrator.local import machine
from orchestrator.local import scratch as space
from orchestrator.local.tasks import observe
from orchestrator.records.launches import read_launch
from orchestrator.spec import Resources

if TYPE_CHECKING:
    from orchestrator.local.prefork import PreforkLauncher
    from orchestrator.local.schedule import Terms
    from orchestrator.local.supervisor import Sidecars, Supervisor

_log = logging.getLogger(__name__)


class Inline:
    """One slot, in this process. `submit` queues; `run` executes the queue.

    The supervisor is made, and its code imported, with the first launch: a caller that only observes needs neither.
    """

    background = False

    def __init__(
        self,
        *,
        scratch: str | None = None,
        others: Mapping[str, Cluster] = MappingProxyType({}),
        **options: Unpack[machine.Options],
    ) -> None:
        """`others` are asked about the launches that ours start after."""
        self._scratch, self._others, self._options = scratch, others, options
        self._announced = ""

    def check(self, shapes: Collection[Resources], folder: Path, data: Mapping[str, int]) -> tuple[str, ...]:  # noqa: ARG002 - any folder will do
        machine.check(shapes, self._terms, cluster="inline")
        return (*machine.notes(self._terms), *space.check(data, self._scratch))

    @cached_property
    def _sidecars(self) -> Sidecars:
        from orchestrator.local.supervisor import Sidecars

        return Sidecars()

    @cached_property
    def _prefork(self) -> PreforkLauncher:
        from orchestrator.local.prefork import PreforkLauncher

        return PreforkLauncher()

    @cached_property
    def _supervisor(self) -> Supervisor:
        from orchestrator.launch import dependencies as after
        from orchestrator.local.device_locks import DeviceLocks
        from orchestrator.local.nvml import Users
        from orchestrator.local.supervisor import Supervisor

        return Supervisor(
            sync=self._sidecars.sync,
            start=self._prefork,
            locks=DeviceLocks(),
            users=Users(),
            early=lambda launch: after.under_way(launch, self._others),
        )

    @cached_property
    def _terms(self) -> Terms:
        """With one CPU to give, one run goes after another: alone, any is started."""
        return replace(machine.terms(self._options), cpus=1, mem_gb=None)

    def capacity(self) -> Capacity:
        return Capacity(scratch=space.scratch(self._scratch))

    def submit(self, launch: LaunchPaths) -> None:
        self._supervisor.add(launch, self._terms)

    def submit_pending(self, launch: LaunchPaths) -> int:  # noqa: ARG002 - the protocol's signature
        return 0  # nothing ever waits for a free place

    def run(self, *, until: Callable[[], bool] = lambda: False) -> None:
        """Run what was submitted to its end, or until asked to stop; what then still runs is asked to stop."""

        def due() -> bool:
            self._announce()
            return until()

        try:
            self._supervisor.run(until=due)
        finally:
            self._supervisor.stop("its launch was stopped")
            self._prefork.close()

    def _announce(self) -> None:
        """Say once what is waited for, where it is not our own runs' end."""
        if self._supervisor.held_up not in ("", self._announced):
            self._announced = self._supervisor.held_up
            _log.warning("the next run %s", self._announced)

    def close(self) -> None:
        """Wait until everything logged has reached the tracking store."""
        self._sidecars.close()

    def observe(self, launch: LaunchPaths, tasks: Collection[int]) -> Mapping[int, Observation]:
        launcher = read_launch(launch).launcher
        idle = f"its launch (pid {launcher.pid} on {launcher.host}) has ended"
        return observe(launch, tasks, supervised=launcher.alive(), idle=idle)

    def cancel(self, launch: LaunchPaths, tasks: Collection[int]) -> None:
        """Nothing to do: the launching process sees the `cancelled` marks within a moment."""

    def hold(self, launch: LaunchPaths, tasks: Collection[int]) -> None:
        """Nothing to do: who starts the tasks sees the `held` marks."""

    def release(self, launch: LaunchPaths, tasks: Collection[int]) -> None:
        """Nothing to do but to make sure that somebody starts the tasks."""

    def change(self, launch: LaunchPaths, tasks: Collection[int], change: Change) -> None:  # noqa: ARG002 - as above
        raise no_change("inline")


def no_change(cluster: str) -> RequestError:
    """Return the error of a change to what is queued on a cluster that has no other limits to give."""
    return RequestError(
        f"cluster={cluster} cannot change what is queued",
        why="only Slurm's queue has limits to change",
        fix="orch cancel what waits, and launch it again as it is to be",
    )
