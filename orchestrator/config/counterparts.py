"""The keys to use in place of Hydra's own, and of the config groups of common project templates. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping

from orchestrator.errors import ConfigError

_HYDRA: Mapping[str, tuple[str, str]] = {
    "sweeper": ("a sweep is written under `sweep`", "sweep: {grid: {model.lr: [1e-3, 1e-2]}}"),
    "launcher": (
        "`cluster` and `resources` say where runs start, and with what resources",
        "in its place: cluster=slurm, or a profile of yours in conf/cluster/; resources: {gpus_per_node: 1, hours: 4}",
    ),
    "mode": ("a sweep is written under `sweep`, or given with commas", "remove it; sweep by model.lr=1e-3,1e-2"),
    "run": ("each run has a folder of its own", "remove it; --runs DIR says where the runs are kept"),
    "sweep": ("each run has a folder of its own", "remove it; --runs DIR says where the runs are kept"),
    "job": ("an experiment has a name, and runs have their own folders", "remove it; name=my-experiment"),
    "callbacks": ("callbacks are the trainer's", "trainer.callbacks, or launch.notify for the end of a launch"),
}
_LOGGING = ("each run has a log", "remove it; orch logs shows the logs")
_OTHERS = ("nothing reads it", "remove it")

GROUPS: Mapping[str, tuple[str, str]] = {
    "callbacks": ("callbacks are the trainer's", "trainer: {callbacks: {stop: {_target_: ..., monitor: val/loss}}}"),
    "logger": (
        "metrics go to MLflow, which `tracking` describes; other loggers are the trainer's",
        "tracking: {kind: embedded}, or trainer: {logger: {csv: {_target_: pytorch_lightning.loggers.CSVLogger}}}",
    ),
    "paths": (
        "runs lie under runs/, and data is staged",
        "--runs DIR for the runs; ${view:} is the data's folder, ${project:} the code's",
    ),
    "extras": ("`orch plan` prints the config, and `tags` are the launch's", "remove it; orch plan, and tags: [word]"),
    "debug": ("a debug run is a verb's option", "orch run --on inline --batches 3 experiment=NAME"),
    "hparams_search": (
        "a search is written under `sweep.optuna`",
        'sweep: {optuna: {n: 20, space: {model.lr: "loguniform(1e-4, 1e-1)"}}}',
    ),
    "hydra": ("Hydra does not run here", "remove it; --runs DIR says where the runs are kept"),
    "launcher": _HYDRA["launcher"],
    "sweeper": _HYDRA["sweeper"],
    "local": ("what differs from machine to machine is a cluster's profile", "conf/cluster/NAME.yaml; cluster=NAME"),
    "task_name": ("an experiment has a name", "name: my-experiment"),
    "train": ("`task` says what a run does", "task: fit"),
    "test": ("`task` says what a run does", "task: fit_test"),
    "ckpt_path": ("two keys say what a run starts from", "init_from: run:3fa2c81b/best, or resume_from"),
    "optimized_metric": ("`objective` ranks runs", "objective: {metric: val/acc, mode: max}"),
    "experiment_name": ("an experiment has a name", "name: my-experiment"),
}
"""Config groups and top-level keys of templates -> what replaces them here, and how to write that."""


def of_template(key: str, where: str = "") -> ConfigError | None:
    """Return the error for a group or a top-level key that project templates have; None for any other key."""
    if key not in GROUPS:
        return None
    instead, fix = GROUPS[key]
    return ConfigError(f"{where}{key} is not a key here", why=instead, fix=fix)


def of_hydra(key: str, value: object = None) -> tuple[str, str]:
    """Return what replaces a key of Hydra's own, and how to write that."""
    name = key.replace("/", ".").replace("@", ".").split(".")[1:2]
    if name == ["sweeper"] and isinstance(value, Mapping) and isinstance(value.get("params"), Mapping):
        return _HYDRA["sweeper"][0], f"sweep: {{grid: {{{_grid(value['params'])}}}}}"
    found = "_logging" in key and _LOGGING
    return found or _HYDRA.get("".join(name), _OTHERS)


def _grid(params: Mapping[str, object]) -> str:
    return ", ".join(f"{key}: {_axis(value)}" for key, value in params.items())


def _axis(value: object) -> str:
    """Return an axis of `hydra.sweeper.params` as an axis of `sweep.grid`, whose grammar is the same."""
    swept = isinstance(value, str) and ("," in value or "(" in value)
    return json.dumps(value if swept or isinstance(value, list) else [value])
