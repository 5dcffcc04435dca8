"""Threads that share the items of a list: the next free one takes the next item, and none costs a future of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

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


def _taken(left: deque[int]) -> Iterator[int]:
    while True:
        try:
            yield left.popleft()
        except IndexError:
            return
