"""The built-in keys -> types. Pure: resolved dicts in, nouns out; every message names the key and the fix."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from orchestrator.errors import ConfigError, nearest
from orchestrator.identity import TRAINER_NOT_IDENTITY
from orchestrator.layout import EXPERIMENT_NAME
from orchestrator.spec import EVALUATIONS, STARTS, TASKS, Objective, Resources, SnapshotOptions

TOP_LEVEL = (
    "name", "data", "model", "trainer", "resources", "cluster", "tracking", "sweep", "seed", "vars", "task",
    "objective", "env", "snapshot", "experiment", "after", *STARTS,
)  # fmt: skip
_ENGINE_OWNS = {
    "devices": "resources.gpus_per_node", "num_nodes": "resources.nodes", "accelerator": "resources.gpus_per_node",
    "strategy": "resources", "logger": "tracking", "default_root_dir": "the run's folder", "plugins": "the engine",
    "enable_checkpointing": "the engine",
}  # fmt: skip
_CLUSTER_KEYS: Mapping[str, frozenset[str]] = {
    "inline": frozenset({"kind", "scratch", "staging", "grace_seconds"}),
    "workstation": frozenset({"kind", "scratch", "staging", "grace_seconds", "cpus"}),
}
_SERVER = re.compile(r"https?://[^\s@/]+(/[^\s@]*)?")
_END_SECONDS = 60.0
_SERVER_DEFAULTS: Mapping[str, Any] = {"uri": None, "experiment": None, "upload": "jobs", "end_seconds": None}
_TRACKING_KEYS: Mapping[str, frozenset[str]] = {
    "embedded": frozenset({"kind"}),
    "none": frozenset({"kind"}),
    "server": frozenset({"kind", "uri", "experiment", "upload", "end_seconds"}),
}


def check_top_level(config: Mapping[str, Any]) -> None:
    """Refuse unknown keys at the top level, and sections that are not mappings."""
    _known("", config, TOP_LEVEL, hint="put values of your own under vars:")
    for key in TOP_LEVEL:
        if key not in config and key not in {"experiment", "vars", "after", *STARTS}:
            raise ConfigError(f"there is no {key}", why="every experiment has it", fix=f"remove the override ~{key}")
    for section in ("data", "model", "trainer", "resources", "cluster", "tracking", "sweep", "snapshot"):
        _mapping(section, config.get(section))


def name(value: Any) -> str:
    """Return the experiment's name if it can be a folder and an MLflow name."""
    if not isinstance(value, str) or not EXPERIMENT_NAME.fullmatch(value):
        raise ConfigError(
            f"name is {value!r}", why="a name starts with a letter or digit, then letters, digits, '.', '_' and '-', "
            "100 at most; it is a folder under runs/", fix="name=digits-lr",
        )  # fmt: skip
    return value


def resources(value: Mapping[str, Any]) -> Resources:
    """Return checked resources; nodes and CPUs at least 1, GPUs at least 0, memory and hours positive."""
    _known("resources", value, Resources.__dataclass_fields__)
    return Resources(
        nodes=_integer("resources.nodes", value.get("nodes", 1), least=1),
        gpus_per_node=_integer("resources.gpus_per_node", value.get("gpus_per_node", 0), least=0),
        cpus_per_node=_integer("resources.cpus_per_node", value.get("cpus_per_node", 1), least=1),
        mem_gb_per_node=_positive("resources.mem_gb_per_node", value.get("mem_gb_per_node")),
        hours=_positive("resources.hours", value.get("hours")),
    )


def objective(value: Any) -> Objective | None:
    """Return the objective, or None where there is none."""
    if value is None:
        return None
    entries = _mapping("objective", value)
    _known("objective", entries, ("metric", "mode"))
    metric, mode = entries.get("metric"), entries.get("mode")
    if metric is None:
        return None
    if not isinstance(metric, str) or not metric:
        raise ConfigError(
            f"objective.metric is {metric!r}", why="it names a logged metric", fix="objective.metric=val/acc"
        )
    if mode not in ("min", "max"):
        raise ConfigError(f"objective.mode is {mode!r}", why="it is min or max", fix="objective.mode=max")
    return Objective(metric=metric, mode=mode)


def snapshot(value: Mapping[str, Any]) -> SnapshotOptions:
    """Return the snapshot's options."""
    _known("snapshot", value, SnapshotOptions.__dataclass_fields__)
    include = value.get("include") or []
    if not isinstance(include, list) or not all(isinstance(glob, str) and glob for glob in include):
        raise ConfigError(
            f"snapshot.include is {include!r}", why="it is a list of globs", fix="snapshot.include=['assets/*.json']"
        )
    return SnapshotOptions(
        include=tuple(include),
        max_file_mb=_positive("snapshot.max_file_mb", value.get("max_file_mb", 10.0)) or 10.0,
        max_total_mb=_positive("snapshot.max_total_mb", value.get("max_total_mb", 200.0)) or 200.0,
    )


