"""One fit: everything is built, trained, tested, and what came of it returned."""

from __future__ import annotations

import inspect
import logging
import shutil
import warnings
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
from orchestrator.errors import ConfigError
from orchestrator.layout import AttemptPaths, RunPaths
from orchestrator.records.attempts import EventWriter, is_deposed
from orchestrator.records.checkpoints import best_of
from orchestrator.spec import EVALUATIONS, Objective, Resources
from orchestrator.system.files import make_folder
from orchestrator.tracking.logger import SpoolLogger
from orchestrator.worker.context import Place
from orchestrator.worker.fit.autolog import MetricsOnce
from orchestrator.worker.fit.checkpoints import INHERITED, AtomicCheckpointIO, KeepCheckpoints
from orchestrator.worker.fit.exact import lightning
from orchestrator.worker.fit.exact.older import ResumeOlder
from orchestrator.worker.fit.exact.seam import EXACTNESS, Moment, Seam
from orchestrator.worker.fit.example import KeepExample
from orchestrator.worker.fit.finders import KeepFound
from orchestrator.worker.fit.progress import Progress, Prune, numbers
from orchestrator.worker.fit.stop import StartOfValidation, StopOnSignal
from orchestrator.worker.fit.weights import InitialWeights
from orchestrator.worker.signals import StopSignal


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What is trained, on what, and where its files go. `folder` is the attempt's.

    `resume_from` is a checkpoint of the run's own. Where there is none it starts with the weights, or the whole state,
    of another run or a file: `weights_from`, `state_from`; with `weights_only` that may hold nothing but weights and
    plain values.
    `report` is told, on rank 0, each validation's number and the objective's value there, and says whether to stop.
    `example`: where a few samples of the model's input are to be kept; None: nowhere. `redact` takes out of a tree
    what may not be written.
    """

    config: Mapping[str, Any]
    resources: Resources
    objective: Objective | None
    folder: Path
    artifacts: Path
    resume_from: Path | None
    place: Place
    weights_from: Path | None = None
    state_from: Path | None = None
    weights_only: bool = False
    example: Path | None = None
    redact: Redact = unchanged
    report: Callable[[int, float], bool] | None = None


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
    seam = Seam(config["seed"], trusted=training.resume_from is not None or not training.weights_only)
    checkpoints = KeepCheckpoints(AttemptPaths(training.folder), progress, prune, seam)
    start = StartOfValidation(seam)
    stopping = StopOnSignal(stop, checkpoints, start, seam)
    examples = [KeepExample(training.example)] if training.example else []
    fresh = training.weights_from if not training.resume_from else None
    initial = InitialWeights(fresh, weights_only=training.weights_only) if fresh else None
    checkpoint = training.resume_from or training.state_from
    found = KeepFound(resumes=checkpoint is not None)
    maybe = (initial, progress, *examples, prune, found, ResumeOlder(seam), MetricsOnce(), checkpoints, stopping)
    callbacks = [callback for callback in maybe if callback]
    trainer = _trainer(training, logger, [seam, start], callbacks)

    def reached(moment: Moment) -> None:
        stopping.at_seam(trainer, moment, saved=checkpoints.at_seam(trainer, moment))

    if lightning.is_tested():
        seam.attach(trainer, reached)
    events.write("training", resumed=training.resume_from is not None, exactness=EXACTNESS if seam.attached else 0)
    if initial:
        initial.load_early(model)
    if config["task"] in EVALUATIONS:
        return {"metrics": _evaluate(training, trainer, model, datamodule), "best": {}}
    trainer.fit(model, datamodule=datamodule, ckpt_path=_text(checkpoint), **_trusted(trainer.fit))
    metrics = numbers(trainer.callback_metrics)
    if progress.best:  # MLflow's own tables know only a metric's last value
        logger.log_metrics({f"best/{progress.best['metric']}": progress.best["value"]}, progress.best["step"])
    if prune and prune.pruned:
        return {"metrics": metrics, "best": progress.best, "pruned": prune.pruned}
    if config["task"] == "fit_test":
        best = training.folder.parent / progress.best["checkpoint"] if progress.best else None
        trainer.test(model, datamodule=datamodule, ckpt_path=_text(best), verbose=False, **_trusted(trainer.test))
        metrics |= numbers(trainer.callback_metrics)
    return {"metrics": metrics, "best": progress.best}


def _model(node: Mapping[str, Any]) -> pl.LightningModule:
    """Build the model. What a function returns is known only now."""
    model = build(node)
    if not isinstance(model, pl.LightningModule):
        raise ConfigError(
            f"model: {node['_target_']} returned {type(model).__module__}.{type(model).__qualname__}",
            why="it is not a LightningModule, and says nothing of losses and optimizers",
            fix="name a LightningModule, or a function that returns one, in model._target_",
        )
    return model


def quieten() -> None:
    """Silence what Lightning says in every run and no user can act on: an advertisement, its own deprecations."""
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="The .srun. command is available.*")
    logging.getLogger(f"{pl.__name__}.utilities.rank_zero").addFilter(lambda r: "litlogger" not in r.getMessage())


def _evaluate(
    training: Training, trainer: pl.Trainer, model: pl.LightningModule, datamodule: pl.LightningDataModule | None
) -> dict[str, float]:
    """Validate, test or predict, and return the metrics; what is predicted becomes a file among the artifacts."""
    task = training.config["task"]
    if task == "predict":
        _keep_predictions(training, trainer.predict(model, datamodule=datamodule))
    else:
        getattr(trainer, task)(model, datamodule=datamodule, verbose=False)
    return numbers(trainer.callback_metrics)


def _keep_predictions(training: Training, predictions: object) -> None:
    """Write what `predict_step` returned, batch by batch, each rank its own; nothing where it returned nothing."""
    if not predictions or is_deposed(AttemptPaths(training.folder)):
        return
    rank = f".rank{training.place.rank}" if training.resources.world_size > 1 else ""
    AtomicCheckpointIO().save_checkpoint({"predictions": predictions}, training.artifacts / f"predictions{rank}.pt")


def _inherit(training: Training, checkpoint: str) -> str:
    """Link (or copy) the best checkpoint of the run that this one goes on from, and return where it is now.

    It lies in that run's folder, beside the attempt whose checkpoint is gone on from.
    """
    attempt = AttemptPaths(training.folder)
    target = attempt.state / INHERITED
    run = RunPaths(training.state_from.parents[2] if training.state_from else target.parents[2])
    source = best_of(run, {"checkpoint": checkpoint})
    if training.place.rank == 0 and source and source.is_file():
        make_folder(target.parent)
        target.unlink(missing_ok=True)
        try:
            target.hardlink_to(source)
        except OSError:  # another filesystem
            shutil.copyfile(source, target)
    return f"{attempt.path.name}/{attempt.state.name}/{INHERITED}"


def _trainer(
    training: Training, logger: SpoolLogger, first: Sequence[Callback], callbacks: Sequence[Callback]
) -> pl.Trainer:
    config = training.config["trainer"]
    node = {key: value for key, value in config.items() if value is not None and key not in {"callbacks", "logger"}}
    built = build(config.get("callbacks") or {})
    users = [callback for callback in built.values() if callback is not None]
    if any(isinstance(callback, ProgressBar) for callback in users):
        node["enable_progress_bar"] = True  # the flag's default is false, and Lightning refuses the two together
    foreign = training.state_from if training.weights_only else None
    trainer: pl.Trainer = build(
        node,
        callbacks=[*first, *users, *callbacks],
        logger=[logger, *_users_loggers(training)],
        plugins=[AtomicCheckpointIO(training.redact, foreign=foreign), _environment(training)],
        default_root_dir=str(training.folder),
        **_devices(training.resources),
    )
    return trainer


def _users_loggers(training: Training) -> list[Logger]:
    """Build the user's own loggers; one that takes a `save_dir`, and has none, writes into the attempt's folder."""
    loggers = training.config["trainer"].get("logger") or {}
    folder = AttemptPaths(training.folder).logger
    return [_users_logger(node, folder(name), training.redact) for name, node in loggers.items() if node]


def _users_logger(node: Mapping[str, Any], folder: Path, redact: Redact) -> Logger:
    """Build one; Lightning gives it the hyperparameters, which may hold secrets."""
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
    """Return who starts the processes: srun, or nobody. Never Lightning's own guess, which may requeue (FACTS 16)."""
    place = training.place
    return SLURMEnvironment(auto_requeue=False) if place.job and not place.packed else LightningEnvironment()


def _trusted(method: Any) -> dict[str, bool]:
    """Our own checkpoints may hold any object; newer versions of Lightning must be told to load it."""
    return {"weights_only": False} if "weights_only" in inspect.signature(method).parameters else {}


def _text(path: Path | None) -> str | None:
    return str(path) if path else None
