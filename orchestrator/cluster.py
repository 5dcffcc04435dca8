"""What every cluster can do; `local/` and `slurm/` implement it, tests/cluster_contract.py holds them to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from orchestrator.layout import LaunchPaths
from orchestrator.record import Observation
from orchestrator.spec import Resources


class Cluster(Protocol):
    """Runs the tasks of launches. A task is named by its launch and its index in the launch's plan.

    A cluster keeps what it must remember in files of its own; it never changes records.
    """

    @property
    def background(self) -> bool:
        """Whether `submit` returns before the tasks have run."""

    def check(self, shapes: Collection[Resources], folder: Path) -> None:
        """Raise RequestError if a run of one of these shapes can never start here, or not from this folder."""

    def submit(self, launch: LaunchPaths) -> None:
        """Hand over all tasks of a published launch. Raises ClusterError; then none has been started."""

    def observe(self, launch: LaunchPaths, tasks: Collection[int]) -> Mapping[int, Observation]:
        """Return what is known of these tasks. What cannot be asked is UNKNOWN, never ENDED."""

    def cancel(self, launch: LaunchPaths, tasks: Collection[int]) -> None:
        """Stop these tasks, whether they have started or not. Their `cancelled` marks are set already."""
