"""Many files, some at a time: a network filesystem answers each call slowly, but many at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_AT_ONCE = 16
"""At 1 ms per operation more gain nothing, and on a local disk 16 cost nothing (bench/launch.py)."""

Item = TypeVar("Item")


def in_shares(act: Callable[[Sequence[Item]], object], items: Sequence[Item], *, least: int) -> None:
    """Do something to all items, in threads: each gets a share, of `least` items or more. Raises what `act` does."""
    size = max(least, -(-len(items) // _AT_ONCE))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for _ in pool.map(act, [items[at : at + size] for at in range(0, len(items), size)]):
            pass
