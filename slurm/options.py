"""The options of a `cluster:` section of kind slurm: a site's defaults, as plain data."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Self

from orchestrator.config.fields import ANYTHING, Field, check, choice, gpu_type, not_negative, text, texts, truth, whole
from orchestrator.data import Staging
from orchestrator.errors import ConfigError

TEXTS = ("partition", "account", "qos", "constraint", "exclude", "nodelist", "reservation", "gres", "comment")
"""Passed to sbatch unchanged, under the same name."""

RESOURCES = ("time", "mem", "mem-per-cpu", "mem-per-gpu", "wckey")
"""Options of sbatch that the engine sets from resources, if at all: otherwise a site's default applies."""

_INSTEAD = {
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "resources.mem_gb_per_node"),
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task"), "resources.gpus_per_node"),
    **dict.fromkeys(("requeue", "no-requeue"), "resources.attempts.without_progress"),
    **{name: f"cluster.{name}" for name in (*TEXTS, "clusters")},
    "nodes": "resources.nodes",
    "cpus-per-task": "resources.cpus_per_node",
    "time": "resources.hours",
    "signal": "cluster.signal_seconds",
}
"""The key to set instead of an option of sbatch. The other options that the engine sets have none."""

_OURS = frozenset({
    "array", "output", "error", "open-mode", "job-name", "nodes", "ntasks-per-node", "cpus-per-task", "mem", "time",
    "ntasks", "tasks-per-node", "gpus", "gpus-per-task", "mem-per-cpu", "mem-per-gpu", "wait", "clusters",
    "gpus-per-node", "signal", "wckey", "requeue", "no-requeue", "comment", "chdir", "wrap", "parsable", "test-only",
})  # fmt: skip
"""Options that the engine sets, from resources or for its own purposes; refused in `extra`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmOptions:
    """How jobs are submitted. `extra` is passed to sbatch unchanged; `setup` are shell lines before the job's program.

    `sbatch_defaults` are options of sbatch, too, which apply where nothing else sets them; those of TEXTS are in their
    own fields. `clusters`: the cluster that the jobs are submitted to, if there are several.

    `gpu_type`, `gpu_option` and `mem_option`: how a site wants GPUs and memory to be requested, see `script`.

    `throttle`: the most tasks of an array that run at once. `signal_seconds`: how long before the time limit a run is
    signalled to save. `max_requeues`: the older name of `resources.attempts.without_progress`, which it overrides.
    `nodes_may_submit`: whether a job, at its end, may call sbatch for pending tasks. `staging`: how data versions are
    copied to a node.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    nodelist: str | None = None
    reservation: str | None = None
    gres: str | None = None
    comment: str | None = None
    gpu_type: str | None = None
    gpu_option: str = "gpus-per-node"
    mem_option: str = "mem"
    clusters: str | None = None
    extra: Mapping[str, object] = field(default_factory=dict)
    sbatch_defaults: Mapping[str, object] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    scratch: str | None = None
    throttle: int | None = None
    signal_seconds: int = 90
    max_requeues: int | None = None
    nodes_may_submit: bool = True
    grace_seconds: float = 30.0
    staging: Staging = field(default_factory=Staging)

    @classmethod
    def parse(cls, section: Mapping[str, object]) -> Self:
        """Return checked options. Raises ConfigError for an unknown key or a value of the wrong type."""
        other = "give other options of sbatch under cluster.extra: {{{key}: ...}}"
        given = check("cluster", section, _FIELDS, fix=other)
        given.pop("kind", None)
        extra, defaults = given.get("extra", {}), given.get("sbatch_defaults", {})
        _check_options("extra", extra, refused=_OURS.union(TEXTS))
        _check_options("sbatch_defaults", defaults, refused=_OURS.difference(RESOURCES))
        defaults = {str(key).replace("_", "-"): value for key, value in defaults.items() if value is not None}
        given = {**{key: str(defaults.pop(key)) for key in TEXTS if key in defaults}, **given}
        staging = Staging.parse(section.get("staging"))
        if staging.request_tmp and "tmp" in extra:
            raise ConfigError(
                "cluster.extra.tmp and cluster.staging.request_tmp both say how much scratch to ask for",
                fix="remove one of them: cluster.staging.request_tmp=false",
            )
        return cls(**{**given, "sbatch_defaults": defaults, "staging": staging})


def _check_options(section: str, options: Mapping[str, object], refused: Collection[str]) -> None:
    for key, value in options.items():
        name = str(key).replace("_", "-")
        if name in refused or not name.replace("-", "").isalnum():
            raise ConfigError(
                f"cluster.{section}.{key} is not for you to set",
                why="it has a key of its own"
                if name in _INSTEAD
                else "the engine sets it, or sbatch has no such option",
                fix=f"remove it, and set {_INSTEAD[name]}" if name in _INSTEAD else f"remove cluster.{section}.{key}",
            )
        if not isinstance(value, str | int | float | None) or (isinstance(value, str) and _unprintable(value)):
            raise ConfigError(
                f"cluster.{section}.{key} is {value!r}",
                why="it is one line without a backslash, or a number; true is the option alone, false or null none",
                fix=f"correct cluster.{section}.{key}; several values are one text, such as 'a,b'",
            )


def _unprintable(text: str) -> bool:
    """Return whether a text cannot be passed to sbatch, which reads a backslash as an escape even in single quotes."""
    return any(ord(character) < 32 or character in "\x7f\\" for character in text)


_ONE_LINE = Field(
    holds=lambda value: type(value) is int or (isinstance(value, str) and not _unprintable(value)),
    rule="it is text, on one line and without a backslash",
    read=str,
)
_FOLDER = text("it is text, on one line and without a backslash", holds=lambda line: not _unprintable(line))
_OPTIONS = Field(
    holds=lambda value: not value or isinstance(value, Mapping),
    rule="it maps sbatch options to values",
    example="{licenses: 'foo:1'}",
    read=lambda value: dict(value or {}),
)
_FIELDS = {
    "kind": ANYTHING,
    **dict.fromkeys(TEXTS, _ONE_LINE),
    "scratch": _FOLDER,
    "gpu_type": gpu_type(),
    "gpu_option": choice("gpus-per-node", "gpus-per-task", "gres", optional=True),
    "mem_option": choice("mem", "mem-per-cpu", "whole-node", optional=True),
    "clusters": text(
        "it names one cluster: the runs of a launch are looked for where they were submitted",
        example="gamma",
        holds=lambda name: name != "all" and re.fullmatch(r"[A-Za-z0-9_.-]+", name),
    ),
    **dict.fromkeys(("throttle", "signal_seconds", "max_requeues"), whole(0, optional=True)),
    "grace_seconds": not_negative(),
    "nodes_may_submit": truth("true"),
    "setup": texts("it is a list of shell lines", example="['module load cuda']", holds=lambda _: True),
    "extra": _OPTIONS,
    "sbatch_defaults": _OPTIONS,
    "staging": ANYTHING,
}
