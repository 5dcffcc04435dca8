"""Finders of a learning rate or a batch size: their results hold for all attempts of a run.

Lightning searches at the start of every fit. If the fit resumes from a checkpoint, the search also discards the loaded
state, so that the loops and the optimizer start from scratch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BatchSizeFinder, Callback, LearningRateFinder
from pytorch_lightning.tuner.lr_finder import _determine_lr_attr_name
from pytorch_lightning.utilities.parsing import lightning_getattr, lightning_setattr

from orchestrator.worker.fit.progress import Saved

_log = logging.getLogger(__name__)
_FOUND = "orch_found"
"""A checkpoint's key for the attributes of the model or the data that a finder has set, by name."""

Finder = LearningRateFinder | BatchSizeFinder
_SEARCHES: Mapping[type[Finder], str] = {LearningRateFinder: "lr_find", BatchSizeFinder: "scale_batch_size"}

Search = Callable[[pl.Trainer, pl.LightningModule], None]


class KeepFound(Callback):
    """Saves the values that finders have set, and restores them without a search if the fit resumes.

    A finder that also searches at later epochs, as a subclass may, still does so.
    """

    def __init__(self, *, resumes: bool) -> None:
        self._skips = resumes
        self._found: Saved = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Wrap the search of each finder, including those that a model has added to the trainer's callbacks."""
        if stage != "fit":
            return
        for finder in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning's connector sets it
            for kind, search in _SEARCHES.items():
                if isinstance(finder, kind):
                    setattr(finder, search, partial(self._search, getattr(finder, search), finder))

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Saved) -> None:
        if self._found:
            checkpoint[_FOUND] = dict(self._found)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Saved) -> None:
        for name, value in checkpoint.get(_FOUND, {}).items():
            lightning_setattr(pl_module, name, value)
            self._found[name] = value

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._skips = False

    def _search(
        self,
        search: Search,
        finder: Finder,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
    ) -> None:
        name = _attribute(finder, pl_module)
        if not self._skips:
            search(trainer, pl_module)
            if name:
                self._found[name] = lightning_getattr(pl_module, name)
        elif name and name not in self._found:
            _log.warning(
                "%s does not search: the fit resumes from a state that was trained without it; %s keeps its value",
                type(finder).__name__,
                name,
            )


def _attribute(finder: Finder, module: pl.LightningModule) -> str | None:
    """Return the name of the attribute that a finder sets; None if it only reports."""
    if isinstance(finder, BatchSizeFinder):
        return finder._batch_arg_name  # noqa: SLF001 - it has no public name
    return _determine_lr_attr_name(module, finder._attr_name) if finder._update_attr else None  # noqa: SLF001 - as above
