"""Progress: how far a copy is, counted by many threads and told by one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the copying is. The totals are what this copy has to bring; `waiting_for` is who copies, if not we."""

    files: int
    bytes: int
    total_files: int
    total_bytes: int
    seconds: float
    waiting_for: str = ""

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
            return f"waiting {self.seconds:.0f} s for {self.waiting_for}: {done}"
        left = self.seconds_left
        ends = "" if left is None else f", {size(self.bytes_per_second)}/s, {left:.0f} s left"
        return f"copying data: {done}{ends}"


Report = Callable[[Progress], None]
"""Called about once a second, and at the end. What it raises ends the staging."""


def size(number: float) -> str:
    """Return a number of bytes in the unit that fits."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(number) < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


class Meter:
    """Counts what has been copied; any thread may add."""

    def __init__(self, *, total_files: int, total_bytes: int) -> None:
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._totals = (total_files, total_bytes)
        self._files = self._bytes = 0

    def add(self, *, files: int = 0, bytes: int = 0) -> None:  # noqa: A002 - what it counts
        with self._lock:
            self._files += files
            self._bytes += bytes

    def read(self) -> Progress:
        with self._lock:
            files, copied = self._files, self._bytes
        return Progress(
            files=files, bytes=copied, total_files=self._totals[0], total_bytes=self._totals[1],
            seconds=time.monotonic() - self._started,
        )  # fmt: skip
