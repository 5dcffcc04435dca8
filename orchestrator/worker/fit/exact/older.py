"""Checkpoints made at Lightning's own hooks: by earlier versions, or with a Lightning that has no known seam.

On resuming, Lightning skips what follows such a hook: the end of the epoch, and the step of a plateau scheduler. It
saves neither accumulated gradients nor the metrics that such a step needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loops.fit_loop import _FitLoop as FitLoop

from orchestrator.worker.fit.exact.seam import KEY, Seam
from orchestrator.worker.fit.progress import Saved

_GRADIENTS = "orch_gradients"
"""A checkpoint's key for the gradients accumulated so far, if it was saved before the optimizer's step."""
_METRICS = "orch_metrics"
"""A checkpoint's key for the metrics that callbacks and schedulers saw when it was saved."""


class ResumeOlder(Callback):
    """Restores what an older checkpoint holds, and does the steps that Lightning skips when it resumes from one."""

    def __init__(self, seam: Seam) -> None:
        self._seam, self._older = seam, False
        self._metrics: Mapping[str, torch.Tensor] = {}
        self._gradients: Mapping[str, torch.Tensor] = {}

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Saved) -> None:
        if not self._seam.attached:
            metrics = trainer.callback_metrics.items()
            checkpoint[_METRICS] = {name: one.detach().cpu().clone() for name, one in metrics if torch.is_tensor(one)}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Saved) -> None:
        self._older = not (self._seam.attached and KEY in checkpoint)
        if self._older:
            self._metrics = checkpoint.get(_METRICS, {})
            self._gradients = checkpoint.get(_GRADIENTS, {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._older:
            return
        if self._metrics:
            device = trainer.strategy.root_device
            known = trainer._logger_connector._callback_metrics  # noqa: SLF001 - `callback_metrics` can only be read
            known.update({name: value.to(device) for name, value in self._metrics.items()})
            _do_skipped_step(trainer.fit_loop)
        _close_epoch(trainer.fit_loop)
        for name, parameter in pl_module.named_parameters():
            if name in self._gradients:
                parameter.grad = self._gradients[name].to(parameter.device)
        self._gradients = {}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let Lightning step plateau schedulers at the end of the resumed epoch: the metrics are there."""
        if self._metrics:
            trainer.fit_loop._restarting = False  # noqa: SLF001 - the setter would also set it for inner loops
            self._metrics = {}


def _do_skipped_step(loop: FitLoop) -> None:
    """Do the schedulers' step that was due when the checkpoint was saved; after a validation Lightning does it."""
    epochs, within = loop.epoch_progress.current, loop.epoch_loop
    if loop.resumed_on_epoch_end or loop.restarted_on_epoch_end:
        if within._num_ready_batches_reached():  # noqa: SLF001 - as Lightning does at the end of an epoch
            completed, epochs.completed = epochs.completed, epochs.ready - 1
            within.update_lr_schedulers("epoch", update_plateau_schedulers=True)
            epochs.completed = completed
    elif within.restarted_on_train_batch_end:
        within.update_lr_schedulers("step", update_plateau_schedulers=True)


def _close_epoch(loop: Any) -> None:
    """Make a fit that resumes from the end of an epoch begin the next one, as without `max_steps`.

    With `max_steps`, Lightning always assumes that it is inside an epoch: it would make the first step an epoch of its
    own, or log everything one step late.
    """
    if loop.restarting and loop.restarted_on_epoch_end:
        loop._restarting = False  # noqa: SLF001 - the setter would set it to true again
        loop.epoch_loop.restarting = False
        loop.reset_restart_stage()
        loop.epoch_loop.reset_restart_stage()
        loop.epoch_progress.increment_completed()
