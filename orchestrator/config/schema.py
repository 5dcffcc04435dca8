"""The built-in keys -> types. Pure: resolved dicts in, nouns out; every message names the key and the fix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from orchestrator.config.counterparts import of_template
from orchestrator.config.fields import (
    ANYTHING,
    Field,
    at_least,
    check,
    check_known,
    check_mapping,
    choice,
    gpu_type,
    hours,
    not_negative,
    positive,
    text,
    texts,
    truth,
    whole,
)
from orchestrator.errors import ConfigError
from orchestrator.identity import TRAINER_FLAGS
from orchestrator.layout import EXPERIMENT_NAME
from orchestrator.spec import (
    CAUSES,
    EVALUATIONS,
    STARTS,
    TASKS,
    Attempts,
    CheckpointOptions,
    LaunchOptions,
    Objective,
    Pack,
    Resources,
    SnapshotOptions,
)

TOP_LEVEL = (
    "name",
    "data",
    "model",
    "trainer",
    "resources",
    "cluster",
    "tracking",
    "sweep",
    "seed",
    "vars",
    "task",
    "objective",
    "env",
    "snapshot",
    "checkpoint",
    "experiment",
    "launch",
    "tags",
    "after",
    "init_from_trusted",
    *STARTS,
)
OPTIONAL = ("after", "init_from_trusted", "checkpoint")
"""Keys that a project's own root configuration, written for an older version, may lack."""
_ENGINE_OWNS = {
    "devices": "resources.gpus_per_node", "num_nodes": "resources.nodes", "accelerator": "resources.gpus_per_node",
    "strategy": "resources", "default_root_dir": "the run's folder", "plugins": "the engine",
    "enable_checkpointing": "the engine",
}  # fmt: skip
_MOST_URGENT = 10**6
_DEVICE = re.compile(r"(?!0\d)[^\s,]+")
_SERVER = re.compile(r"https?://[^\s@/]+(/[^\s@]*)?")
_MODEL_NAME = re.compile(r"[^/.:%\"'\s][^/.:%\"'\n]{0,249}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,49}")
_END_SECONDS = 60.0
_CHECKPOINTS = ("best", "last", "all", "none")
_TRACKING_DEFAULTS: Mapping[str, object] = {"checkpoints": "best", "system_metrics": True, "register": None}
_SERVER_DEFAULTS: Mapping[str, object] = {"uri": None, "experiment": None, "upload": "jobs", "end_seconds": None}


def _are_devices(value: object) -> bool:
    items = value if isinstance(value, list) else []
    return bool(items) and all(map(_is_device, items)) and len(set(map(str, items))) == len(items)


def _is_device(value: object) -> bool:
    number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return number or (isinstance(value, str) and _DEVICE.fullmatch(value) is not None)


def _is_pattern(value: str) -> bool:
    try:
        re.compile(value)
    except re.error:
        return False
    return bool(value)


