"""Git trees without git: the entries of an index or a tree, and the hash that git gives the tree.

Computed here because `git write-tree` changes the times of objects that are already in the user's
repository, and in a partial clone may fetch missing ones over the network.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

FILE, EXECUTABLE, LINK, GITLINK = "100644", "100755", "120000", "160000"
_FOLDER = "40000"


class Entry(NamedTuple):
    """One file, link or submodule, with its octal mode and the hexadecimal name of its object."""

    mode: str
    object: str
    path: str


def digest(algorithm: str, content: bytes) -> bytes:
    """Hash as git does, for names and not for security, so that SHA-1 also works on FIPS machines."""
    return hashlib.new(algorithm, content, usedforsecurity=False).digest()


def tree_hash(entries: Iterable[Entry], algorithm: str) -> str:
    """Return the hash of the tree of these entries, as `git write-tree` would print it."""
    root: dict[str, Any] = {}
    for entry in entries:
        *folders, name = entry.path.split("/")
        node = root
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = entry
    return _name(root, algorithm).hex()


def _name(node: Mapping[str, Any], algorithm: str) -> bytes:
    """Hash a folder: `mode name NUL hash` for each child, sorted as if folders ended in a slash."""
    rows = sorted(_row(name, child, algorithm) for name, child in node.items())
    body = b"".join(record for _, record in rows)
    return digest(algorithm, b"tree %d\0%b" % (len(body), body))


def _row(name: str, child: Entry | Mapping[str, object], algorithm: str) -> tuple[bytes, bytes]:
    raw = os.fsencode(name)
    if isinstance(child, Entry):
        return raw, b"%b %b\0%b" % (child.mode.encode(), raw, bytes.fromhex(child.object))
    return raw + b"/", b"%b %b\0%b" % (_FOLDER.encode(), raw, _name(child, algorithm))
