"""The engine's own checkpoints: when they are saved, and which is the best.

They do not use Lightning's ModelCheckpoint. It writes `last` only at a step where it saves a top-k file (since 2.6),
reads the objective at a different hook than the one that saves the file, is rejected if the user has one with the same
monitor, and is removed by a model's `configure_callbacks`. Users' own ModelCheckpoints write to `checkpoints/`.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint as CheckpointCallback
from pytorch_lightning.callbacks import ProgressBar
from pytorch_lightning.trainer.states import TrainerFn

from orchestrator.layout import AttemptPaths
from orchestrator.records.checkpoints import Checkpoint
from orchestrator.system.files import make_private
from orchestrator.worker.fit.cadence import Cadence
from orchestrator.worker.fit.exact import lightning
from orchestrator.worker.fit.exact.seam import Moment, Seam
from orchestrator.worker.fit.progress import Progress, Prune, Saved
from orchestrator.worker.fit.writer import CheckpointWriter

INHERITED = "inherited-best.ckpt"
"""The best checkpoint of the run that this one continues, under a name that this run's own best does not overwrite."""


class KeepCheckpoints(CheckpointCallback):
    """Saves the latest state, and the best state by the objective, in the attempt's `state/`.

    Only this callback observes the objective: at the end of each training epoch, and of each validation within one.
    The record, the pruner and the checkpoint of that step therefore all refer to the same value: a checkpoint is named
    by its step, and the record names the best one by that name. Only a value logged since the last observation counts.
    Rank 0 decides for all ranks.

    The best is saved at the next seam, once everything that belongs to the step or epoch is done. The latest state is
    saved there when it is due, and always when the fit ends or is interrupted.
    """

    def __init__(
        self,
        attempt: AttemptPaths,
        progress: Progress,
        prune: Prune | None,
        seam: Seam,
        *,
        cadence: Cadence,
        writer: CheckpointWriter,
    ) -> None:
        self._attempt, self._progress, self._prune, self._seam = attempt, progress, prune, seam
        self._cadence, self._writer = cadence, writer
        self._validated: float | None = None
        """The objective's value in a validation that ends with its epoch."""
        self._saved: Path | None = None
        self._best: Path | None = None
        self._improved = False
        """Whether the best state so far has been observed, and not saved yet."""
        self._leads = True
        self._times: Counter[int] = Counter()

    @property
    def state_key(self) -> str:
        return "orch.KeepCheckpoints"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._leads = trainer.is_global_zero
        if trainer.is_global_zero:  # once this folder exists, no file in `checkpoints/` is mistaken for the engine's
            make_private(self._attempt.state)

    # Attributes that published code reads from `trainer.checkpoint_callback`.

    @property
    def dirpath(self) -> str:
        return str(self._attempt.state)

    @property
    def best_model_path(self) -> str:
        return str(self._best or "")

    @property
    def best_model_score(self) -> torch.Tensor | None:
        return torch.tensor(self._progress.best["value"]) if self._progress.best else None

    @property
    def last_model_path(self) -> str:
        return str(self._saved or "")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        lightning.fix_order_of_sums(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        value = _logged(trainer, self._progress.metric)
        if trainer.is_last_batch:
            self._validated = value  # the epoch ends next, with the same weights
        else:
            self._observe(trainer, value)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        validated, self._validated = self._validated, None
        self._observe(trainer, _logged(trainer, self._progress.metric) if validated is None else validated)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save once more if something may have changed the weights at the end of training, as SWA does."""
        if trainer.global_step and _changes_at_end(trainer, pl_module):
            self.save(trainer, Moment.EPOCH)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.wait(trainer)

    def at_seam(self, trainer: pl.Trainer, moment: Moment) -> bool:
        """Save what has to be saved at this seam; returns whether the latest state is. All ranks call it."""
        ended = moment is Moment.EPOCH and lightning.has_ended(trainer)
        if ended and trainer.global_step and _changes_at_end(trainer, trainer.lightning_module):
            if self._improved:  # `on_train_end` saves the state to resume from
                self._save(trainer, moment, latest=False)
            return True
        if not (self._improved or ended or (moment is Moment.EPOCH and self._due_after_epoch(trainer))):
            return False
        self.save(trainer, moment)
        return True

    def due(self, step: int) -> bool:
        """Return whether the state between two batches is to be saved; only rank 0 knows."""
        return self._leads and not self._writer.busy and self._cadence.due(time.monotonic(), step)

    def _due_after_epoch(self, trainer: pl.Trainer) -> bool:
        mine = not self._writer.busy and self._cadence.due_after_epoch(time.monotonic(), trainer.global_step)
        return bool(trainer.strategy.broadcast(mine))

    def save(self, trainer: pl.Trainer, moment: Moment, state: Saved | None = None, *, now: bool = False) -> None:
        """Save the state as it is now, or a checkpoint made before, for the run to resume from. All ranks call it.

        `now`: it is safe when this returns.
        """
        self._saved = self._save(trainer, moment, state, latest=True, now=now)
        if now:
            self.wait(trainer)

    def wait(self, trainer: pl.Trainer) -> None:
        """Wait until what was saved is safe. All ranks call it: one that ends alone may end the others."""
        if trainer.is_global_zero:
            self._writer.wait()
        trainer.strategy.barrier("orch: checkpoints are safe")

    def _save(
        self, trainer: pl.Trainer, moment: Moment, state: Saved | None = None, *, latest: bool, now: bool = False
    ) -> Path:
        """Save a state, which is also the best one if what was observed last is that."""
        began = time.monotonic()
        path, best, self._improved = self._next_path(trainer), self._improved, False
        self._times[trainer.global_step] += 1
        found = Checkpoint(
            path=path,
            step=trainer.global_step,
            epoch=_epoch(trainer, moment),
            metrics_bytes=self._seam.metrics_bytes(moment),
        )
        if lightning.writes_whole_files(trainer):
            if state is None:
                with self._seam.saving(moment):
                    state = lightning.checkpoint(trainer)
            if trainer.is_global_zero:
                self._writer.write(state, found, latest=latest, best=best, now=now)
        else:  # each rank writes a part of it
            with self._seam.saving(moment):
                trainer.save_checkpoint(path)
            if trainer.is_global_zero:
                self._writer.written(found, latest=latest, best=best)
        self._best = path if best else self._best
        ended = time.monotonic()
        self._cadence.saved(ended, trainer.global_step, waited=ended - began, size=self._writer.size)
        return path

    def _observe(self, trainer: pl.Trainer, value: float | None) -> None:
        improved = bool(trainer.strategy.broadcast(value is not None and self._progress.improves(value)))
        if improved and value is not None:
            path = self._next_path(trainer)
            relative = f"{self._attempt.path.name}/{path.parent.name}/{path.name}"
            self._progress.keep_best(value, step=trainer.global_step, epoch=trainer.current_epoch, checkpoint=relative)
        if self._prune:
            self._prune.observe(trainer, value)
        self._improved = self._improved or improved
        if not self._seam.attached:
            self.save(trainer, Moment.BATCH)

    def _next_path(self, trainer: pl.Trainer) -> Path:
        """Return the file to save to next. No name is used twice, because a record may refer to it."""
        again = self._times[trainer.global_step]
        return self._attempt.state / f"step-{trainer.global_step}{f'-{again}' if again else ''}.ckpt"


def _logged(trainer: pl.Trainer, metric: str | None) -> float | None:
    """Return a metric's value if the loop that is ending has logged it; values of earlier epochs do not count."""
    results = trainer._results  # noqa: SLF001 - callback_metrics also keeps values of earlier loops
    if metric is None or results is None:
        return None
    fresh = any(metric in results.metrics(on_step=on_step)["callback"] for on_step in (False, True))
    value = trainer.callback_metrics.get(metric)
    return float(value) if fresh and value is not None else None


def _epoch(trainer: pl.Trainer, moment: Moment) -> int:
    """Return the epoch of a checkpoint: after an epoch, the one that has just ended."""
    return trainer.current_epoch - (moment is Moment.EPOCH)


def _changes_at_end(trainer: pl.Trainer, module: pl.LightningModule) -> bool:
    """Whether the model, or a callback of the user's that may change it, has a hook for the end of training."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning's connector sets it
    ours = [each for each in callbacks if type(each).__module__.startswith("orchestrator.worker.")]
    theirs = [each for each in callbacks if each not in ours and not isinstance(each, ProgressBar | CheckpointCallback)]
    defaults = {pl.Callback.on_train_end, pl.LightningModule.on_train_end}
    return any(type(each).on_train_end not in defaults for each in (module, *theirs) if hasattr(each, "on_train_end"))
