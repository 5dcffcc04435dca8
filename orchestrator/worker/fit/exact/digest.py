"""A short digest of a batch: a resumed run fetches its last batch again, and notices that the data is another one.

It is made of each batch, so it must cost little: of a large tensor it reads some bytes only, spread over all of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch

_MOST_BYTES = 1024


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def digest(batch: object) -> str:
    """Return the digest of a batch: of nested lists and mappings of tensors, arrays, numbers and texts."""
    found = hashlib.blake2b(digest_size=16)
    _add(found, batch)
    return found.hexdigest()


def _add(found: _Hash, node: object) -> None:
    if isinstance(node, torch.Tensor):
        found.update(f"{node.dtype}{tuple(node.shape)}".encode())
        if node.device.type == "cpu" and node.layout is torch.strided:
            plain = node.detach().contiguous().view(-1)
            _add_bytes(found, plain.view(torch.uint8).numpy() if plain.numel() else np.empty(0, np.uint8))
    elif isinstance(node, np.ndarray):
        found.update(f"{node.dtype}{node.shape}".encode())
        if node.dtype != object:
            _add_bytes(found, np.ascontiguousarray(node).reshape(-1).view(np.uint8))
    elif isinstance(node, Mapping):
        for key, value in node.items():
            found.update(f"{key!r}:".encode())
            _add(found, value)
    elif isinstance(node, list | tuple):
        found.update(f"{len(node)}[".encode())
        for value in node:
            _add(found, value)
    elif node is None or isinstance(node, bool | int | float | str | bytes):
        found.update(f"{node!r},".encode())
    else:
        found.update(type(node).__qualname__.encode())


def _add_bytes(found: _Hash, content: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> None:
    found.update(content[:: max(1, len(content) // _MOST_BYTES)].tobytes())
