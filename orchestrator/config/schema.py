"""The built-in keys -> types. Pure: resolved dicts in, nouns out; every message names the key and the fix."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from orchestrator.errors import ConfigError, nearest
from orchestrator.identity import TRAINER_NOT_IDENTITY
from orchestrator.layout import EXPERIMENT_NAME
from orchestrator.spec import EVALUATIONS, STARTS, TASKS, LaunchOptions, Objective, Pack, Resources, SnapshotOptions

TOP_LEVEL = (
    "name", "data", "model", "trainer", "resources", "cluster", "tracking", "sweep", "seed", "vars", "task",
    "objective", "env", "snapshot", "experiment", "launch", "tags", "after", *STARTS,
)  # fmt: skip
_ENGINE_OWNS = {
    "devices": "resources.gpus_per_node", "num_nodes": "resources.nodes", "accelerator": "resources.gpus_per_node",
    "strategy": "resources", "logger": "tracking", "default_root_dir": "the run's folder", "plugins": "the engine",
    "enable_checkpointing": "the engine",
}  # fmt: skip
_CLUSTER_KEYS: Mapping[str, frozenset[str]] = {
    "inline": frozenset({"kind", "scratch", "staging", "grace_seconds", "devices", "avoid_busy_gpus"}),
    "workstation": frozenset(
        {"kind", "scratch", "staging", "grace_seconds", "cpus", "mem_gb", "priority"}
        | {"devices", "runs_per_gpu", "avoid_busy_gpus"}
    ),
}
_MOST_URGENT = 10**6
_DEVICE = re.compile(r"[^\s,]+")
_SERVER = re.compile(r"https?://[^\s@/]+(/[^\s@]*)?")
_MODEL_NAME = re.compile(r"[^/.:%\"'\s][^/.:%\"'\n]{0,249}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,49}")
_END_SECONDS = 60.0
_CHECKPOINTS = ("best", "last", "all", "none")
_TRACKING_DEFAULTS: Mapping[str, Any] = {"checkpoints": "best", "system_metrics": True, "register": None}
_SERVER_DEFAULTS: Mapping[str, Any] = {"uri": None, "experiment": None, "upload": "jobs", "end_seconds": None}
_TRACKING_KEYS: Mapping[str, frozenset[str]] = {
    "embedded": frozenset({"kind", *_TRACKING_DEFAULTS}),
    "none": frozenset({"kind", *_TRACKING_DEFAULTS}),  # so that tracking=none needs no other experiment
    "server": frozenset({"kind", *_TRACKING_DEFAULTS, *_SERVER_DEFAULTS}),
}


def check_top_level(config: Mapping[str, Any]) -> None:
    """Refuse unknown keys at the top level, and sections that are not mappings."""
    _known("", config, TOP_LEVEL, hint="put values of your own under vars:")
    for key in TOP_LEVEL:
        if key not in config and key not in {"experiment", "vars", "after", *STARTS}:
            raise ConfigError(f"there is no {key}", why="every experiment has it", fix=f"remove the override ~{key}")
    for section in ("data", "model", "trainer", "resources", "cluster", "tracking", "sweep", "snapshot", "launch"):
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
    need = Resources(
        nodes=_integer("resources.nodes", value.get("nodes", 1), least=1),
        gpus_per_node=_integer("resources.gpus_per_node", value.get("gpus_per_node", 0), least=0),
        cpus_per_node=_integer("resources.cpus_per_node", value.get("cpus_per_node", 1), least=1),
        mem_gb_per_node=_positive("resources.mem_gb_per_node", value.get("mem_gb_per_node")),
        hours=_positive("resources.hours", value.get("hours")),
        pack=_pack(value.get("pack")),
    )
    if need.pack and need.world_size > 1:
        raise ConfigError(
            f"resources.pack is given for runs of {need.world_size} processes", why="only runs of one are packed",
            fix="resources.pack=null, or resources.nodes=1 and at most one GPU",
        )  # fmt: skip
    return need


def _pack(value: Any) -> Pack | None:
    """Return how runs are packed; `auto` leaves their number open."""
    if value is None:
        return None
    if value == "auto":
        return Pack()
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"resources.pack is {value!r}",
            why="it is null, auto, or says how many runs",
            fix="resources.pack={runs: 8}",
        )
    _known("resources.pack", value, Pack.__dataclass_fields__)
    runs = value.get("runs", "auto")
    at_once = _integer("resources.pack.at_once", value.get("at_once", 1), least=1)
    if runs == "auto":
        return Pack(at_once=at_once)
    return Pack(runs=_integer("resources.pack.runs", runs, least=at_once), at_once=at_once)


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


def launch(value: Mapping[str, Any]) -> LaunchOptions:
    """Return how the runs of a launch are let loose."""
    _known("launch", value, LaunchOptions.__dataclass_fields__)
    notify, brake = value.get("notify") or [], value.get("brake")
    if not isinstance(notify, list) or not all(isinstance(word, str) and word and "\0" not in word for word in notify):
        raise ConfigError(
            f"launch.notify is {notify!r}", why="it is a program and its arguments, as a list; no shell reads it",
            fix="launch.notify=[mail,-s,orch,me@example.org]",
        )  # fmt: skip
    return LaunchOptions(
        canary=_integer("launch.canary", value.get("canary", 0), least=0), notify=tuple(notify),
        brake=None if brake is None else _integer("launch.brake", brake, least=1),
    )  # fmt: skip


def tags(value: Any) -> tuple[str, ...]:
    """Return the words that a launch is found by."""
    if not isinstance(value, list) or not all(isinstance(word, str) and _TAG.fullmatch(word) for word in value):
        raise ConfigError(
            f"tags are {value!r}", why="each is a word of letters, digits, '.', '_' and '-', 50 at most",
            fix="tags=[paper,ablation]",
        )  # fmt: skip
    return tuple(dict.fromkeys(value))


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
    _positive("cluster.mem_gb", entries.get("mem_gb"))
    for key, least in (("cpus", 1), ("runs_per_gpu", 1), ("priority", -_MOST_URGENT)):
        if entries.get(key) is not None:
            _integer(f"cluster.{key}", entries[key], least=least)
    _devices(entries.get("devices"))
    if not isinstance(entries.get("avoid_busy_gpus"), bool | None):
        raise ConfigError(
            f"cluster.avoid_busy_gpus is {entries['avoid_busy_gpus']!r}", why="it is true or false",
            fix="cluster.avoid_busy_gpus=true",
        )  # fmt: skip
    return entries


def _devices(value: Any) -> None:
    """Check a list of GPUs: numbers, or names as CUDA_VISIBLE_DEVICES takes them."""
    if value is None:
        return
    items = value if isinstance(value, list) else []
    if not items or not all(map(_is_device, items)) or len(set(map(str, items))) < len(items):
        raise ConfigError(
            f"cluster.devices is {value!r}", why="it is a list of GPUs, each once: their numbers, or their UUIDs",
            fix="cluster.devices=[0,1], or null for all of them",
        )  # fmt: skip


def _is_device(value: Any) -> bool:
    number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return number or (isinstance(value, str) and _DEVICE.fullmatch(value) is not None)


def tracking(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tracking's checked options."""
    entries = _kind("tracking", value, _TRACKING_KEYS)
    if entries["kind"] == "none":
        return {"kind": "none"}
    entries = {**_TRACKING_DEFAULTS, **entries}
    _choice("tracking.checkpoints", entries["checkpoints"], _CHECKPOINTS)
    if not isinstance(entries["system_metrics"], bool):
        _positive("tracking.system_metrics", entries["system_metrics"])
    name = entries["register"]
    if name is not None and not (isinstance(name, str) and _MODEL_NAME.fullmatch(name)):
        raise ConfigError(
            f"tracking.register is {name!r}", why="it is the name of a registered model, without / . : and quotes",
            fix="tracking.register=digits",
        )  # fmt: skip
    return _server({**_SERVER_DEFAULTS, **entries}) if entries["kind"] == "server" else entries


def check_register(entries: Mapping[str, Any], objective: Objective | None) -> None:
    """Refuse to register a best run where nothing says which one that is."""
    if entries.get("register") and objective is None:
        raise ConfigError(
            f"tracking.register is {entries['register']!r}, but there is no objective",
            why="the run that is registered is the best one by it",
            fix="objective.metric=val/acc objective.mode=max, or leave out tracking.register",
        )  # fmt: skip


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
