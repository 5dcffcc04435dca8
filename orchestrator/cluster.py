"""What every cluster can do; `local/` and `slurm/` implement it, tests/support/cluster_contract.py holds them to it."""

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
    """What a scheduler says of one task of a launch."""

    WAITING = "waiting"  # kept by its cluster, which hands it over later
    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A scheduler's last word on one task: its state, why, the job's name there, and the node.

    `status` is the exit status of a job that failed by itself, `output` what it printed. `ended` is when it ended,
    in seconds since the epoch. `unattended`: it has ended, and nobody but who looks will ever write down how.
    `forgotten`: the scheduler has no memory of it, so that `reason` is no news. `untidy`: its jobs are not as they
    should be, and the cluster's `go_on` puts that right.
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
    untidy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """How many tasks a cluster had no room for, why, and who hands them over later."""

    tasks: int
    reason: str
    later: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scratch:
    """How much a node's scratch holds. `bytes`: on the largest node; None: unknown, and `where` says why.

    `least_bytes`: on the smallest node. `free_bytes`: of these, what is free now; None where only the node knows.
    """

    where: str
    bytes: int | None = None
    least_bytes: int | None = None
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a cluster has for a run, as far as it tells.

    `hours`: the time limit of a run that asks for none; None: it has none, or nobody knows.
    """

    scratch: Scratch
    hours: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What queued tasks are given instead of what they were launched with; None, or no entry: as it was.

    `options` are a cluster's own: partition, account, qos. `throttle`: at most so many at once; 0: no limit.
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
        """Return both, where the later one overrules."""
        return Change(
            hours=self.hours if later.hours is None else later.hours,
            throttle=self.throttle if later.throttle is None else later.throttle,
            options={**self.options, **later.options},
        )


class Cluster(Protocol):
    """Runs the tasks of launches. A task is named by its launch and its index in the launch's plan.

    A cluster keeps what it must remember in files of its own; it never changes records.
    """

    @property
    def background(self) -> bool:
        """Whether `submit` returns before the tasks have run."""

    def check(self, shapes: Collection[Resources], folder: Path, data: Mapping[str, int]) -> tuple[str, ...]:
        """Raise RequestError if a run of one of these shapes can never start here, or not from this folder.

        `data` are the sizes of data versions, in bytes: each must fit on a node. Returns what a person should know.
        """

    def capacity(self) -> Capacity:
        """Return what this cluster has for a run."""

    def submit(self, launch: LaunchPaths) -> Waiting | None:
        """Hand over the tasks of a published launch; return what must wait for room, which is its own to remember.

        Raises ClusterError where tasks are refused: those before them are handed over, the others never will be.
        """

    def go_on(self, launch: LaunchPaths) -> int:
        """Hand over what had to wait, as far as there is room now; return how many tasks. Raises nothing.

        What was observed as `untidy` is put right, too.
        """

    def observe(self, launch: LaunchPaths, tasks: Collection[int]) -> Mapping[int, Observation]:
        """Return what is known of these tasks. What cannot be asked is UNKNOWN, never ENDED."""

    def cancel(self, launch: LaunchPaths, tasks: Collection[int]) -> None:
        """Stop these tasks, whether they have started or not. Their `cancelled` marks are set already."""

    def hold(self, launch: LaunchPaths, tasks: Collection[int]) -> None:
        """Keep these tasks, which wait, from starting. Their `held` marks are set already."""

    def release(self, launch: LaunchPaths, tasks: Collection[int]) -> None:
        """Let these tasks start. Their `held` marks are gone already."""

    def change(self, launch: LaunchPaths, tasks: Collection[int], change: Change) -> None:
        """Give these tasks, which wait, other limits. Raises RequestError where this cluster has none to give."""


def check_data(data: Mapping[str, int], scratch: Scratch, *, fix: str) -> None:
    """Refuse a data version that fits on no node's scratch; nothing is refused where its size is unknown."""
    for name, needed in data.items():
        if scratch.bytes is not None and needed > scratch.bytes:
            raise RequestError(
                f"data version {name} has {size(needed)}", why=f"{scratch.where} holds {size(scratch.bytes)}", fix=fix
            )
