"""The end of a fit after a signal: all ranks agree that it has come, save the same state, and leave."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Sequence

import pytorch_lightning as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.callbacks import Checkpoint as CheckpointCallback
from pytorch_lightning.trainer.states import TrainerFn

from orchestrator.worker.fit.checkpoints import KeepCheckpoints
from orchestrator.worker.fit.exact import lightning
from orchestrator.worker.fit.exact.seam import Moment, Seam
from orchestrator.worker.fit.progress import Saved
from orchestrator.worker.signals import InterruptedByInfrastructureError, StopSignal

_log = logging.getLogger(__name__)
_AGREE_SECONDS = 1.0
_SIGNALS = ("", "SIGINT", "SIGTERM", "SIGUSR2")


class StopOnSignal(CheckpointCallback):
    """Saves a checkpoint at the first seam after a signal, and ends the fit; saves those that are due by time.

    While gradients accumulate, it waits until the optimizer steps. A signal during a validation saves the state at the
    validation's start, without any weights that a callback has swapped in (`StartOfValidation`): a validation has to be
    run whole for its metrics to be right, and until then only values that a model logs per validation batch are logged.
    The sanity check and testing have nothing to save; nor does the end of the last epoch, after which little is left.

    If no seam is known for the installed Lightning, it saves at the end of a step, and again at the next hook, because
    Lightning logs a step's metrics after `on_train_batch_end`. It is a `Checkpoint` to be called after other callbacks.
    """

    def __init__(self, stop: StopSignal, checkpoints: KeepCheckpoints, start: StartOfValidation, seam: Seam) -> None:
        self._stop, self._checkpoints, self._start, self._seam = stop, checkpoints, start, seam
        self._agreement = Agreement(stop, self._save_is_due)
        self._step = 0
        self._saved = False
        self._shared = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave if a signal came before there was anything to save, while data was staged or the model was built."""
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

    def at_seam(self, trainer: pl.Trainer, moment: Moment, *, saved: bool) -> None:
        """Save and leave if a signal has come, and save if it is due. `saved`: whether this moment has been saved."""
        self._step = trainer.global_step
        signal = self._agreement.reached()
        if lightning.accumulates(trainer) or (moment is Moment.EPOCH and lightning.has_ended(trainer)):
            return
        if signal:
            self._checkpoints.save(trainer, moment, now=True) if not saved else self._checkpoints.wait(trainer)
            self._leave()
        if self._agreement.due:
            self._agreement.due = False
            if not saved:
                self._checkpoints.save(trainer, moment)

    def _save_is_due(self) -> bool:
        return self._checkpoints.due(self._step)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._leave_if_saved()

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        self._leave_if_saved()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if self._seam.attached:
            return
        stepped = trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if self._agreement.reached() and stepped:
            self._save(trainer)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop.install()
        self._shared = self._agreement.least(trainer.num_predict_batches)

    def on_predict_batch_end(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        if self._agreed_in_evaluation():
            self._leave()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._stop.install()
        self._shared = self._agreement.least(_validation_batches(trainer))
        if self._saved or self._agreement.reached():
            self._leave_validation(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        if self._shared > 0:  # all ranks have this batch
            self._start.learn(trainer)
        if self._agreed_in_evaluation():
            self._leave_validation(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._agreement.hurry()

    def on_test_batch_end(self, trainer: pl.Trainer, *_: object, **__: object) -> None:
        if self._agreed_in_evaluation():
            self._leave()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._saved:
            self._save(trainer)

    def _agreed_in_evaluation(self) -> str | None:
        """Return the agreed signal. Ranks may differ in their number of batches; they agree only at those all have."""
        self._shared -= 1
        return self._agreement.reached() if self._shared > 0 else None

    def _leave_validation(self, trainer: pl.Trainer) -> None:
        if self._seam.attached and not trainer.sanity_checking and trainer.state.fn == TrainerFn.FITTING:
            lightning.rewind_validation(trainer.fit_loop.epoch_loop.val_loop.batch_progress)
            if self._start.state or not self._start.changed(trainer):
                self._checkpoints.save(trainer, Moment.VALIDATION, self._start.state, now=True)
            else:
                _log.warning("a callback has changed the weights for this validation: the last checkpoint is kept")
        self._leave()

    def _save(self, trainer: pl.Trainer) -> None:
        self._checkpoints.save(trainer, Moment.BATCH, now=True)
        self._saved = True

    def _leave_if_saved(self) -> None:
        if self._saved:
            self._leave()

    def _leave(self) -> None:
        raise InterruptedByInfrastructureError(self._stop.received, together=self._agreement.together)


class StartOfValidation(Callback):
    """Keeps the state at the start of a validation, in case a callback or the model changes the weights for it.

    Weight averaging does so: the averages replace the weights until the validation ends. This callback comes before all
    others except the seam. It copies the state only after it has seen an earlier validation change the weights; a run
    that is stopped during the first such validation resumes from its last checkpoint.
    """

    def __init__(self, seam: Seam) -> None:
        self._seam = seam
        self._changes = self._learned = False
        self._before: torch.Tensor | None = None
        self.state: Saved | None = None
        """A complete checkpoint, on the CPU; None if, as far as is known, the state has not changed since."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._before, self._learned = _sums(pl_module), False
        if self._changes and self._seam.attached:
            with self._seam.saving(Moment.VALIDATION):
                kept = lightning.checkpoint(trainer)
            self.state = apply_to_collection(kept, torch.Tensor, lambda value: value.detach().cpu().clone())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._before = self.state = None

    def learn(self, trainer: pl.Trainer) -> None:
        """Note, in a validation's first batch, whether the weights differ from those at its start."""
        if not self._learned:
            self._learned = True
            self._changes = self._changes or self.changed(trainer)

    def changed(self, trainer: pl.Trainer) -> bool:
        """Return whether the weights differ from those at the start of the validation, on any rank."""
        mine = self._before is not None and not torch.equal(self._before, _sums(trainer.lightning_module))
        return bool(trainer.strategy.reduce_boolean_decision(mine, all=False))


def _sums(module: torch.nn.Module) -> torch.Tensor:
    """Return the sum of magnitudes of each parameter: a fingerprint of the weights that costs one pass over them."""
    return torch.stack([value.detach().abs().sum().double().cpu() for value in module.parameters()] or [torch.zeros(1)])


class Agreement:
    """The agreement of all ranks on a signal, which may reach only one of them, and on when to save.

    They exchange what they have received about once a second, over a process group on the CPU. All must do so at the
    same point of the fit: a rank that calls alone waits forever.
    """

    def __init__(self, stop: StopSignal, save_is_due: Callable[[], bool]) -> None:
        self._stop, self._save_is_due = stop, save_is_due
        self.due = False
        """Whether all ranks are to save at their next opportunity. Reset it once that is done."""
        self._group: object = None
        self._agreed = False
        self._every, self._count, self._since = 1, 0, time.monotonic()

    def open(self, ranks: int) -> None:
        if ranks > 1 and self._group is None:
            self._group = torch.distributed.new_group(backend="gloo")
        self.hurry()

    def hurry(self) -> None:
        """Exchange at the next call: the calls that follow may be further apart than those counted so far."""
        self._every, self._count, self._since = 1, 0, time.monotonic()

    @property
    def together(self) -> bool:
        """Whether several ranks have agreed on a signal."""
        return self._agreed

    def reached(self) -> str | None:
        """Return the signal that any rank has received, on all ranks from the same call on; None before."""
        if self._group is None:
            self.due = self.due or self._save_is_due()
            return self._stop.received
        if self._agreed:
            return self._stop.received
        self._count += 1
        if self._count < self._every:
            return None
        mine = float(_SIGNALS.index(self._stop.received)) if self._stop.received in _SIGNALS else 0.0
        received, elapsed, due = self._most([mine, time.monotonic() - self._since, float(self._save_is_due())])
        self.due = self.due or due > 0
        rate = round(self._count * _AGREE_SECONDS / max(elapsed, 1e-6))
        self._every = max(1, min(1000, 2 * self._every, rate))  # one fast call does not predict the next ones
        self._count, self._since = 0, time.monotonic()
        self._agreed = received > 0
        self._stop.received = self._stop.received or _SIGNALS[int(received)] or None
        return self._stop.received if self._agreed else None

    def least(self, batches: Sequence[float]) -> int:
        """Return the number of batches that every rank has (0: not known), and exchange at the first of them."""
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


def _validation_batches(trainer: pl.Trainer) -> Sequence[float]:
    return trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
