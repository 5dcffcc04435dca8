"""One Lightning fit: the trainer that resources make, and the callbacks that report, rank and stop it."""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
import warnings
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
from pytorch_lightning.callbacks import Callback, Checkpoint, ModelCheckpoint
from pytorch_lightning.trainer.states import TrainerFn

from orchestrator.build import build
from orchestrator.errors import OrchError
from orchestrator.layout import LAST
from orchestrator.ledger import EventWriter
from orchestrator.spec import EVALUATIONS, Objective, Resources
from orchestrator.tracking.logger import SpoolLogger
from orchestrator.worker.checkpoints import BEST, INHERITED, AtomicCheckpointIO
from orchestrator.worker.example import KeepExample
from orchestrator.worker.place import Place
from orchestrator.worker.signals import InterruptedByInfrastructureError, StopSignal

_REPORT_SECONDS, _REPORT_SHARE = 1.0, 1e-3
_AGREE_SECONDS = 1.0
_SIGNALS = ("", "SIGINT", "SIGTERM", "SIGUSR2")
_GRADIENTS = "orch_gradients"
"""In a checkpoint that was saved in the midst of an accumulation: what its batches have added up to so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What is trained, on what, and where its files go. `folder` is the attempt's.

    `resume_from` is a checkpoint of the run's own. Where there is none it starts with the weights, or the whole state,
    of another run or a file: `weights_from`, `state_from`.
    `report` is told, on rank 0, each validation's number and the objective's value there, and says whether to stop.
    `example`: where a few samples of the model's input are to be kept; None: nowhere. `conceal` takes out of a text
    what may not be written.
    """

    config: Mapping[str, Any]
    resources: Resources
    objective: Objective | None
    folder: Path
    checkpoints: Path
    artifacts: Path
    resume_from: Path | None
    place: Place
    weights_from: Path | None = None
    state_from: Path | None = None
    example: Path | None = None
    conceal: Callable[[str], str] = str
    report: Callable[[int, float], bool] | None = None