_NAME = Field(
    holds=lambda value: isinstance(value, str) and EXPERIMENT_NAME.fullmatch(value) is not None,
    rule="a name starts with a letter or digit, then letters, digits, '.', '_' and '-', 100 at most;"
    " it is a folder under runs/",
    example="digits-lr",
    optional=False,
)
_SEED = Field(
    holds=lambda value: type(value) is int and 0 <= value < 2**32,
    rule="it is a whole number, at least 0, and NumPy takes seeds below 2**32",
    example="0",
    optional=False,
)
_MODE = Field(holds=lambda value: value in ("min", "max"), rule="it is min or max", example="max", optional=False)
_OBJECTIVE = {"metric": text("it names a logged metric", example="val/acc"), "mode": ANYTHING}
_TRUSTED = truth("true", optional=False)
_START = text("it names a checkpoint", example="run:3fa2c81b/best")
_RESOURCES = {
    "nodes": whole(1),
    "gpus_per_node": whole(0),
    "gpu_type": gpu_type(),
    "cpus_per_node": whole(1),
    "mem_gb_per_node": positive(),
    "mem_gb_per_cpu": positive(),
    "hours": hours(),
    "pack": ANYTHING,
    "attempts": ANYTHING,
}
_ATTEMPTS = {
    "of": whole(1),
    "when": ANYTHING,
    "mem_factor": at_least(1),
    "mem_gb_most": positive(),
    "hours_factor": at_least(1),
    "avoid_node": truth("false"),
    "backoff_minutes": not_negative(),
    "without_progress": whole(0),
    "stall_minutes": positive(),
    "startup_minutes": positive(),
}
_CAUSE = choice(*CAUSES)
_PATTERN = text("it is a regular expression", example="[{exception: ['NCCL error']}]", holds=_is_pattern)
_SNAPSHOT = {
    "include": texts("it is a list of globs", example="['assets/*.json']"),
    "max_file_mb": positive(),
    "max_total_mb": positive(),
}
_CHECKPOINT = {
    "minutes": positive(),
    "steps": whole(1, optional=True),
    "keep": whole(1),
    "asynchronous": truth("true", optional=False),
    "exact": choice("warn", "refuse", "off"),
}
_LAUNCH = {
    "canary": whole(0),
    "notify": texts(
        "it is a program and its arguments, as a list; no shell reads it",
        example="[mail,-s,orch,me@example.org]",
        holds=lambda word: word and "\0" not in word,
    ),
    "brake": whole(1, optional=True),
}
_ONE_MACHINE = {
    "kind": ANYTHING,
    "scratch": text("it is a folder", example="/scratch", holds=lambda _: True),
    "staging": ANYTHING,
    "grace_seconds": positive(),
    "devices": Field(
        holds=_are_devices,
        rule="it is a list of GPUs, each once: their numbers, or their UUIDs",
        fix="cluster.devices=[0,1], or null for all of them",
    ),
    "avoid_busy_gpus": truth("true"),
}
_CLUSTERS: Mapping[str, Mapping[str, Field]] = {
    "inline": _ONE_MACHINE,
    "workstation": {
        **_ONE_MACHINE,
        "cpus": whole(1, optional=True),
        "mem_gb": positive(),
        "priority": whole(-_MOST_URGENT, optional=True),
        "runs_per_gpu": whole(1, optional=True),
    },
}
_TRACKED = {
    "kind": ANYTHING,
    "checkpoints": choice(*_CHECKPOINTS),
    "system_metrics": Field(
        holds=lambda value: isinstance(value, bool) or positive().holds(value),
        rule="it is true, false, or a positive number of seconds",
        example="true",
    ),
    "register": text(
        "it is the name of a registered model, without / . : and quotes", example="digits", holds=_MODEL_NAME.fullmatch
    ),
}
_TRACKING: Mapping[str, Mapping[str, Field]] = {
    "embedded": _TRACKED,
    "none": dict.fromkeys(_TRACKED, ANYTHING),  # so that tracking=none works in any experiment
    "server": {
        **_TRACKED,
        "uri": ANYTHING,
        "experiment": text("it is a name", fix="remove it, or give a name", holds=str.strip),
        "upload": choice("jobs", "login"),
        "end_seconds": positive(),
    },
}


def check_top_level(config: Mapping[str, object]) -> None:
    """Refuse unknown keys at the top level, and sections that are not mappings."""
    for key in config:
        if key not in TOP_LEVEL and (error := of_template(str(key))):
            raise error
    check_known("", config, TOP_LEVEL, fix="put your own values under vars:")
    for key in TOP_LEVEL:
        if key not in config and key not in {"experiment", "vars", *OPTIONAL, *STARTS}:
            raise ConfigError(f"there is no {key}", why="every experiment has it", fix=f"remove the override ~{key}")
    if config.get("vars") is not None:
        check_mapping("vars", config["vars"])
    for section in ("data", "model", "trainer", "resources", "cluster", "tracking", "sweep", "snapshot", "launch"):
        check_mapping(section, config.get(section))


def name(value: object) -> str:
    """Return the experiment's name. Raises ConfigError unless it can name a folder and an MLflow experiment."""
    return str(_NAME.check("name", value))


def resources(value: Mapping[str, object]) -> Resources:
    """Return checked resources; nodes and CPUs at least 1, GPUs at least 0, memory and hours positive.

    Memory per CPU is multiplied by a node's number of CPUs.
    """
    values = check("resources", value, _RESOURCES)
    if per_cpu := values.pop("mem_gb_per_cpu", None):
        if "mem_gb_per_node" in values:
            raise ConfigError(
                "resources.mem_gb_per_cpu and resources.mem_gb_per_node are both set",
                why="each sets the memory of a run on a node",
                fix="resources.mem_gb_per_node=null, or resources.mem_gb_per_cpu=null",
            )
        values["mem_gb_per_node"] = per_cpu * values.get("cpus_per_node", 1)
    nested = {"pack": _pack(values.get("pack")), "attempts": _attempts(values.get("attempts"))}
    need = Resources(**{**values, **nested})
    if need.pack and need.world_size > 1:
        raise ConfigError(
            f"resources.pack is given for runs of {need.world_size} processes",
            why="only runs of one process are packed",
            fix="resources.pack=null, or resources.nodes=1 and at most one GPU",
        )
    return need


