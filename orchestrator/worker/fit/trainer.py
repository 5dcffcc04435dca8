"""One fit: builds everything, trains, tests, and returns the results."""

from __future__ import annotations

import inspect
import logging
import shutil
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from pytorch_lightning.callbacks import Callback, ProgressBar
from pytorch_lightning.loggers.logger import Logger

from orchestrator.config.build import SAVE_DIR, build, locate
from orchestrator.config.credentials import Redact, unchanged
from orchestrator.errors import ConfigError, OrchError
from orchestrator.launch.exactness import installed_lightning, obstacles, version_obstacle
from orchestrator.layout import AttemptPaths, RunPaths
from orchestrator.records.attempts import EventWriter, is_superseded
from orchestrator.records.checkpoints import Checkpoint, best_of
from orchestrator.spec import EVALUATIONS, CheckpointOptions, Objective, Resources
from orchestrator.system.files import listed, make_folder
from orchestrator.tracking.logger import SpoolLogger
from orchestrator.worker.context import ProcessContext
from orchestrator.worker.fit.autolog import MetricsOnce
from orchestrator.worker.fit.beats import Beats
from orchestrator.worker.fit.cadence import Cadence
from orchestrator.worker.fit.checkpoints import INHERITED, KeepCheckpoints
from orchestrator.worker.fit.exact.older import ResumeOlder
from orchestrator.worker.fit.exact.seam import EXACTNESS, Moment, Seam
from orchestrator.worker.fit.example import KeepExample
from orchestrator.worker.fit.finders import KeepFound
from orchestrator.worker.fit.progress import Progress, Prune, numbers
from orchestrator.worker.fit.stop import StartOfValidation, StopOnSignal
from orchestrator.worker.fit.weights import InitialWeights
from orchestrator.worker.fit.writer import AtomicCheckpointIO, CheckpointWriter
from orchestrator.worker.signals import StopSignal


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The inputs of a training: its config, its resources, and where its files go. `folder` is the attempt's.

    `resume_from` is a checkpoint of the run itself. Without one, training may start with the weights (`weights_from`)
    or the whole state (`state_from`) of another run or a file; with `weights_only`, that file may hold nothing but
    weights and plain values.
    `report` is called on rank 0 with each validation's number and the objective's value; it returns whether to stop.
    `example` is the file for a few samples of the model's input; None: store none. `redact` removes secrets from a tree
    of values.
    """

    config: Mapping[str, Any]
    resources: Resources
    objective: Objective | None
    folder: Path
    artifacts: Path
    resume_from: Checkpoint | None
    context: ProcessContext
    weights_from: Path | None = None
    state_from: Path | None = None
    weights_only: bool = False
    example: Path | None = None
    redact: Redact = unchanged
    report: Callable[[int, float], bool] | None = None
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)


def train(training: Training, *, logger: SpoolLogger, events: EventWriter, stop: StopSignal) -> dict[str, Any]:
    """Build everything, fit (and test), and return the `done` event's data: last metrics and the best one."""
    config = training.config
    quieten()
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    datamodule = build(config["data"]) if config["data"].get("_target_") else None
    model = _model(config["model"])
    inherit = None if training.resume_from or not training.state_from else partial(_inherit, training)
    progress = Progress(events, training.objective, inherit)
    prune = Prune(training.report) if training.report and training.objective else None
    trusted = training.resume_from is not None or not training.weights_only
    report = partial(_say_exact, training, events) if training.checkpoint.exact != "off" else None
    seam = Seam(config["seed"], trusted=trusted, metrics_bytes=logger.metrics_bytes, report=report)
    io, writer = _writers(training, logger, events)
    cadence = Cadence(training.checkpoint, time.monotonic())
    attempt = AttemptPaths(training.folder)
    checkpoints = KeepCheckpoints(attempt, progress, prune, seam, cadence=cadence, writer=writer)
    start = StartOfValidation(seam)
    stopping = StopOnSignal(stop, checkpoints, start, seam)
    examples = [KeepExample(training.example)] if training.example else []
    fresh = training.weights_from if not training.resume_from else None
    initial = InitialWeights(fresh, weights_only=training.weights_only) if fresh else None
    checkpoint = training.resume_from.path if training.resume_from else training.state_from
    found = KeepFound(resumes=checkpoint is not None)
    before = (initial, Beats(), progress, *examples, prune, found, ResumeOlder(seam), MetricsOnce())
    maybe = (*before, checkpoints, stopping)
    callbacks: list[Callback] = [callback for callback in maybe if callback]
    trainer = _trainer(training, io, logger, [seam, start], callbacks)

    def reached(moment: Moment) -> None:
        stopping.at_seam(trainer, moment, saved=checkpoints.at_seam(trainer, moment))

    if not version_obstacle(installed_lightning()):
        seam.attach(trainer, reached)
    events.write("training", **_beginning(training), exactness=EXACTNESS if seam.attached else 0)
    if initial:
        initial.load_early(model)
    if config["task"] in EVALUATIONS:
        return {"metrics": _evaluate(training, trainer, model, datamodule), "best": {}}
    try:
        trainer.fit(model, datamodule=datamodule, ckpt_path=_text(checkpoint), **_trusted(trainer.fit))
    finally:
        writer.wait()
    metrics = numbers(trainer.callback_metrics)
    if progress.best:  # MLflow's tables show only a metric's last value
        logger.log_metrics({f"best/{progress.best['metric']}": progress.best["value"]}, progress.best["step"])
    if prune and prune.pruned:
        return {"metrics": metrics, "best": progress.best, "pruned": prune.pruned}
    if config["task"] == "fit_test":
        best = _best_to_test(training, progress)
        trainer.test(model, datamodule=datamodule, ckpt_path=_text(best), verbose=False, **_trusted(trainer.test))
        metrics |= numbers(trainer.callback_metrics)
    return {"metrics": metrics, "best": progress.best}


