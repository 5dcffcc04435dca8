"""Threads that share the items of a list: a network filesystem answers each call slowly, but many at once.

The next free thread takes the next item, and no item costs a future of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_AT_ONCE = 16
"""At 1 ms per operation more gain nothing, and on a local disk 16 cost nothing (bench/launch.py)."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(act: Callable[[Item], Result], items: Sequence[Item], *, threads: int) -> list[Result]:
    """Return what `act` makes of each item, in their order. After an error, which is raised, no more are begun."""
    left = deque(range(len(items)))
    found: dict[int, Result] = {}

    def work() -> None:
        try:
            for index in _taken(left):
                found[index] = act(items[index])
        finally:
            left.clear()

    with ThreadPoolExecutor(threads) as pool:
        workers = [pool.submit(work) for _ in range(min(threads, len(items)))]
    for worker in workers:
        worker.result()
    return [found[index] for index in range(len(items))]


def in_shares(act: Callable[[Sequence[Item]], object], items: Sequence[Item], *, least: int) -> None:
    """Do something to all items, in threads: each gets a share, of `least` items or more. Raises what `act` does."""
    share = max(least, -(-len(items) // _AT_ONCE))
    map_in_threads(act, [items[at : at + share] for at in range(0, len(items), share)], threads=_AT_ONCE)


def _taken(left: deque[int]) -> Iterator[int]:
    while True:
        try:
            yield left.popleft()
        except IndexError:
            return
