"""Alternating timings, so that both sides see the machine in the same state."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

Seconds = float
Measured = TypeVar("Measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The cost of a command: its wall-clock time, and the CPU time of it and its children."""

    seconds: Seconds
    cpu_seconds: Seconds

    def __add__(self, other: Cost) -> Cost:
        return Cost(seconds=self.seconds + other.seconds, cpu_seconds=self.cpu_seconds + other.cpu_seconds)

    def __sub__(self, other: Cost) -> Cost:
        return self + other * -1

    def __mul__(self, times: float) -> Cost:
        return Cost(seconds=self.seconds * times, cpu_seconds=self.cpu_seconds * times)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: the measurements, in seconds or `unit`, and those of a peer.

    A budget is a ratio of the medians, so that it holds on slow and fast machines alike: the peer has to take at least
    `at_least` times as long, or `orch` at most `at_most` times. `limit` is a budget that was itself measured, in the
    same unit. All are None if the design sets no budget. `cpu` are the CPU seconds of the same measurements, if taken,
    and `peak` their peak memory in bytes.
    """

    what: str
    measured: Sequence[Seconds]
    at_least: float | None = None
    at_most: float | None = None
    limit: float | None = None
    peer: str = ""
    peer_measured: Sequence[Seconds] = ()
    cpu: Sequence[Seconds] = ()
    peer_cpu: Sequence[Seconds] = ()
    unit: str = "s"
    peak: Sequence[int] = ()
    peer_peak: Sequence[int] = ()

    @property
    def ratio(self) -> float | None:
        """The peer's median time divided by that of `orch`."""
        return median(self.peer_measured) / median(self.measured) if self.peer_measured else None

    @property
    def kept(self) -> bool | None:
        """Whether the budget was kept; None if there is none. Raises ValueError for a ratio without a peer."""
        if self.limit is not None:
            return median(self.measured) <= self.limit
        if self.at_least is None and self.at_most is None:
            return None
        if self.ratio is None:
            raise ValueError(f"{self.what}: no peer was measured")
        return self.ratio >= self.at_least if self.at_least is not None else 1 / self.ratio <= (self.at_most or 0)


def in_turns(
    name: str, rounds: int, sides: Mapping[str, Callable[[], Measured]], *, warm_up: bool = True
) -> dict[str, list[Measured]]:
    """Return the measurements of each side, taken in the order A B A B ..., after a warm-up round.

    A side measures itself, so that its preparations are not counted.
    """
    found: dict[str, list[Measured]] = {side: [] for side in sides}
    for number in range(0 if warm_up else 1, rounds + 1):
        say(f"{name}: {f'round {number} of {rounds}' if number else 'warming up'}")
        for side, measure in sides.items():
            one = measure()
            if number:
                found[side].append(one)
    return found


def timed(act: Callable[[], object]) -> Seconds:
    """Return the seconds that a call takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def say(text: str) -> None:
    """Report progress on standard error."""
    print(text, file=sys.stderr, flush=True)
