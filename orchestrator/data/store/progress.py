"""Progress: how far a copy is, counted by many threads and reported by one, which may end it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.system.units import size


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the copying is. The totals are what this copy has to bring; `waiting_for` is who copies, if not we.

    `beats` grows while anything at all is read, also where no byte has come to stay yet.
    """

    files: int
    bytes: int
    total_files: int
    total_bytes: int
    seconds: float
    waiting_for: str = ""
    beats: int = 0

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """The time to the end at the rate so far; None while there is no rate."""
        rate = self.bytes_per_second
        return (self.total_bytes - self.bytes) / rate if rate else None

    def __str__(self) -> str:
        done = f"{size(self.bytes)} of {size(self.total_bytes)}, {self.files} of {self.total_files} files"
        if self.waiting_for:
            done = done if self.total_files else "it looks at what is there"
            return f"waiting {self.seconds:.0f} s for {self.waiting_for}: {done}"
        left = self.seconds_left
        ends = "" if left is None else f", {size(self.bytes_per_second)}/s, {left:.0f} s left"
        return f"copying data: {done}{ends}"


Report = Callable[[Progress], None]
"""Called about once a second, and at the end. What it raises ends the staging."""


class EndedError(Exception):
    """The copy was given up: by an error elsewhere, or by the caller to which its progress is reported."""


class Meter:
    """Counts what has been copied; any thread may add. Once it is `ended`, `beat` raises EndedError."""

    def __init__(self, *, total_files: int, total_bytes: int) -> None:
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._totals = (total_files, total_bytes)
        self._files = self._bytes = self._arriving = self._beats = 0
        self.ended = threading.Event()

    def add(self, *, files: int = 0, bytes: int = 0) -> None:  # noqa: A002 - what it counts
        with self._lock:
            self._files += files
            self._bytes += bytes

    def beat(self) -> None:
        """Say that a chunk was read; raises EndedError if nobody needs it any more."""
        if self.ended.is_set():
            raise EndedError
        self._beats += 1  # without the lock: it only has to move

    def arriving(self, bytes: int) -> None:  # noqa: A002 - what it counts
        """Say how much of what has not been added yet is here."""
        self._arriving = bytes

    def read(self) -> Progress:
        with self._lock:
            files, copied = self._files, self._bytes + self._arriving
        return Progress(
            files=files,
            bytes=min(copied, max(self._bytes, self._totals[1])),
            total_files=self._totals[0],
            total_bytes=self._totals[1],
            seconds=time.monotonic() - self._started,
            beats=self._beats,
        )