def _pack(value: Any) -> Pack | None:
    """Return how runs are packed; with `auto` their number is left open."""
    if value is None:
        return None
    if value == "auto":
        return Pack()
    check_mapping("resources.pack", value, fix="resources.pack={runs: 8}, or auto, or null")
    check_known("resources.pack", value, Pack.__dataclass_fields__)
    runs = value.get("runs", "auto")
    at_once = whole(1).check("resources.pack.at_once", value.get("at_once", 1))
    if runs == "auto":
        return Pack(at_once=at_once)
    return Pack(runs=whole(at_once).check("resources.pack.runs", runs), at_once=at_once)


def _attempts(value: object) -> Attempts:
    """Return when runs are started again by themselves; null is the default, as for each of its keys."""
    if value is None:
        return Attempts()
    fix = "resources.attempts={of: 3}, or {of: 1} for never"
    given = check("resources.attempts", check_mapping("resources.attempts", value, fix=fix), _ATTEMPTS)
    if "when" not in given:
        return Attempts(**given)
    causes, exceptions = _causes(given.pop("when"))
    return Attempts(**given, when=causes, exceptions=exceptions)


def _causes(value: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the causes of a list, and the patterns of `exception: [...]` in it."""
    key, causes, patterns = "resources.attempts.when", [], []
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, Mapping):
            check_known(key, each, ("exception",))
            found = each["exception"]
            patterns += [
                _PATTERN.check(f"{key}.exception", one) for one in (found if isinstance(found, list) else [found])
            ]
        else:
            causes.append(_CAUSE.check(key, each))
    return tuple(dict.fromkeys(causes)), tuple(patterns)


def objective(value: Any) -> Objective | None:
    """Return the objective, or None where there is none."""
    if value is None:
        return None
    entries = check("objective", check_mapping("objective", value), _OBJECTIVE)
    if "metric" not in entries:
        return None
    return Objective(metric=entries["metric"], mode=_MODE.check("objective.mode", entries.get("mode")))


def snapshot(value: Mapping[str, object]) -> SnapshotOptions:
    """Return the checked options of the snapshot."""
    return SnapshotOptions(**check("snapshot", value, _SNAPSHOT))


def checkpoint(value: object) -> CheckpointOptions:
    """Return the checked options of a launch's checkpoints."""
    return CheckpointOptions(**check("checkpoint", check_mapping("checkpoint", value or {}), _CHECKPOINT))


def launch(value: Mapping[str, object]) -> LaunchOptions:
    """Return the checked options of a launch: how its runs are started."""
    return LaunchOptions(**check("launch", value, _LAUNCH))


def tags(value: object) -> tuple[str, ...]:
    """Return the tags by which a launch can be found."""
    if not isinstance(value, list) or not all(isinstance(word, str) and _TAG.fullmatch(word) for word in value):
        raise ConfigError(
            f"tags are {value!r}",
            why="each is a word of letters, digits, '.', '_' and '-', 50 at most",
            fix="tags=[paper,ablation]",
        )
    return tuple(dict.fromkeys(value))


def cluster(value: Mapping[str, object]) -> dict[str, object]:
    """Return the checked options of a cluster."""
    if value.get("kind") == "slurm":
        return dict(value)  # the Slurm package checks its own options
    check("cluster", value, _CLUSTERS[choice(*_CLUSTERS, "slurm").check("cluster.kind", value.get("kind"))])
    return dict(value)


def tracking(value: Mapping[str, object]) -> dict[str, object]:
    """Return the checked options of the tracking."""
    kind = choice(*_TRACKING).check("tracking.kind", value.get("kind"))
    check("tracking", value, _TRACKING[kind])
    if kind == "none":
        return {"kind": "none"}
    entries = {**_TRACKING_DEFAULTS, **value}
    return _server({**_SERVER_DEFAULTS, **entries}) if entries["kind"] == "server" else entries


def check_register(entries: Mapping[str, object], objective: Objective | None) -> None:
    """Refuse to register a best run without an objective that says which one that is."""
    if entries.get("register") and objective is None:
        raise ConfigError(
            f"tracking.register is {entries['register']!r}, but there is no objective",
            why="the run that is registered is the best one by the objective",
            fix="objective.metric=val/acc objective.mode=max, or leave out tracking.register",
        )


def _server(entries: dict[str, Any]) -> dict[str, object]:
    uri = entries["uri"]
    if uri is not None and not _SERVER.fullmatch(str(uri)):
        secret = isinstance(uri, str) and "@" in uri
        raise ConfigError(
            "tracking.uri holds a user or password" if secret else f"tracking.uri is {uri!r}",
            why="it would be written to disk" if secret else "it is the address of an MLflow server",
            fix="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            if secret
            else "tracking.uri=http://HOST:5000, or set MLFLOW_TRACKING_URI",
        )
    return {**entries, "end_seconds": float(entries["end_seconds"] or _END_SECONDS)}


def seed(value: object) -> int:
    """Return the seed, an integer in 0..2**32-1, as NumPy and Lightning require."""
    return int(_SEED.check("seed", value))


def task(value: object) -> str:
    """Return the task."""
    return str(choice(*TASKS).check("task", value))


def starts(config: Mapping[str, object], task: str) -> dict[str, str]:
    """Return the checkpoint that a run of a task starts from, as written; at most one of STARTS."""
    found = {key: _START.check(key, config[key]) for key in STARTS if config.get(key) is not None}
    if len(found) > 1:
        raise ConfigError(
            "init_from and resume_from are both set",
            why="a run starts from weights, or resumes a whole training state",
            fix="remove one of them",
        )
    if task in EVALUATIONS and "init_from" not in found:
        raise ConfigError(
            f"task is {task}, and init_from is not set",
            why="it does not train: the weights come from a checkpoint",
            fix="init_from=run:3fa2c81b/best, or a path",
        )
    return found


def trusted(value: object) -> bool:
    """Return whether a checkpoint from outside the user's own runs may contain more than weights."""
    return value is not None and bool(_TRUSTED.check("init_from_trusted", value))


def after(value: object) -> tuple[str, ...]:
    """Return the experiments that must be done first."""
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, list) or not all(isinstance(n, str) and EXPERIMENT_NAME.fullmatch(n) for n in names):
        raise ConfigError(f"after is {value!r}", why="it names an experiment, or is a list of names", fix="after=NAME")
    return tuple(dict.fromkeys(names))