def _best_to_test(training: Training, progress: Progress) -> Path | None:
    """Return the best checkpoint; None without an objective. Raises OrchError if the disk was too full to save it."""
    best = training.folder.parent / progress.best["checkpoint"] if progress.best else None
    if best and not listed(best):
        raise OrchError(
            "the best checkpoint cannot be tested",
            why=f"{best} was not saved: the disk was full",
            fix="free some space, and launch again",
        )
    return best


def _writers(
    training: Training, logger: SpoolLogger, events: EventWriter
) -> tuple[AtomicCheckpointIO, CheckpointWriter]:
    """Return what writes checkpoints: any of the trainer's, and those of the engine."""
    foreign = training.state_from if training.weights_only else None
    io = AtomicCheckpointIO(training.redact, foreign=foreign)
    writer = CheckpointWriter(
        AttemptPaths(training.folder),
        io,
        keep=training.checkpoint.keep,
        asynchronous=training.checkpoint.asynchronous,
        force_metrics=logger.force,
        refused=lambda reason: events.write("unsaved", reason=reason),
    )
    return io, writer


def _beginning(training: Training) -> dict[str, object]:
    """Return where the fit begins: which attempt's checkpoint it resumes from, and how much of its metrics counts."""
    found = training.resume_from
    if found is None:
        return {"resumed": False, "from": None}
    known = {} if found.metrics_bytes is None else {"metrics_bytes": found.metrics_bytes}
    return {"resumed": True, "from": {"attempt": found.attempt, "checkpoint": found.path.name, **known}}


def _say_exact(training: Training, events: EventWriter, found: Sequence[str]) -> None:
    """Record why a run does not resume exactly, if so, and say or refuse it. Raises OrchError."""
    why = [*obstacles(training.config, training.resources, installed_lightning()), *found]
    events.write("exact", inexact=why)
    if why and training.checkpoint.exact == "refuse":
        raise OrchError(
            "this run cannot resume with the bits of an undisturbed one",
            why="; ".join(why),
            fix="change that, or set checkpoint.exact=warn",
        )
    if why:
        logging.getLogger(__name__).warning("does not resume exactly: %s", "; ".join(why))


def _model(node: Mapping[str, Any]) -> pl.LightningModule:
    """Build the model. Raises ConfigError if it is not a LightningModule: only now is a function's result known."""
    model = build(node)
    if not isinstance(model, pl.LightningModule):
        raise ConfigError(
            f"model: {node['_target_']} returned {type(model).__module__}.{type(model).__qualname__}",
            why="it is not a LightningModule, and so defines neither a loss nor an optimizer",
            fix="name a LightningModule, or a function that returns one, in model._target_",
        )
    return model


def quieten() -> None:
    """Silence messages that Lightning prints in every run and no user can act on: advertisements, deprecations."""
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="The .srun. command is available.*")
    logging.getLogger(f"{pl.__name__}.utilities.rank_zero").addFilter(lambda r: "litlogger" not in r.getMessage())


