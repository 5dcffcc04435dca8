"""The input example of a registered model: a few samples of the model's input, stored with the run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from orchestrator.system.files import replacing
from orchestrator.system.units import size

_log = logging.getLogger(__name__)
_SAMPLES = 4
_BYTES = 1_000_000
"""The largest example to store. A single sample larger than this is not stored."""


class KeepExample(Callback):
    """Stores the first samples of the first batch, of validation or training, whichever comes first."""

    def __init__(self, path: Path) -> None:
        self._path, self._kept = path, False

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._keep(trainer, batch)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: object, batch_idx: int
    ) -> None:
        self._keep(trainer, batch)

    def _keep(self, trainer: pl.Trainer, batch: object) -> None:
        if self._kept or not trainer.is_global_zero:
            return
        self._kept = True
        try:
            kept = example(batch)
            with replacing(self._path) as temporary, temporary.open("wb") as file:  # torch refuses its name
                torch.save(kept, file)
        except (OSError, RuntimeError, ValueError, TypeError) as error:  # not a reason to end the training
            _log.warning("no input example is kept: %s", error)


def example(batch: Any) -> Any:
    """Return the model's input for up to four samples: a tensor [N, ...], or a mapping of such tensors by name.

    If a batch is a sequence, its first item is the input; the others are targets. Raises ValueError if the input is of
    another kind, or one sample is too large.
    """
    inputs = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if isinstance(inputs, dict):
        kept = {str(name): value for name, value in inputs.items() if torch.is_tensor(value)}
        parts = list(kept.values())
    else:
        kept, parts = inputs, [inputs]
    if not parts or not all(torch.is_tensor(part) and part.ndim for part in parts):
        raise ValueError(f"a batch of {type(inputs).__name__} is neither a tensor nor a mapping of tensors")
    sample = sum(part[:1].numel() * part.element_size() for part in parts)
    count = max(1, min(_SAMPLES, _BYTES // max(1, sample)))
    if sample > _BYTES:
        raise ValueError(f"one sample has {size(sample)}")
    return {name: _cut(value, count) for name, value in kept.items()} if isinstance(kept, dict) else _cut(kept, count)


def _cut(value: torch.Tensor, count: int) -> torch.Tensor:
    return value[:count].detach().cpu().clone()  # a slice would keep the whole batch, in memory and in the file
