"""Weights that a run starts from (`init_from`), loaded as Lightning loads a checkpoint: after its hooks."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn

from orchestrator.errors import OrchError
from orchestrator.worker.fit.progress import Saved

_log = logging.getLogger(__name__)


class InitialWeights(Callback):
    """Loads weights once the model has all of its layers, including those made in `setup` and `configure_model`.

    The file is a Lightning checkpoint, which the model's `on_load_checkpoint` gets first, or a state dict. The model's
    `strict_loading` decides whether both must have the same names. If the model has all of its layers when it is built,
    weights are also loaded then, because a callback may copy them in its `setup`, as weight averaging does.
    """

    def __init__(self, path: Path, *, weights_only: bool = False) -> None:
        """With `weights_only` the file may hold nothing but weights and plain values, and cannot run code."""
        self._path, self._weights_only = path, weights_only
        self._loaded: Saved | None = None
        self._done = False

    def load_early(self, model: pl.LightningModule) -> None:
        """Load into a model that has all of its layers already; otherwise do nothing."""
        checkpoint = self._checkpoint(model)
        if set(checkpoint["state_dict"]) == set(model.state_dict()):
            self._load(model, checkpoint)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._done:  # after a fit, a test uses the trained weights
            return
        self._load(pl_module, self._checkpoint(pl_module))
        self._loaded, self._done = None, True  # frees the memory

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_fit_start(trainer, pl_module)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_fit_start(trainer, pl_module)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_fit_start(trainer, pl_module)

    def _checkpoint(self, model: pl.LightningModule) -> Saved:
        """Return the checkpoint after the model's own hook has changed it."""
        if self._loaded is None:
            self._loaded = torch.load(self._path, map_location="cpu", weights_only=self._weights_only)
        if "state_dict" not in self._loaded:
            return {"state_dict": self._loaded}
        checkpoint = copy.copy(self._loaded)  # the hook may change it, and is called again
        model.on_load_checkpoint(checkpoint)
        return checkpoint

    def _load(self, model: pl.LightningModule, checkpoint: Saved) -> None:
        try:
            differing = model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading)
        except RuntimeError as error:
            raise OrchError(
                f"the weights of {self._path.name} do not fit the model",
                why=" ".join(str(error).split()),
                fix="give the model the arguments that it was trained with, or set its strict_loading to False",
            ) from error
        if len(differing.unexpected_keys) == len(checkpoint["state_dict"]):
            raise OrchError(
                f"{self._path.name} has no weight of the model",
                why=f"it has {_some(checkpoint['state_dict'])}, and the model has {_some(model.state_dict())}",
                fix="choose a checkpoint of this model, or rename the weights in its on_load_checkpoint",
            )
        if differing.missing_keys or differing.unexpected_keys:
            _log.warning(
                "init_from: not in %s, and so left as initialised: %s; not in the model: %s",
                self._path.name,
                _some(differing.missing_keys) or "none",
                _some(differing.unexpected_keys) or "none",
            )


def _some(names: Any) -> str:
    listed = list(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
