"""Callbacks that watch a fit: progress reports, the objective's best value, and the pruning of trials."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from orchestrator.records.attempts import EventWriter
from orchestrator.spec import Objective

Saved = dict[str, Any]
"""A checkpoint, or a part of one, as Lightning passes it to hooks."""

_REPORT_SECONDS, _REPORT_SHARE = 1.0, 1e-3


class Progress(Callback):
    """Reports epoch, step and metrics, and remembers the objective's best value.

    It reports at most once a second, and in a long fit once per thousandth of the time elapsed: every refresh has to
    read all reports.
    """

    def __init__(
        self, events: EventWriter, objective: Objective | None, inherit: Callable[[str], str] | None = None
    ) -> None:
        """`inherit` takes over the best checkpoint of the run that this one continues, and returns its new path."""
        self._events, self._objective, self._inherit = events, objective, inherit
        self._began, self._reported = time.monotonic(), 0.0
        self.best: Saved = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if self._due():
            self._report(trainer, batch_idx + 1)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _ = trainer.callback_metrics  # on all ranks: an epoch's metrics are reduced when they are first read
        if self._due():
            self._report(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._report(trainer)

    def state_dict(self) -> Saved:
        return {"best": self.best}

    def load_state_dict(self, state_dict: Saved) -> None:
        best = dict(state_dict["best"])
        if best and self._inherit:
            same = self._objective is not None and self._objective.metric == best["metric"]
            best = {**best, "checkpoint": self._inherit(best["checkpoint"])} if same else {}
        self.best = best

    def _due(self) -> bool:
        now = time.monotonic()
        return now - self._reported >= max(_REPORT_SECONDS, _REPORT_SHARE * (now - self._began))

    @property
    def metric(self) -> str | None:
        """The objective's metric; None without an objective."""
        return self._objective.metric if self._objective else None

    def improves(self, value: float) -> bool:
        """Return whether a value of the objective is finite, and better than the best so far."""
        if self._objective is None or not math.isfinite(value):
            return False
        return not self.best or self._objective.better(value, self.best["value"])

    def keep_best(self, value: float, *, step: int, epoch: int, checkpoint: str) -> None:
        """Remember the best value and its checkpoint, a path relative to the run's folder."""
        self.best = {"metric": self.metric, "value": value, "step": step, "epoch": epoch, "checkpoint": checkpoint}

    def _report(self, trainer: pl.Trainer, batch: int | None = None) -> None:
        if not trainer.is_global_zero:
            return
        self._reported = time.monotonic()
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        batches = trainer.num_training_batches
        progress = {
            "epoch": trainer.current_epoch,
            "epochs": epochs,
            "step": trainer.global_step,
            "steps": trainer.max_steps if trainer.max_steps > 0 else None,
            **({"batch": batch, "batches": int(batches)} if batch and batches < float("inf") else {}),
        }
        self._events.write("progress", progress=progress, metrics=numbers(trainer.callback_metrics))


class Prune(Callback):
    """Ends the fit of a trial that its search prunes; all ranks end at the same observation of the objective."""

    def __init__(self, report: Callable[[int, float], bool]) -> None:
        self._report = report
        self._validations = 0
        self.pruned: int | None = None
        """The number of the validation after which the fit was ended, counted from 1; None if it was not pruned."""

    def observe(self, trainer: pl.Trainer, value: float | None) -> None:
        """Report an observation of the objective (None: it was not logged), and end the fit if the search says so."""
        logged = trainer.strategy.broadcast(value is not None)
        self._validations += bool(logged)
        stop = value is not None and trainer.is_global_zero and self._report(self._validations, value)
        if trainer.strategy.broadcast(stop) and self._may_end(trainer):
            self.pruned = self._validations
            trainer.should_stop = True

    def _may_end(self, trainer: pl.Trainer) -> bool:
        """Return whether Lightning may end the fit here: not before `min_epochs` and `min_steps`."""
        epochs = trainer.current_epoch + 1 >= (trainer.min_epochs or 0)
        return epochs and trainer.global_step >= (trainer.min_steps or 0)

    def state_dict(self) -> Saved:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: Saved) -> None:
        self._validations = int(state_dict["validations"])


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return scalar, finite metrics as floats; others are only in the spool."""
    scalars = {k: float(v) for k, v in metrics.items() if getattr(v, "numel", lambda: 1)() == 1}
    return {name: value for name, value in scalars.items() if value - value == 0}