def env(value: object) -> str:
    """Return the policy for a changed environment."""
    return str(choice("refuse", "warn").check("env", value))


def trainer(value: Mapping[str, object]) -> dict[str, object]:
    """Return the trainer's arguments. Raises ConfigError for those derived from resources or set by the engine."""
    for key in value:
        if key in _ENGINE_OWNS:
            raise ConfigError(
                f"trainer.{key} is {value[key]!r}",
                why=f"it derives from {_ENGINE_OWNS[key]}",
                fix=f"remove trainer.{key}",
            )
    component("trainer", value, optional=False)
    if isinstance(value.get("logger"), bool):
        raise ConfigError(
            f"trainer.logger is {value['logger']}",
            why="a run always has its own logger, and `tracking` says where that logger sends its values",
            fix="remove trainer.logger; with tracking=none, too, nothing is sent to MLflow",
        )
    for section in ("callbacks", "logger"):
        _components(f"trainer.{section}", value.get(section) or {})
    for key in TRAINER_FLAGS & set(value):
        truth("false", optional=False).check(f"trainer.{key}", value[key])
    return dict(value)


def _components(section: str, value: object) -> None:
    """Check a mapping of names to components; null removes one."""
    for name, node in check_mapping(section, value).items():
        if node is not None:
            component(f"{section}.{name}", check_mapping(f"{section}.{name}", node), optional=False)


def component(section: str, value: Mapping[str, object], *, optional: bool) -> None:
    """Check that a section names the component to build."""
    target = value.get("_target_")
    if target is None and optional:
        extra = sorted(set(value) - {"_target_", "version"})
        if extra:
            raise ConfigError(
                f"{section}.{extra[0]} is given, but {section}._target_ is not",
                why="there is nothing to build",
                fix=f"choose one: {section}=digits, or {section}._target_=package.module.Class",
            )
        return
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        raise ConfigError(
            f"{section}._target_ is {target!r}",
            why="it is the dotted name of a class or function",
            fix=f"{section}._target_=package.module.Class",
        )
