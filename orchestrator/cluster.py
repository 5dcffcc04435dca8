"""The interface of a cluster, implemented by `local/` and `slurm/` and tested by tests/support/cluster_contract.py."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, Self

from orchestrator.errors import RequestError
from orchestrator.layout import LaunchPaths
from orchestrator.spec import Resources
from orchestrator.system.units import size


class JobState(StrEnum):
    """The state of one task of a launch, according to its scheduler."""

    WAITING = "waiting"  # kept by its cluster, which submits it later
    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The latest answer of a scheduler about one task: its state, the reason, the job's name there, and the node.

    `status` is the exit status of a job that failed by itself, `output` its output. `ended` is when it ended, in
    seconds since the epoch. `unattended`: it has ended, and no process of its own will record how. `forgotten`: the
    scheduler no longer knows it, so that `reason` adds no information. `needs_cleanup`: its jobs are not in their
    intended state, which the cluster's `submit_pending` corrects.
    """

    state: JobState
    reason: str = ""
    job: str = ""
    node: str = ""
    status: int | None = None
    output: str = ""
    ended: float | None = None
    unattended: bool = False
    forgotten: bool = False
    needs_cleanup: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """The number of tasks that could not be submitted yet, why, and which process submits them later."""

    tasks: int
    reason: str
    later: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scratch:
    """The capacity of a node's scratch. `bytes`: on the largest node; None if unknown, and `where` says why.

    `least_bytes`: on the smallest node. `free_bytes`: the part that is free now; None if only the node knows.
    """

    where: str
    bytes: int | None = None
    least_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a cluster offers a run, as far as it is known.

    `hours`: the time limit of a run that requests none; None if it has no limit, or it is unknown.
    """

    scratch: Scratch
    hours: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """New limits of queued tasks; None, or a missing entry, leaves a limit as it was.

    `options` are a cluster's own: partition, account, qos. `throttle`: the most tasks at once; 0: no limit.
    """

    hours: float | None = None
    throttle: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(hours=value["hours"], throttle=value["throttle"], options=value["options"])

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def then(self, later: Change) -> Change:
        """Return both changes combined; `later` takes precedence."""
        return Change(
            hours=self.hours if later.hours is None else later.hours,
            throttle=self.throttle if later.throttle is None else later.throttle,
            options={**self.options, **later.options},
        )


class Cluster(Protocol):
    """Runs the tasks of launches. A task is named by its launch and its index in the launch's plan.

    A cluster keeps its state in files of its own; it never changes records.
    """

    @property
    def background(self) -> bool:
        """Whether `submit` returns before the tasks have run."""

    def check(self, shapes: Collection[Resources], folder: Path, data: Mapping[str, int]) -> tuple[str, ...]:
        """Raise RequestError if a run of one of these shapes can never start here, or not from this folder.

        `data` are the sizes of data versions, in bytes: each must fit on a node. Returns notes for the user.
        """

    def capacity(self) -> Capacity:
        """Return what this cluster offers a run."""

    def submit(self, launch: LaunchPaths) -> Waiting | None:
        """Submit the tasks of a published launch; return those that have to wait, which the cluster keeps track of.

        Raises ClusterError if tasks are refused: those before them are submitted, the others never will be.
        """

    def submit_pending(self, launch: LaunchPaths) -> int:
        """Submit tasks that had to wait, as far as possible now; return how many. Raises nothing.

        Also corrects tasks that were observed as `needs_cleanup`.
        """

    def observe(self, launch: LaunchPaths, tasks: Collection[int]) -> Mapping[int, Observation]:
        """Return what is known about these tasks. A task that cannot be queried is UNKNOWN, never ENDED."""

    def cancel(self, launch: LaunchPaths, tasks: Collection[int]) -> None:
        """Stop these tasks, whether they have started or not. Their `cancelled` marks are set already."""

    def hold(self, launch: LaunchPaths, tasks: Collection[int]) -> None:
        """Keep these waiting tasks from starting. Their `held` marks are set already."""

    def release(self, launch: LaunchPaths, tasks: Collection[int]) -> None:
        """Let these tasks start. Their `held` marks are already removed."""

    def change(self, launch: LaunchPaths, tasks: Collection[int], change: Change) -> None:
        """Change the limits of these waiting tasks. Raises RequestError if this cluster cannot do that."""


def check_data(data: Mapping[str, int], scratch: Scratch, *, fix: str) -> None:
    """Refuse a data version that fits on no node's scratch; one of unknown size is not refused."""
    for name, needed in data.items():
        if scratch.bytes is not None and needed > scratch.bytes:
            raise RequestError(
                f"data version {name} has {size(needed)}", why=f"{scratch.where} holds {size(scratch.bytes)}", fix=fix
            )
