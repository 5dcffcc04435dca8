"""What a plateau scheduler needs to go on where it was: the metrics, and the steps that Lightning leaves out.

ReduceLROnPlateau takes its step after the hooks in which checkpoints are saved, from metrics that are not saved.
Where a run resumes, Lightning leaves that step out, and the one at the end of the epoch in which it resumes; with
`interval: step` it raises for want of the metric.
"""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loops.fit_loop import _FitLoop as FitLoop

from orchestrator.worker.fit.progress import Saved

_METRICS = "orch_metrics"
"""In a checkpoint: the metrics that callbacks and schedulers could see when it was saved."""


class PlateauSteps(Callback):
    """Saves the metrics, and has each plateau scheduler take the steps that it takes in a run that nobody stops.

    It comes before `StopOnSignal`, which closes the epoch that a fit resumes at the end of.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, torch.Tensor] = {}

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Saved) -> None:
        metrics = trainer.callback_metrics.items()
        checkpoint[_METRICS] = {name: value.detach().cpu().clone() for name, value in metrics if torch.is_tensor(value)}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Saved) -> None:
        self._metrics = checkpoint.get(_METRICS, {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._metrics:
            return
        device = trainer.strategy.root_device
        known = trainer._logger_connector._callback_metrics  # noqa: SLF001 - `callback_metrics` can only be read
        known.update({name: value.to(device) for name, value in self._metrics.items()})
        self._metrics = {}
        _take_owed(trainer.fit_loop)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have Lightning take the step at the end of the epoch that was resumed: the metrics are there."""
        trainer.fit_loop._restarting = False  # noqa: SLF001 - the setter would set it for the loops within, too


def _take_owed(loop: FitLoop) -> None:
    """Take the step that was still to come when the checkpoint was saved; after a validation Lightning takes it."""
    epochs, within = loop.epoch_progress.current, loop.epoch_loop
    if loop.resumed_on_epoch_end or loop.restarted_on_epoch_end:
        if within._num_ready_batches_reached():  # noqa: SLF001 - as Lightning does it at the end of an epoch
            completed, epochs.completed = epochs.completed, epochs.ready - 1
            within.update_lr_schedulers("epoch", update_plateau_schedulers=True)
            epochs.completed = completed
    elif within.restarted_on_train_batch_end:
        within.update_lr_schedulers("step", update_plateau_schedulers=True)
