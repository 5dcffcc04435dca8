"""What every cluster can do; `local/` and `slurm/` implement it, tests/cluster_contract.py holds them to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.layout import LaunchPaths
from orchestrator.record import Observation
from orchestrator.spec import Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How many tasks a cluster had no room for, why, and who hands them over later."""

    tasks: int
    reason: str
    later: str


class Cluster(Protocol):
    """Runs the tasks of launches. A task is named by its launch and its index in the launch's plan.

    A cluster keeps what it must remember in files of its own; it never changes records.
    """

    @property
    def background(self) -> bool:
        """Whether `submit` returns before the tasks have run."""

    def check(self, shapes: Collection[Resources], folder: Path) -> None:
        """Raise RequestError if a run of one of these shapes can never start here, or not from this folder."""

    def submit(self, launch: LaunchPaths) -> Waiting | None:
        """Hand over the tasks of a published launch; return what must wait for room, which is its own to remember.

        Raises ClusterError where tasks are refused: those before them are handed over, the others never will be.
        """

    def go_on(self, launch: LaunchPaths) -> int:
        """Hand over what had to wait, as far as there is room now; return how many tasks. Raises nothing."""

    def observe(self, launch: LaunchPaths, tasks: Collection[int]) -> Mapping[int, Observation]:
        """Return what is known of these tasks. What cannot be asked is UNKNOWN, never ENDED."""

    def cancel(self, launch: LaunchPaths, tasks: Collection[int]) -> None:
        """Stop these tasks, whether they have started or not. Their `cancelled` marks are set already."""
