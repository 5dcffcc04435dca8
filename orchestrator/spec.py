"""The nouns: what an experiment is once its configuration has been composed and checked.

Plain data, no behaviour beyond derived numbers. Everything here is JSON-serialisable by construction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal, NewType, Self

RunId = NewType("RunId", str)
"""The first 12 hexadecimal digits of the SHA-256 of a run's identity document."""

Config = Mapping[str, Any]
"""A resolved configuration: nested dicts and lists of None, bool, int, float and str."""

Point = Mapping[str, Any]
"""The coordinates of one grid point: swept key (dotted path or config group) -> value."""

VIEW = "<view>"
"""Stands in a frozen config for the folder of the run's data version; replaced on the node (`${view:}`)."""

PROJECT = "<project>"
"""Stands in a frozen config for the frozen project's folder; replaced on the node (`${project:}`)."""

EVALUATIONS = ("validate", "test", "predict")
"""The tasks that train nothing: they need weights to start from."""

TASKS = ("fit", "fit_test", *EVALUATIONS)
"""What a run does: train and validate, or also test the best checkpoint afterwards; or one of the evaluations."""

STARTS = ("init_from", "resume_from")
"""The keys that say where a run starts from: its weights, or its whole state. A config has at most one of them."""


ASK_ABOVE = 1_000
"""A launch of more runs is confirmed first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """How many runs share one job, and how many of them run at the same time. `runs`: None is still to be chosen."""

    runs: int | None = None
    at_once: int = 1

    @property
    def rounds(self) -> int:
        """How many runs are worked off one after another."""
        return math.ceil((self.runs or 1) / self.at_once)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one run needs. Units are in the names; `hours` is the time limit of one attempt."""

    nodes: int = 1
    gpus_per_node: int = 0
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
            self, pack=None, cpus_per_node=self.cpus_per_node * at_once,
            mem_gb_per_node=self.mem_gb_per_node and self.mem_gb_per_node * at_once,
            hours=self.hours and self.hours * self.pack.rounds,
        )  # fmt: skip

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


@lru_cache(256)
def _written(resources: Resources) -> dict[str, Any]:
    found = asdict(resources)
    if resources.pack is None:
        del found["pack"]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The metric by which runs are compared and their best checkpoint is chosen."""

    metric: str
    mode: Literal["min", "max"]

    def better(self, a: float, b: float) -> bool:
        return a > b if self.mode == "max" else a < b


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """What a key is drawn from, or searched in: a kind and its arguments, checked (config/space.py knows the kinds)."""

    kind: str
    arguments: tuple[Any, ...]


KeyPath = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A config whose searched leaves are filled in on the node; one for each choice of what is composed at launch.

    `choices` are the values of the composed keys, `keys` the dotted keys that are searched where these hold. `fills`
    are leaves that read them: their path, and the texts and searched keys that they are put together from.
    """

    choices: Point
    keys: tuple[str, ...]
    fills: tuple[tuple[KeyPath, tuple[str | KeyPath, ...]], ...]
    config: Config

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        fills = tuple(
            (tuple(at), tuple(piece if isinstance(piece, str) else tuple(piece) for piece in pieces))
            for at, pieces in value["fills"]
        )
        return cls(choices=value["choices"], keys=tuple(value["keys"]), fills=fills, config=value["config"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """An adaptive sweep: each trial's values are asked for when it starts, from what the others have come to.

    `id` is the hash of all else. `sampler` and `pruner` are `_target_` nodes; without `pruner` nothing is pruned.
    """

    id: str
    space: Mapping[str, Distribution]
    sampler: Config
    pruner: Config | None
    seed: int
    objectives: tuple[Objective, ...]
    templates: tuple[Template, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        space = {
            key: Distribution(kind=each["kind"], arguments=tuple(each["arguments"]))
            for key, each in value["space"].items()
        }
        return cls(
            id=value["id"], space=space, sampler=value["sampler"], pruner=value["pruner"], seed=value["seed"],
            objectives=tuple(Objective(**each) for each in value["objectives"]),
            templates=tuple(map(Template.from_json, value["templates"])),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of an adaptive sweep."""

    search: Search
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One grid point, resolved. `config` holds model, data, trainer, seed and task, ready to be built.

    Where it starts from another run's checkpoint, or a file, it also holds one of STARTS. Of a trial it is one of the
    templates: what it trains is known when it starts.
    """

    id: RunId
    point: Point
    config: Config
    resources: Resources
    data_digest: str | None
    trial: Trial | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOptions:
    """What is frozen beside the tracked files, and how large it may be."""

    include: tuple[str, ...] = ()
    max_file_mb: float = 10.0
    max_total_mb: float = 200.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """How the runs of a launch are let loose.

    `canary`: so many runs first, the others once these are done. `brake`: after so many failures with one signature
    nothing more begins; None: never. `notify`: a program and its arguments, told of the first failure and of the end.
    """

    canary: int = 0
    brake: int | None = None
    notify: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the options that a launch's header holds; a launch of an older version has none."""
        return cls(**{**value, "notify": tuple(value.get("notify", ()))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What the YAML and the overrides compose to: a named set of runs and how to run them.

    `choices` are the config groups chosen (group -> option), `sweep` the sweep's definition as written,
    `overrides` the command line, `tags` words to find its launches by, and `notes` what a person should know before.
    A launch of more than `ask_above` runs is one to confirm. It starts once the experiments named in `after` are done.
    """

    name: str
    runs: tuple[Run, ...]
    objective: Objective | None
    cluster: Mapping[str, Any]
    tracking: Mapping[str, Any]
    snapshot: SnapshotOptions = field(default_factory=SnapshotOptions)
    launch: LaunchOptions = field(default_factory=LaunchOptions)
    tags: tuple[str, ...] = ()
    env: Literal["refuse", "warn"] = "warn"
    choices: Mapping[str, str] = field(default_factory=dict)
    sweep: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ask_above: int = ASK_ABOVE
    after: tuple[str, ...] = ()
