"""Timings, taken in turns so that both sides see the same machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

Seconds = float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: what was measured, in seconds, and what stands beside it.

    `budget` is in seconds; None where the design names none for what is measured here.
    """

    what: str
    measured: Sequence[Seconds]
    budget: Seconds | None = None
    peer: str = ""
    peer_measured: Sequence[Seconds] = ()

    @property
    def ratio(self) -> float | None:
        """How many times as long the peer takes."""
        return median(self.peer_measured) / median(self.measured) if self.peer_measured else None

    @property
    def over(self) -> bool:
        return self.budget is not None and median(self.measured) > self.budget


def in_turns(
    name: str, rounds: int, sides: Mapping[str, Callable[[], Seconds]], *, warm_up: bool = True
) -> dict[str, list[Seconds]]:
    """Return what each side measured: A B A B ..., after one round that is not counted.

    A side measures itself, so that what it prepares is not counted either.
    """
    found: dict[str, list[Seconds]] = {side: [] for side in sides}
    for number in range(0 if warm_up else 1, rounds + 1):
        say(f"{name}: {f'round {number} of {rounds}' if number else 'warming up'}")
        for side, measure in sides.items():
            seconds = measure()
            if number:
                found[side].append(seconds)
    return found


def timed(act: Callable[[], object]) -> Seconds:
    """Return how long a call takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def say(text: str) -> None:
    """Tell of progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
