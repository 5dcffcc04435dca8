"""Checkpoints that are whole or absent, and the search for the one to go on from.

Lightning writes to $TMPDIR and moves the file, which is no atomic step across filesystems and is never
synced (FACTS 19): here a checkpoint is written beside its target, synced and renamed.
"""

from __future__ import annotations

import copy
import os
import uuid
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from orchestrator.layout import LAST, AttemptPaths

BEST = "best.ckpt"
INHERITED = "inherited-best.ckpt"
"""The best of the run that this one goes on from: its own first best would overwrite it."""


_ARGUMENTS = ("hyper_parameters", "datamodule_hyper_parameters")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints by temporary file, fsync and rename, in the target's own folder.

    Lightning keeps the arguments of a model in them: what may not be written is concealed there.
    """

    def __init__(self, conceal: Callable[[str], str] = str) -> None:
        self._conceal = conceal

    def save_checkpoint(self, checkpoint: Mapping[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            with temporary.open("wb") as file:
                torch.save({key: self._kept(key, value) for key, value in checkpoint.items()}, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _kept(self, key: str, value: Any) -> Any:
        if key not in _ARGUMENTS or not isinstance(value, MutableMapping):
            return value
        kept = copy.copy(value)  # of its own type: Lightning's is no plain dict
        kept.update({name: self._conceal(one) for name, one in value.items() if isinstance(one, str)})
        return kept


def latest(attempts: Sequence[AttemptPaths]) -> Path | None:
    """Return the newest checkpoint of the given attempts, the latest attempt first."""
    for attempt in sorted(attempts, key=lambda attempt: attempt.number, reverse=True):
        if (found := attempt.checkpoints / LAST).is_file():
            return found
    return None
