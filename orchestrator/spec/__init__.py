"""The nouns: what an experiment is once its configuration has been composed and checked.

Plain data, no behaviour beyond derived numbers. Everything here is JSON-serialisable by construction. Those that
every command needs are here; the others in `experiment` and `search`, imported by those that launch or search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NewType, Self

RunId = NewType("RunId", str)
"""The first 12 hexadecimal digits of the SHA-256 of a run's identity document."""

Config = Mapping[str, Any]
"""A resolved configuration: nested dicts and lists of None, bool, int, float and str."""

Point = Mapping[str, Any]
"""The coordinates of one grid point: swept key (dotted path or config group) -> value."""

VIEW = "<view>"
"""The placeholder in a frozen config for the folder of the run's data version; replaced on the node (`${view:}`)."""

PROJECT = "<project>"
"""The placeholder in a frozen config for the frozen project's folder; replaced on the node (`${project:}`)."""

EVALUATIONS = ("validate", "test", "predict")
"""The tasks that train nothing: they need weights to start from."""

TASKS = ("fit", "fit_test", *EVALUATIONS)
"""What a run does: train and validate, or also test the best checkpoint afterwards; or one of the evaluations."""

STARTS = ("init_from", "resume_from")
"""The keys that say where a run starts from: its weights, or its whole state. A config has at most one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """How many runs share one job, and how many of them run at the same time. `runs`: None is still to be chosen."""

    runs: int | None = None
    at_once: int = 1

    @property
    def rounds(self) -> int:
        """How many runs are executed one after another."""
        return math.ceil((self.runs or 1) / self.at_once)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one run needs. Units are in the names; `hours` is the time limit of one attempt.

    `gpu_type`: of its GPUs, where a cluster has several; None: what `cluster.gpu_type` says.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    gpu_type: str | None = None
    cpus_per_node: int = 1
    mem_gb_per_node: float | None = None
    hours: float | None = None
    pack: Pack | None = None

    @property
    def processes_per_node(self) -> int:
        """One training process per GPU, and one where there is none."""
        return max(1, self.gpus_per_node)

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node

    @property
    def job(self) -> Resources:
        """What the job asks for that the run is in: runs of a pack share its GPU, and have each CPUs of their own."""
        if self.pack is None:
            return self
        at_once = self.pack.at_once
        return replace(
            self,
            pack=None,
            cpus_per_node=self.cpus_per_node * at_once,
            mem_gb_per_node=self.mem_gb_per_node and self.mem_gb_per_node * at_once,
            hours=self.hours and self.hours * self.pack.rounds,
        )

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Resources:
        pack = value.get("pack")
        return Resources(**{**value, "pack": Pack(**pack)}) if pack else _shared(tuple(value.items()))

    def to_json(self) -> dict[str, Any]:
        return dict(_written(self))


@lru_cache(256)
def _shared(items: tuple[tuple[str, Any], ...]) -> Resources:
    """Return the same resources for the same values: 10,000 runs have few."""
    return Resources(**dict(items))


_ADDED = frozenset({"pack", "gpu_type"})
"""Keys that older lines of plans do not have: left out where nothing is asked for."""


@lru_cache(256)
def _written(resources: Resources) -> dict[str, object]:
    return {key: value for key, value in asdict(resources).items() if value is not None or key not in _ADDED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The metric by which runs are compared and their best checkpoint is chosen."""

    metric: str
    mode: Literal["min", "max"]

    def better(self, a: float, b: float) -> bool:
        return a > b if self.mode == "max" else a < b


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOptions:
    """What is frozen beside the tracked files, and how large it may be."""

    include: tuple[str, ...] = ()
    max_file_mb: float = 10.0
    max_total_mb: float = 200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """How the runs of a launch are started and limited.

    `canary`: how many runs start first, the others once these are done. `brake`: after how many failures with one
    signature nothing more begins; None: never. `notify`: a program and its arguments, called at the first
    failure and at the end.
    """

    canary: int = 0
    brake: int | None = None
    notify: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the options that a launch's header holds; a launch of an older version has none."""
        return cls(**{**value, "notify": tuple(value.get("notify", ()))})
