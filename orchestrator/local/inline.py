"""The inline cluster: runs in the foreground of the command that launched them, one after another."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from orchestrator import after, ledger
from orchestrator.cluster import Capacity, Cluster
from orchestrator.errors import RequestError
from orchestrator.layout import LaunchPaths
from orchestrator.local import room
from orchestrator.local.supervisor import Sidecars, Supervisor
from orchestrator.local.tasks import observe
from orchestrator.record import Observation
from orchestrator.spec import Resources


class Inline:
    """One slot, in this process. `submit` queues; `run` works the queue off."""

    background = False

    def __init__(
        self, *, grace_seconds: float = 30.0, scratch: str | None = None,
        others: Mapping[str, Cluster] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """`others` are asked about the launches that ours start after."""
        self._sidecars, self._scratch = Sidecars(), scratch
        self._supervisor = Supervisor(
            cpus=1, grace_seconds=grace_seconds, sync=self._sidecars.sync,
            held=lambda launch: after.under_way(launch, others),
        )  # fmt: skip

    def check(self, shapes: Collection[Resources], folder: Path, data: Mapping[str, int]) -> tuple[str, ...]:  # noqa: ARG002 - any folder will do
        check_one_process(shapes, "inline")
        return room.check(data, self._scratch)

    def capacity(self) -> Capacity:
        return Capacity(scratch=room.scratch(self._scratch))

    def submit(self, launch: LaunchPaths) -> None:
        self._supervisor.add(launch)

    def go_on(self, launch: LaunchPaths) -> int:  # noqa: ARG002 - the protocol's signature
        return 0  # nothing ever waits for room

    def run(self, *, until: Callable[[], bool] = lambda: False) -> None:
        """Run what was submitted to its end, or until told to stop; what then still runs is asked to stop."""
        try:
            self._supervisor.run(until=until)
        finally:
            self._supervisor.stop("its launch was stopped")

    def close(self) -> None:
        """Wait until everything logged has reached the tracking store."""
        self._sidecars.close()

    def observe(self, launch: LaunchPaths, tasks: Collection[int]) -> Mapping[int, Observation]:
        launcher = ledger.read_launch(launch).launcher
        told = f"its launch (pid {launcher.pid} on {launcher.host}) has ended"
        return observe(launch, tasks, supervised=launcher.alive(), idle=told)

    def cancel(self, launch: LaunchPaths, tasks: Collection[int]) -> None:
        """Nothing to do: the launching process sees the `cancelled` marks within a moment."""


def check_one_process(shapes: Collection[Resources], cluster: str) -> None:
    """Refuse runs of several processes, which these clusters do not start yet."""
    for shape in shapes:
        if shape.world_size > 1:
            raise RequestError(
                f"resources ask for {shape.nodes} x {shape.processes_per_node} training processes",
                why=f"cluster={cluster} starts one process per run", fix="resources.nodes=1 resources.gpus_per_node=1",
            )  # fmt: skip
