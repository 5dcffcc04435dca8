"""Checkpoints that are whole or absent, and the search for the one to go on from.

Lightning writes to $TMPDIR and moves the file, which is no atomic step across filesystems and is never
synced (FACTS 19): here a checkpoint is written beside its target, synced and renamed.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from orchestrator.layout import LAST, AttemptPaths

BEST = "best.ckpt"
INHERITED = "inherited-best.ckpt"
"""The best of the run that this one goes on from: its own first best would overwrite it."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints by temporary file, fsync and rename, in the target's own folder."""

    def save_checkpoint(self, checkpoint: Mapping[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def latest(attempts: Sequence[AttemptPaths]) -> Path | None:
    """Return the newest checkpoint of the given attempts, the latest attempt first."""
    for attempt in sorted(attempts, key=lambda attempt: attempt.number, reverse=True):
        if (found := attempt.checkpoints / LAST).is_file():
            return found
    return None
