"""Write a small file whole or not at all: temporary file in the same folder, then a rename."""

from __future__ import annotations

import uuid
from pathlib import Path

TEMPORARY = ".tmp-"
"""What the name of everything unfinished starts with."""


def temporary_beside(path: Path) -> Path:
    """Return a name in the same folder that no other process or host will choose."""
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")


def publish(path: Path, content: bytes) -> None:
    """Write `content` to `path`, making its folder; readers see the old file, or the new one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
