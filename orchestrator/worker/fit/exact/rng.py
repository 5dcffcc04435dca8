"""Random numbers: seeds derived from a position, swapped global generators, generators in users' objects, states."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.random import get_bit_generator, set_bit_generator  # type: ignore[attr-defined]  # not in its __all__

_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
_LEAVES = (str, bytes, int, float, torch.Tensor, np.ndarray, type(None), type)
_MOST_OBJECTS, _MOST_CHILDREN = 10_000, 256


def derived(*parts: object) -> int:
    """Return a 63-bit seed that depends only on the parts."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little") >> 1


def seed_globals(number: int) -> None:
    """Seed the global generators on the CPU, with which data is read and augmented."""
    torch.default_generator.manual_seed(number)
    np.random.seed(number & 0xFFFFFFFF)
    random.seed(number)


def reseed(generators: Sequence[Generator], number: int) -> None:
    """Seed generators, each with a seed of its own that is derived from a number."""
    for index, one in enumerate(generators):
        seed = derived(number, index)
        if isinstance(one, torch.Generator):
            one.manual_seed(seed)
        elif isinstance(one, np.random.Generator):
            one.bit_generator.state = type(one.bit_generator)(seed).state
        elif isinstance(one, np.random.RandomState):
            one.seed(seed & 0xFFFFFFFF)
        else:
            one.seed(seed)


def held_by(root: object, depth: int = 5) -> list[Generator]:
    """Return the generators found in an object's attributes: those of a dataset and its transforms, for example."""
    found: list[Generator] = []
    seen: set[int] = set()
    queue: deque[tuple[object, int]] = deque([(root, 0)])
    while queue and len(seen) < _MOST_OBJECTS:
        one, level = queue.popleft()
        if id(one) in seen or level > depth:
            continue
        seen.add(id(one))
        if isinstance(one, _GENERATORS):
            found.append(one)
        else:
            queue.extend((child, level + 1) for child in _children(one))
    return found


def _children(one: object) -> list[object]:
    if isinstance(one, _LEAVES):
        return []
    if isinstance(one, dict):
        return list(one.values())[:_MOST_CHILDREN]
    if isinstance(one, list | tuple):
        return list(one[:_MOST_CHILDREN])
    return list(vars(one).values()) if hasattr(one, "__dict__") else []


class Numbers:
    """A separate set of global random number generators, used instead of the current ones for a while.

    NumPy's generator is swapped by reference: to swap its state would take 125 us instead of 2.
    """

    def __init__(self, seed: int) -> None:
        outside = self._current()
        set_bit_generator(np.random.MT19937(0))
        seed_globals(seed)
        self._held = self._current()
        self._put(outside)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Use these generators in the body, then restore those that were in use before."""
        outside = self._current()
        self._put(self._held)
        try:
            yield
        finally:
            self._held = self._current()
            self._put(outside)

    @staticmethod
    def _current() -> tuple[Any, torch.Tensor, Any]:
        return random.getstate(), torch.get_rng_state(), get_bit_generator()

    @staticmethod
    def _put(state: tuple[Any, torch.Tensor, Any]) -> None:
        random.setstate(state[0])
        torch.set_rng_state(state[1])
        set_bit_generator(state[2])


def saved(device: torch.device) -> dict[str, Any]:
    """Return the state of all global generators, including that of the rank's own device."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore(state: dict[str, Any], device: torch.device) -> None:
    """Restore a state that `saved` has returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