class Progress(Callback):
    """Reports epoch, step and metrics, and remembers the objective's best value.

    At most once a second, and of a long fit once in a thousandth of its time: whoever looks reads all of it.
    """

    def __init__(
        self, events: EventWriter, objective: Objective | None, best_path: str, inherit: Callable[[str], str] | None
    ) -> None:
        """`inherit` takes over the best checkpoint of the run that this one goes on from, and says where it is now."""
        self._events, self._objective, self._best_path, self._inherit = events, objective, best_path, inherit
        self._began, self._reported = time.monotonic(), 0.0
        self.best: dict[str, Any] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._due():
            self._report(trainer, batch_idx + 1)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or self._objective is None or trainer.state.fn != TrainerFn.FITTING:
            return
        value = trainer.callback_metrics.get(self._objective.metric)
        if value is not None and torch.isfinite(value) and self._improves(float(value)):
            self.best = {
                "metric": self._objective.metric, "value": float(value), "step": trainer.global_step,
                "epoch": trainer.current_epoch, "checkpoint": self._best_path,
            }  # fmt: skip

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._due():
            self._report(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._report(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = dict(state_dict["best"])
        if best and self._inherit:
            same = self._objective is not None and self._objective.metric == best["metric"]
            best = {**best, "checkpoint": self._inherit(best["checkpoint"])} if same else {}
        self.best = best

    def _due(self) -> bool:
        now = time.monotonic()
        return now - self._reported >= max(_REPORT_SECONDS, _REPORT_SHARE * (now - self._began))

    def _improves(self, value: float) -> bool:
        return self._objective is not None and (not self.best or self._objective.better(value, self.best["value"]))

    def _report(self, trainer: pl.Trainer, batch: int | None = None) -> None:
        if not trainer.is_global_zero:
            return
        self._reported = time.monotonic()
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        batches = trainer.num_training_batches
        progress = {
            "epoch": trainer.current_epoch, "epochs": epochs, "step": trainer.global_step,
            "steps": trainer.max_steps if trainer.max_steps > 0 else None,
            **({"batch": batch, "batches": int(batches)} if batch and batches < float("inf") else {}),
        }  # fmt: skip
        self._events.write("progress", progress=progress, metrics=numbers(trainer.callback_metrics))


class Prune(Callback):
    """Ends the fit of a trial that its search has no hope for, after a validation; all ranks at the same one."""

    def __init__(self, report: Callable[[int, float], bool], metric: str) -> None:
        self._report, self._metric = report, metric
        self._validations = 0
        self.pruned: int | None = None
        """The number of the validation after which the fit was ended, from 1."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._validations += 1
        value = trainer.callback_metrics.get(self._metric)
        stop = value is not None and trainer.is_global_zero and self._report(self._validations, float(value))
        if trainer.strategy.broadcast(stop) and self._may_end(trainer):
            self.pruned = self._validations
            trainer.should_stop = True

    def _may_end(self, trainer: pl.Trainer) -> bool:
        """Return whether Lightning would end here: not before `min_epochs` and `min_steps`."""
        epochs = trainer.current_epoch + 1 >= (trainer.min_epochs or 0)
        return epochs and trainer.global_step >= (trainer.min_steps or 0)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = int(state_dict["validations"])


class StopOnSignal(Checkpoint):
    """Saves a checkpoint once a signal has come, at the next boundary that a run can go on from, and ends the fit.

    That is the end of a step; but where a validation, or the end of the epoch, follows it, a run that goes on from
    there would go on without: then it is the start of the validation, or the end of the epoch, and saved once more.
    A signal during a validation, too, saves the state at its start: weights change in steps only, and its metrics
    are whole only if it is run whole. Nothing of it has been logged yet but what a model logs per validation batch.
    Where it interrupts an accumulation of gradients, these are saved too, here and in any other checkpoint.
    After a validation it is the end of the next step. In the sanity check and in testing there is nothing to save.

    It ends at the next hook after that boundary: Lightning logs a step's metrics after `on_train_batch_end`, an
    epoch's after `on_train_epoch_end`. A `Checkpoint` is called after all other callbacks: their state is saved too.
    """

    def __init__(self, stop: StopSignal, checkpoints: Path, *, tests: bool) -> None:
        self._stop, self._checkpoints, self._tests = stop, checkpoints, tests
        self._agreement = Agreement(stop)
        self._saved = False
        self._shared = 0
        self._gradients: Mapping[str, torch.Tensor] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Look for what came before there was anything to save: data being staged, the model being built."""
        self._stop.install()
        self._agreement.open(trainer.world_size)
        if self._agreement.reached():
            self._leave()

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop.install()  # Lightning replaces the handlers when fitting or testing begins (FACTS 16)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop.install()
        self._shared = self._agreement.least(trainer.num_test_batches)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop.install()
        _close_epoch(trainer.fit_loop)
        for name, parameter in pl_module.named_parameters():
            if name in self._gradients:
                parameter.grad = self._gradients[name].to(parameter.device)
        self._gradients = {}

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if _accumulates(trainer) and pl_module.automatic_optimization:
            # Of several ranks the mean, for rank 0 saves for all; that is what their sum comes to at the step's end.
            checkpoint[_GRADIENTS] = {
                name: trainer.strategy.reduce(parameter.grad.detach().clone(), reduce_op="mean")
                for name, parameter in pl_module.named_parameters() if parameter.grad is not None
            }  # fmt: skip

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._gradients = checkpoint.get(_GRADIENTS, {})

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._leave_if_saved()

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        self._leave_if_saved()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        stepped = trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self._agreement.reached() and stepped:
            self._save(trainer)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop.install()
        self._shared = self._agreement.least(trainer.num_predict_batches)

    def on_predict_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if self._agreed_in_evaluation():
            self._leave()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._stop.install()
        self._shared = self._agreement.least(_validation_batches(trainer))
        if self._saved or self._agreement.reached():
            self._leave_validation(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if self._agreed_in_evaluation():
            self._leave_validation(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._agreement.hurry()

    def on_test_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if self._agreed_in_evaluation():
            self._leave()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._saved:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._tests:
            self._save(trainer)  # the test loads the best weights: whoever stops it goes on from here, with all trained

    def _agreed_in_evaluation(self) -> str | None:
        """Return the agreed signal; ranks may have batches of different number, and agree on those that all have."""
        self._shared -= 1
        return self._agreement.reached() if self._shared > 0 else None

    def _leave_validation(self, trainer: pl.Trainer) -> None:
        if not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING:
            _rewind(trainer.fit_loop.epoch_loop.val_loop.batch_progress)
            self._save(trainer)
        self._leave()

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self._checkpoints / LAST)
        self._saved = True

    def _leave_if_saved(self) -> None:
        if self._saved:
            self._leave()

    def _leave(self) -> None:
        raise InterruptedByInfrastructureError(self._stop.received, together=self._agreement.together)


class Agreement:
    """What all ranks know of a signal. It may reach them at different steps, or only one of them.

    They ask each other about once a second, over a group on the CPU, and all at the same place: who asks alone
    waits for ever.
    """

    def __init__(self, stop: StopSignal) -> None:
        self._stop = stop
        self._group: Any = None
        self._agreed = False
        self._every, self._count, self._since = 1, 0, time.monotonic()

    def open(self, ranks: int) -> None:
        if ranks > 1 and self._group is None:
            self._group = torch.distributed.new_group(backend="gloo")
        self.hurry()

    def hurry(self) -> None:
        """Ask at the next opportunity: what follows may take longer than what was counted so far."""
        self._every, self._count, self._since = 1, 0, time.monotonic()

    @property
    def together(self) -> bool:
        """Whether several ranks have told each other of a signal."""
        return self._agreed

    def reached(self) -> str | None:
        """Return the signal that any rank has received, on all ranks from the same call on."""
        if self._group is None or self._agreed:
            return self._stop.received
        self._count += 1
        if self._count < self._every:
            return None
        mine = float(_SIGNALS.index(self._stop.received)) if self._stop.received in _SIGNALS else 0.0
        received, elapsed = self._most([mine, time.monotonic() - self._since])
        rate = round(self._count * _AGREE_SECONDS / max(elapsed, 1e-6))
        self._every = max(1, min(1000, 2 * self._every, rate))  # one quick call says little of those to come
        self._count, self._since = 0, time.monotonic()
        self._agreed = received > 0
        self._stop.received = self._stop.received or _SIGNALS[int(received)] or None
        return self._stop.received if self._agreed else None

    def least(self, batches: Sequence[float]) -> int:
        """Return of how many batches all ranks have at least (0: not known), and ask at the first of them."""
        self.hurry()
        if self._group is None:
            return sys.maxsize
        least = -self._most([-min(batches, default=0)])[0]
        return int(least) if math.isfinite(least) else 0

    def _most(self, mine: Sequence[float]) -> list[float]:
        state = torch.tensor(mine, dtype=torch.float64)
        torch.distributed.all_reduce(state, op=torch.distributed.ReduceOp.MAX, group=self._group)
        found: list[float] = state.tolist()
        return found


def _close_epoch(loop: Any) -> None:
    """Have a fit that goes on from the end of an epoch begin the next one, as without `max_steps`.

    With `max_steps` Lightning always takes itself to be within an epoch: it would take the first step as an epoch of
    its own, or log all that follows one step too late.
    """
    if loop.restarting and loop.restarted_on_epoch_end:
        loop._restarting = False  # noqa: SLF001 - the setter is what sets it to true again
        loop.epoch_loop.restarting = False
        loop.reset_restart_stage()
        loop.epoch_loop.reset_restart_stage()
        loop.epoch_progress.increment_completed()


def _accumulates(trainer: pl.Trainer) -> bool:
    """Whether batches have added to the gradients since the optimizer last stepped."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return batches % trainer.accumulate_grad_batches != 0 and not trainer.is_last_batch


def _validation_batches(trainer: pl.Trainer) -> Sequence[float]:
    return trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches


def _rewind(progress: Any) -> None:
    """Set a validation's progress to the start of its first batch: from there Lightning runs the whole of it again.

    Lightning goes on with a validation only if it was left within a batch (`restarted_mid_evaluation`); at any other
    place it takes it for done.
    """
    before = progress.total.completed - progress.current.completed
    for count, now in ((progress.current, 0), (progress.total, before)):
        count.ready = count.started = now + 1
        count.processed = count.completed = now
    progress.is_last_batch = False


def quieten() -> None:
    """Silence what Lightning says in every run and no user can act on: an advertisement, its own deprecations."""
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message="The .srun. command is available.*")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda r: "litlogger" not in r.getMessage())


def train(training: Training, *, logger: SpoolLogger, events: EventWriter, stop: StopSignal) -> dict[str, Any]:
    """Build everything, fit (and test), and return the `done` event's data: last metrics and the best one."""
    config = training.config
    quieten()
    pl.seed_everything(config["seed"], workers=True, verbose=False)
    datamodule = build(config["data"]) if config["data"].get("_target_") else None
    model = build(config["model"])
    relative = f"{training.folder.name}/{training.checkpoints.name}"
    inherit = None if training.resume_from or not training.state_from else partial(_inherit, training)
    progress = Progress(events, training.objective, f"{relative}/{BEST}", inherit)
    stopping = StopOnSignal(stop, training.checkpoints, tests=config["task"] == "fit_test")
    examples = [KeepExample(training.example)] if training.example else []
    prune = Prune(training.report, training.objective.metric) if training.report and training.objective else None
    callbacks = [progress, *examples, *([prune] if prune else []), _checkpoints(training), stopping]
    trainer = _trainer(training, logger, callbacks)
    events.write("training", resumed=training.resume_from is not None)
    if training.weights_from and not training.resume_from:
        load_weights(model, training.weights_from)
    if config["task"] in EVALUATIONS:
        return {"metrics": _evaluate(training, trainer, model, datamodule), "best": {}}
    checkpoint = training.resume_from or training.state_from
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


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Load a model's weights from a checkpoint of Lightning's, or a state dict. Raises OrchError where they differ."""
    loaded = torch.load(path, map_location="cpu", weights_only=False)
    try:
        model.load_state_dict(loaded.get("state_dict", loaded))
    except RuntimeError as error:
        raise OrchError(
            f"the weights of {path.name} do not fit the model", why=" ".join(str(error).split()),
            fix="give the model the arguments that it was trained with",
        ) from error  # fmt: skip


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


def _keep_predictions(training: Training, predictions: Any) -> None:
    """Write what `predict_step` returned, batch by batch, each rank its own; nothing where it returned nothing."""
    if not predictions:
        return
    rank = f".rank{training.place.rank}" if training.resources.world_size > 1 else ""
    AtomicCheckpointIO().save_checkpoint({"predictions": predictions}, training.artifacts / f"predictions{rank}.pt")


def _inherit(training: Training, checkpoint: str) -> str:
    """Link (or copy) the best checkpoint of the run that this one goes on from, and return where it is now.

    It lies in that run's folder, beside the attempt whose checkpoint is gone on from.
    """
    target = training.checkpoints / INHERITED
    source = training.state_from.parents[2] / checkpoint if training.state_from else target
    if training.place.rank == 0 and source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            target.hardlink_to(source)
        except OSError:  # another filesystem
            shutil.copyfile(source, target)
    return f"{training.folder.name}/{training.checkpoints.name}/{INHERITED}"


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return scalar metrics as floats; the rest, and what is not finite, is left to the spool."""
    scalars = {k: float(v) for k, v in metrics.items() if getattr(v, "numel", lambda: 1)() == 1}
    return {name: value for name, value in scalars.items() if value - value == 0}


def _trainer(training: Training, logger: SpoolLogger, callbacks: Sequence[Callback]) -> pl.Trainer:
    node = {key: value for key, value in training.config["trainer"].items() if value is not None and key != "callbacks"}
    users = [callback for callback in build(training.config["trainer"].get("callbacks") or {}).values() if callback]
    trainer: pl.Trainer = build(
        node, callbacks=[*users, *callbacks], logger=logger,
        plugins=[AtomicCheckpointIO(training.conceal), _environment(training)],
        default_root_dir=str(training.folder), **_devices(training.resources),
    )  # fmt: skip
    return trainer


def _devices(resources: Resources) -> dict[str, Any]:
    accelerator = "gpu" if resources.gpus_per_node and torch.cuda.is_available() else "cpu"
    return {"accelerator": accelerator, "devices": resources.processes_per_node, "num_nodes": resources.nodes}


def _environment(training: Training) -> ClusterEnvironment:
    """Return who starts the processes: srun, or nobody. Never Lightning's own guess, which may requeue (FACTS 16)."""
    place = training.place
    return SLURMEnvironment(auto_requeue=False) if place.job and not place.packed else LightningEnvironment()


def _checkpoints(training: Training) -> ModelCheckpoint:
    objective = training.objective
    return ModelCheckpoint(
        dirpath=training.checkpoints, filename=BEST.removesuffix(".ckpt"), save_last=True,
        monitor=objective.metric if objective else None, mode=objective.mode if objective else "min",
        save_top_k=1, enable_version_counter=False, auto_insert_metric_name=False,
    )  # fmt: skip


def _trusted(method: Any) -> dict[str, bool]:
    """Our own checkpoints may hold any object; newer versions of Lightning must be told to load it."""
    import inspect

    return {"weights_only": False} if "weights_only" in inspect.signature(method).parameters else {}


def _text(path: Path | None) -> str | None:
    return str(path) if path else None
