"""The engine's own checkpoints: when they are saved, which is the best, and how they are written atomically.

They do not use Lightning's ModelCheckpoint. It writes `last` only at a step where it saves a top-k file (since 2.6),
reads the objective at a different hook than the one that saves the file, is rejected if the user has one with the same
monitor, and is removed by a model's `configure_callbacks`. Users' own ModelCheckpoints write to `checkpoints/`.

Lightning writes to $TMPDIR and moves the file, which is not atomic across filesystems, and never synced (FACTS 19).
This module writes a checkpoint next to its target, syncs it and renames it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint, ProgressBar
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.trainer.states import TrainerFn

from orchestrator.config.credentials import Redact, unchanged
from orchestrator.config.secrets import redact_argument
from orchestrator.layout import BEST, AttemptPaths
from orchestrator.records.checkpoints import write_latest
from orchestrator.system.files import make_folder, make_private, replacing
from orchestrator.worker.fit.exact import lightning
from orchestrator.worker.fit.exact.seam import Moment, Seam
from orchestrator.worker.fit.progress import Progress, Prune, Saved

INHERITED = "inherited-best.ckpt"
"""The best checkpoint of the run that this one continues, under a name that this run's own best does not overwrite."""

_ARGUMENTS = ("hyper_parameters", "datamodule_hyper_parameters")


class KeepCheckpoints(Checkpoint):
    """Saves the latest state, and the best state by the objective, in the attempt's `state/`.

    Only this callback observes the objective: at the end of each training epoch, and of each validation within one.
    The record, the pruner and the checkpoint of that step therefore all refer to the same value: a checkpoint is named
    by its step, and the record names the best one by that name. Only a value logged since the last observation counts.
    Rank 0 decides for all ranks.

    An observed state is saved at the next seam, once everything that belongs to the step or epoch is done.
    """

    def __init__(self, attempt: AttemptPaths, progress: Progress, prune: Prune | None, seam: Seam) -> None:
        self._attempt, self._progress, self._prune, self._seam = attempt, progress, prune, seam
        self._validated: float | None = None
        """The objective's value in a validation that ends with its epoch."""
        self._saved: Path | None = None
        self._best: Path | None = None
        self._due = self._improved = False
        """Whether an observed state has still to be saved, and whether it is the best one."""
        self._written = attempt.state
        self._times: Counter[int] = Counter()

    @property
    def state_key(self) -> str:
        return "orch.KeepCheckpoints"

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
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

    def at_seam(self, trainer: pl.Trainer, moment: Moment) -> bool:
        """Save at the end of an epoch, or if something was observed since the last seam.

        Return whether this moment needs no other save. All ranks must call it.
        """
        if not (self._due or moment is Moment.EPOCH):
            return False
        last = moment is Moment.EPOCH and lightning.has_ended(trainer) and trainer.global_step
        if last and _changes_at_end(trainer, trainer.lightning_module):  # `on_train_end` saves the state to resume from
            if self._improved:
                self._save(trainer, moment)
                self._keep_best(trainer)
            return True
        self.save(trainer, moment)
        return True

    def save(self, trainer: pl.Trainer, moment: Moment, state: Saved | None = None) -> None:
        """Save the current state, or a given earlier one, for the run to resume from. All ranks must call it."""
        path = self._save(trainer, moment, state)
        if trainer.is_global_zero:
            write_latest(self._attempt, path, step=trainer.global_step, epoch=_epoch(trainer, moment))
            self._remove(self._saved, unless={path, self._best})
        self._saved = path
        self._keep_best(trainer)

    def _save(self, trainer: pl.Trainer, moment: Moment, state: Saved | None = None) -> Path:
        path = self._written = self._next_path(trainer)
        self._times[trainer.global_step] += 1
        if state is None:
            with self._seam.saving(moment):
                trainer.save_checkpoint(path)
        else:
            trainer.strategy.save_checkpoint(state, path)
            trainer.strategy.barrier("orch: a checkpoint made before is saved")
        return path

    def _keep_best(self, trainer: pl.Trainer) -> None:
        """Make the last written file the best checkpoint if its observation is the best."""
        improved, self._improved, self._due = self._improved, False, False
        if improved:
            before, self._best = self._best, self._written
            if trainer.is_global_zero:
                self._remove(before, unless={self._best, self._saved})
                _link(self._best, self._best.with_name(BEST))

    def _observe(self, trainer: pl.Trainer, value: float | None) -> None:
        improved = bool(trainer.strategy.broadcast(value is not None and self._progress.improves(value)))
        if improved and value is not None:
            path = self._next_path(trainer)
            relative = f"{self._attempt.path.name}/{path.parent.name}/{path.name}"
            self._progress.keep_best(value, step=trainer.global_step, epoch=trainer.current_epoch, checkpoint=relative)
        if self._prune:
            self._prune.observe(trainer, value)
        self._due, self._improved = True, self._improved or improved
        if not self._seam.attached:
            self.save(trainer, Moment.BATCH)

    def _next_path(self, trainer: pl.Trainer) -> Path:
        """Return the file to save to next. No name is used twice, because a record may refer to it."""
        again = self._times[trainer.global_step]
        return self._attempt.state / f"step-{trainer.global_step}{f'-{again}' if again else ''}.ckpt"

    def _remove(self, path: Path | None, *, unless: set[Path | None]) -> None:
        if path is not None and path not in unless:
            path.unlink(missing_ok=True)


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
    theirs = [each for each in callbacks if each not in ours and not isinstance(each, ProgressBar | Checkpoint)]
    defaults = {pl.Callback.on_train_end, pl.LightningModule.on_train_end}
    return any(type(each).on_train_end not in defaults for each in (module, *theirs) if hasattr(each, "on_train_end"))


def _link(path: Path, name: Path) -> None:
    """Give a checkpoint a second name, for people. A filesystem without hard links goes without it."""
    with suppress(OSError), replacing(name) as temporary:
        temporary.unlink()
        temporary.hardlink_to(path)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints by temporary file, fsync and rename, in the target's own folder.

    Lightning stores a model's arguments in them; secrets are redacted there. From the file `foreign` only weights and
    plain values are loaded.
    """

    def __init__(self, redact: Redact = unchanged, *, foreign: Path | None = None) -> None:
        self._redact, self._foreign = redact, foreign

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if self._foreign is not None and Path(path) == self._foreign:
            loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return loaded
        return super().load_checkpoint(path, *args, **kwargs)

    def save_checkpoint(self, checkpoint: Mapping[str, object], path: Any, storage_options: object = None) -> None:
        target = Path(path)
        make_folder(target.parent)
        with replacing(target, sync=True) as temporary, temporary.open("wb") as file:
            torch.save({key: self._kept(key, value) for key, value in checkpoint.items()}, file)

    def _kept(self, key: str, value: object) -> object:
        if key not in _ARGUMENTS or not isinstance(value, MutableMapping) or self._redact is unchanged:
            return value
        kept = copy.copy(value)  # Lightning's own type, not a plain dict; the run keeps using the original
        kept.update({name: redact_argument(self._redact, name, one) for name, one in value.items()})
        return kept
