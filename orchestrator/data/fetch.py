"""Fetcher: brings the objects that no path of the manifest holds, from a DVC remote or a bucket.

The seam between the sources, which know where bytes are, and the store, which decides whether they are right.
The store takes an object from the paths of its entry (`Entry.sources`, absolute; there may be none) and asks the
fetcher, in one call, for all that had no right copy there. What arrives is hashed by the store before it gets its
name: a fetcher cannot bring wrong bytes into a view, and need not check them.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from orchestrator.data.manifest import Entry

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a disk, or of a quota, that is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """What became of one object: the file with its bytes, which the store may move away; or why there is none."""

    entry: Entry
    path: Path | None = None
    problem: str = ""


class Fetcher(Protocol):
    """A place that objects are fetched from; `name` is how messages call it: `the remote 's3' (s3://bucket/dvc)`."""

    @property
    def name(self) -> str: ...

    def fetch(self, entries: Sequence[Entry], folder: Path, stop: threading.Event) -> Iterator[Arrival]:
        """Yield each entry once, as soon as its file lies whole in `folder`, or cannot be had.

        `folder` is empty, private, and on the disk of the store; what is left in it is removed by the caller. Bytes
        are written there as they come: that is how progress is seen. The implementation bounds its own concurrency.
        Closing the generator must end the transfers, and so must `stop`, within about a second: it may be set by
        another thread than the one that waits for the next arrival. What was not fetched then need not be yielded.
        Raises nothing for a single object; an OSError of `folder`'s disk passes through.
        """
        ...