def cluster(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cluster's checked options."""
    if value.get("kind") == "slurm":
        return dict(value)  # the Slurm package checks its own options
    entries = _kind("cluster", value, _CLUSTER_KEYS)
    if entries.get("scratch") is not None and not isinstance(entries["scratch"], str):
        raise ConfigError(
            f"cluster.scratch is {entries['scratch']!r}", why="it is a folder", fix="cluster.scratch=/scratch"
        )
    _positive("cluster.grace_seconds", entries.get("grace_seconds"))
    if entries.get("cpus") is not None:
        _integer("cluster.cpus", entries["cpus"], least=1)
    return entries


def tracking(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tracking's checked options."""
    entries = _kind("tracking", value, _TRACKING_KEYS)
    return _server({**_SERVER_DEFAULTS, **entries}) if entries["kind"] == "server" else entries


def _server(entries: dict[str, Any]) -> dict[str, Any]:
    uri, name = entries["uri"], entries["experiment"]
    if uri is not None and not _SERVER.fullmatch(str(uri)):
        secret = isinstance(uri, str) and "@" in uri
        raise ConfigError(
            "tracking.uri holds a user or password" if secret else f"tracking.uri is {uri!r}",
            why="it would be written to disk" if secret else "it is the address of an MLflow server",
            fix="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead" if secret
            else "tracking.uri=http://HOST:5000, or set MLFLOW_TRACKING_URI",
        )  # fmt: skip
    if name is not None and not (isinstance(name, str) and name.strip()):
        raise ConfigError(f"tracking.experiment is {name!r}", why="it is a name", fix="remove it, or give a name")
    _choice("tracking.upload", entries["upload"], ("jobs", "login"))
    return {**entries, "end_seconds": _positive("tracking.end_seconds", entries["end_seconds"]) or _END_SECONDS}


def seed(value: Any) -> int:
    """Return the seed, an integer in 0..2**32-1 as NumPy and Lightning demand."""
    number = _integer("seed", value, least=0)
    if number >= 2**32:
        raise ConfigError(f"seed is {number}", why="NumPy takes seeds below 2**32", fix="seed=0")
    return number


def task(value: Any) -> str:
    """Return the task."""
    return _choice("task", value, TASKS)


def starts(config: Mapping[str, Any], task: str) -> dict[str, str]:
    """Return where a run of a task starts from, as written; at most one of STARTS."""
    found = {key: config[key] for key in STARTS if config.get(key) is not None}
    for key, value in found.items():
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{key} is {value!r}", why="it names a checkpoint", fix=f"{key}=run:3fa2c81b/best")
    if len(found) > 1:
        raise ConfigError(
            "init_from and resume_from are both set", why="a run starts from weights, or goes on from a whole state",
            fix="remove one of them",
        )  # fmt: skip
    if task in EVALUATIONS and "init_from" not in found:
        raise ConfigError(
            f"task is {task}, and init_from is not set", why="it trains nothing: the weights come from elsewhere",
            fix="init_from=run:3fa2c81b/best, or a path",
        )  # fmt: skip
    return found


def after(value: Any) -> tuple[str, ...]:
    """Return the experiments that are to be done first."""
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, list) or not all(isinstance(n, str) and EXPERIMENT_NAME.fullmatch(n) for n in names):
        raise ConfigError(f"after is {value!r}", why="it names an experiment, or is a list of names", fix="after=NAME")
    return tuple(dict.fromkeys(names))


def env(value: Any) -> str:
    """Return the policy for an environment that changed."""
    return _choice("env", value, ("refuse", "warn"))


def trainer(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the trainer's arguments; refuse those that derive from resources or belong to the engine."""
    for key in value:
        if key in _ENGINE_OWNS:
            raise ConfigError(
                f"trainer.{key} is {value[key]!r}", why=f"it derives from {_ENGINE_OWNS[key]}",
                fix=f"remove trainer.{key}",
            )  # fmt: skip
    component("trainer", value, optional=False)
    for name, callback in _mapping("trainer.callbacks", value.get("callbacks") or {}).items():
        if callback is not None:
            component(f"trainer.callbacks.{name}", _mapping(f"trainer.callbacks.{name}", callback), optional=False)
    for key in TRAINER_NOT_IDENTITY & set(value):
        if not isinstance(value[key], bool):
            raise ConfigError(f"trainer.{key} is {value[key]!r}", why="it is true or false", fix=f"trainer.{key}=false")
    return dict(value)


def component(section: str, value: Mapping[str, Any], *, optional: bool) -> None:
    """Check that a section names what to build."""
    target = value.get("_target_")
    if target is None and optional:
        extra = sorted(set(value) - {"_target_", "version"})
        if extra:
            raise ConfigError(
                f"{section}.{extra[0]} is given, but {section}._target_ is not", why="there is nothing to build",
                fix=f"choose one: {section}=digits, or {section}._target_=package.module.Class",
            )  # fmt: skip
        return
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        raise ConfigError(
            f"{section}._target_ is {target!r}", why="it is the dotted name of a class or function",
            fix=f"{section}._target_=package.module.Class",
        )  # fmt: skip


def _known(section: str, value: Mapping[str, Any], known: Collection[str], *, hint: str = "") -> None:
    for key in value:
        if key not in known:
            full = f"{section}.{key}" if section else str(key)
            raise ConfigError(
                f"{full} is unknown{nearest(str(key), known)}", why=f"known are {', '.join(known)}",
                fix=hint or f"use one of them, or remove {full}",
            )  # fmt: skip


def _kind(section: str, value: Mapping[str, Any], kinds: Mapping[str, frozenset[str]]) -> dict[str, Any]:
    kind = _choice(f"{section}.kind", value.get("kind"), (*kinds, "slurm") if section == "cluster" else tuple(kinds))
    _known(section, value, sorted(kinds[kind]))
    return dict(value)


def _mapping(key: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{key} is {value!r}", why="it is a mapping of keys to values", fix=f"write {key}: {{key: value}}"
        )
    return value


def _choice(key: str, value: Any, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(
            f"{key} is {value!r}{nearest(str(value), choices)}", why=f"it is one of {', '.join(choices)}",
            fix=f"{key}={choices[0]}",
        )  # fmt: skip
    return value


def _integer(key: str, value: Any, *, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{key} is {value!r}", why=f"it is a whole number, at least {least}", fix=f"{key}={least}")
    return value


def _positive(key: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigError(f"{key} is {value!r}", why="it is a positive number", fix=f"{key}=4")
    return float(value)