def _evaluate(
    training: Training, trainer: pl.Trainer, model: pl.LightningModule, datamodule: pl.LightningDataModule | None
) -> dict[str, float]:
    """Validate, test or predict, and return the metrics. Predictions are written to a file among the artifacts."""
    task = training.config["task"]
    if task == "predict":
        _keep_predictions(training, trainer.predict(model, datamodule=datamodule))
    else:
        getattr(trainer, task)(model, datamodule=datamodule, verbose=False)
    return numbers(trainer.callback_metrics)


def _keep_predictions(training: Training, predictions: object) -> None:
    """Write the results of `predict_step`, a list with an item per batch, each rank to its own file."""
    if not predictions or is_superseded(AttemptPaths(training.folder)):
        return
    rank = f".rank{training.context.rank}" if training.resources.world_size > 1 else ""
    AtomicCheckpointIO().save_checkpoint({"predictions": predictions}, training.artifacts / f"predictions{rank}.pt")


def _inherit(training: Training, checkpoint: str) -> str:
    """Link (or copy) the best checkpoint of the run that this one continues, and return its new path.

    The path is relative to the run's folder. The source is in the other run's folder, next to the attempt whose
    checkpoint is continued.
    """
    attempt = AttemptPaths(training.folder)
    target = attempt.state / INHERITED
    run = RunPaths(training.state_from.parents[2] if training.state_from else target.parents[2])
    source = best_of(run, {"checkpoint": checkpoint})
    if training.context.rank == 0 and source and source.is_file():
        make_folder(target.parent)
        target.unlink(missing_ok=True)
        try:
            target.hardlink_to(source)
        except OSError:  # another filesystem
            shutil.copyfile(source, target)
    return f"{attempt.path.name}/{attempt.state.name}/{INHERITED}"


def _trainer(
    training: Training,
    io: AtomicCheckpointIO,
    logger: SpoolLogger,
    first: Sequence[Callback],
    callbacks: Sequence[Callback],
) -> pl.Trainer:
    config = training.config["trainer"]
    node = {key: value for key, value in config.items() if value is not None and key not in {"callbacks", "logger"}}
    built = build(config.get("callbacks") or {})
    users = [callback for callback in built.values() if callback is not None]
    if any(isinstance(callback, ProgressBar) for callback in users):
        node["enable_progress_bar"] = True  # Lightning refuses a progress bar with the engine's default of false
    trainer: pl.Trainer = build(
        node,
        callbacks=[*first, *users, *callbacks],
        logger=[logger, *_users_loggers(training)],
        plugins=[io, _environment(training)],
        default_root_dir=str(training.folder),
        **_devices(training.resources),
    )
    return trainer


def _users_loggers(training: Training) -> list[Logger]:
    """Build the user's own loggers. One that accepts a `save_dir`, and has none, writes into the attempt's folder."""
    loggers = training.config["trainer"].get("logger") or {}
    folder = AttemptPaths(training.folder).logger
    return [_users_logger(node, folder(name), training.redact) for name, node in loggers.items() if node]


def _users_logger(node: Mapping[str, Any], folder: Path, redact: Redact) -> Logger:
    """Build a logger that redacts hyperparameters: Lightning passes them on, and they may hold secrets."""
    takes = inspect.signature(locate(node["_target_"])).parameters
    given = {SAVE_DIR: str(folder)} if SAVE_DIR in takes and SAVE_DIR not in node else {}
    if given:
        folder.mkdir(parents=True, exist_ok=True)
    logger: Logger = build(node, **given)
    log = logger.log_hyperparams

    def log_redacted(params: Any, *args: Any, **kwargs: Any) -> Any:
        return log(redact(vars(params) if isinstance(params, Namespace) else params), *args, **kwargs)

    logger.log_hyperparams = log_redacted  # type: ignore[method-assign]  # an instance of whatever class the user names
    return logger


def _devices(resources: Resources) -> dict[str, object]:
    accelerator = "gpu" if resources.gpus_per_node and torch.cuda.is_available() else "cpu"
    return {"accelerator": accelerator, "devices": resources.processes_per_node, "num_nodes": resources.nodes}


def _environment(training: Training) -> ClusterEnvironment:
    """Return Lightning's plugin for processes started by srun, or by `orch`; its own guess may requeue (FACTS 16)."""
    context = training.context
    return SLURMEnvironment(auto_requeue=False) if context.job and not context.packed else LightningEnvironment()


def _trusted(method: Any) -> dict[str, bool]:
    """Return the arguments with which Lightning loads any object: the run's own checkpoints may hold some."""
    return {"weights_only": False} if "weights_only" in inspect.signature(method).parameters else {}


def _text(path: Path | None) -> str | None:
    return str(path) if path else None
