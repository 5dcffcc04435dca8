"""When a run is saved, as far as time decides. Pure: the clock and what a save has cost are given to it."""

from __future__ import annotations

import random

from orchestrator.spec import CheckpointOptions

_SMALL_BYTES = 100_000_000
_SMALL_SECONDS, _LARGE_SECONDS = 60.0, 300.0
_SHARE = 0.01
"""The most of its time that the training may wait for checkpoints."""
_JITTER = 0.1


class Cadence:
    """Says when the next checkpoint is due. Times in seconds, of a clock that never goes back.

    Runs of one launch begin together; each waits a little longer or shorter, so that they do not write together.
    """

    def __init__(self, options: CheckpointOptions, now: float, jitter: float | None = None) -> None:
        """`jitter` is between -1 and 1; None: drawn, and not from the numbers that the training draws from."""
        self._options, self._saved, self._step = options, now, 0
        self._factor = 1 + _JITTER * (random.SystemRandom().uniform(-1, 1) if jitter is None else jitter)
        self._waited = self._bytes = 0.0

    def saved(self, now: float, step: int, *, waited: float, size: int = 0) -> None:
        """Note a checkpoint: how long the training has waited for it, and its bytes (0: as many as the one before)."""
        self._saved, self._step, self._waited = now, step, waited
        self._bytes = size or self._bytes

    def due(self, now: float, step: int) -> bool:
        """Return whether the state between two batches is to be saved."""
        if self._options.steps and step - self._step >= self._options.steps:
            return True
        return now - self._saved >= self._interval

    def due_after_epoch(self, now: float, step: int) -> bool:
        """Return whether the state after an epoch is to be saved, the better moment: wherever it costs little."""
        return self.due(now, step) or now - self._saved >= min(self._interval, self._waited / _SHARE)

    @property
    def _interval(self) -> float:
        if self._options.minutes is not None:
            return 60 * self._options.minutes
        interval = _SMALL_SECONDS if self._bytes < _SMALL_BYTES else _LARGE_SECONDS
        return max(interval * self._factor, self._waited / _SHARE)
