"""The nouns of an experiment: its runs, and how they are launched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.spec import (
    CheckpointOptions,
    Config,
    LaunchOptions,
    Objective,
    Point,
    Resources,
    RunId,
    SnapshotOptions,
)
from orchestrator.spec.search import Trial

ASK_ABOVE = 1_000
"""A launch of more runs is confirmed first."""


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
class Experiment:
    """What the YAML and the overrides compose to: a named set of runs and how to run them.

    `choices` are the config groups chosen (group -> option), `sweep` the sweep's definition as written,
    `overrides` the command line, `tags` words to find its launches by, and `notes` what a person should know before.
    A launch of more than `ask_above` runs is one to confirm. It starts once the experiments named in `after` are done.
    """

    name: str
    runs: tuple[Run, ...]
    objective: Objective | None
    cluster: Mapping[str, object]
    tracking: Mapping[str, Any]
    snapshot: SnapshotOptions = field(default_factory=SnapshotOptions)
    launch: LaunchOptions = field(default_factory=LaunchOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    tags: tuple[str, ...] = ()
    env: Literal["refuse", "warn"] = "warn"
    choices: Mapping[str, str] = field(default_factory=dict)
    sweep: Mapping[str, object] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ask_above: int = ASK_ABOVE
    after: tuple[str, ...] = ()
