"""The nouns: what an experiment is once its configuration has been composed and checked.

Plain data, no behaviour beyond derived numbers. Everything here is JSON-serialisable by construction. Those that
every command needs are here; the others in `experiment` and `search`, imported by those that launch or search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
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


CAUSES = ("killed", "node_failed", "out_of_memory", "stalled", "disk")
"""The causes for which a run that has ended early may be started again by itself; an exception needs a pattern."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """When a run that ended before it was done is started again by itself, and with what.

    `of`: how many attempts it has, the first one included; those that a preemption or a time limit ends do not count.
    `when`: the causes, of CAUSES; `exceptions`: patterns of the user's exceptions. `mem_factor`: by how much the memory
    grows after it was too little, to `mem_gb_most` (None: what the largest node has); `hours_factor`: the time limit,
    each time. `avoid_node`: not on the node where it was killed or has stalled. `without_progress`: how many starts in
    a row after a preemption or at the time limit may take no step that was not taken before. `stall_minutes`: without
    progress for so long an attempt has stalled; None: ten times its longest step, and at least 15 minutes. Before the
    first step `startup_minutes` counts.
    """

    of: int = 3
    when: tuple[str, ...] = CAUSES
    exceptions: tuple[str, ...] = ()
    mem_factor: float = 1.5
    mem_gb_most: float | None = None
    hours_factor: float = 1.0
    avoid_node: bool = True
    backoff_minutes: float = 1.0
    without_progress: int = 20
    stall_minutes: float | None = None
    startup_minutes: float = 60.0

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Attempts:
        """Read what `to_json` wrote; keys of a newer version are ignored."""
        known = {key: each for key, each in value.items() if key in Attempts.__dataclass_fields__}
        known |= {key: tuple(known[key]) for key in ("when", "exceptions") if key in known}
        return Attempts(**known)

    def to_json(self) -> dict[str, object]:
        """Return what differs from the defaults."""
        return {key: value for key, value in asdict(self).items() if value != getattr(_DEFAULT, key)}


_DEFAULT = Attempts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one run needs. Units are in the names; `hours` is the time limit of one attempt.

    `gpu_type`: of its GPUs, where a cluster has several; None: what `cluster.gpu_type` says. `attempts` None: it was
    launched by an older version, and is not started again by itself.
    """

    nodes: int = 1
    gpus_per_node: int = 0
    gpu_type: str | None = None
    cpus_per_node: int = 1
    mem_gb_per_node: float | None = None
    hours: float | None = None
    pack: Pack | None = None
    attempts: Attempts | None = None

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
        nested = {key: read(**value[key]) for key, read in _NESTED.items() if value.get(key) is not None}
        return _shared(tuple({**value, **nested}.items()))

    def to_json(self) -> dict[str, Any]:
        return dict(_written(self))


@lru_cache(256)
def _shared(items: tuple[tuple[str, Any], ...]) -> Resources:
    """Return the same resources for the same values: 10,000 runs have few."""
    return Resources(**dict(items))


_NESTED: Mapping[str, Callable[..., object]] = {"pack": Pack, "attempts": lambda **given: Attempts.from_json(given)}
_ADDED = frozenset({"pack", "gpu_type", "attempts"})
"""Keys that older lines of plans do not have: left out where nothing is asked for."""


@lru_cache(256)
def _written(resources: Resources) -> dict[str, object]:
    found = {key: value for key, value in asdict(resources).items() if value is not None or key not in _ADDED}
    return found | ({"attempts": resources.attempts.to_json()} if resources.attempts else {})


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
class CheckpointOptions:
    """When the state of a run is saved, and how exactly it has to resume.

    `minutes`: how often; None: every minute below 100 MB, otherwise every five, and in either case so rarely that the
    training waits for less than 1 % of the time. `steps`: also after this many steps of the optimizer. `keep`: how many
    of the latest ones are kept, besides the best. `asynchronous`: written beside the training where memory allows
    a copy. `exact`: what happens where a run cannot resume exactly: `warn`, `refuse`, or `off` (it is not checked).
    """

    minutes: float | None = None
    steps: int | None = None
    keep: int = 2
    asynchronous: bool = True
    exact: Literal["warn", "refuse", "off"] = "warn"


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
