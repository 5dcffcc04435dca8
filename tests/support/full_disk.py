"""A real disk that is full: a small tmpfs, filled up to a few pages."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.errors import StateError

PAGE_BYTES = 4096
"""A small file takes one page, a folder none."""


class Disk:
    """A mounted disk, and the file that fills it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._filler = folder, folder / "filler"

    def leave(self, pages: int) -> None:
        """Fill it, except for some pages."""
        with self._filler.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(b"\xff" * PAGE_BYTES)
            except OSError:
                file.truncate(max(0, file.tell() - pages * PAGE_BYTES))

    def free(self) -> None:
        self._filler.unlink()


def refusal(launch: Callable[[], object]) -> StateError | None:
    """Return the error if something was refused for lack of space; None otherwise."""
    try:
        launch()
    except StateError as error:
        return error
    return None


@contextmanager
def small_disk(folder: Path, megabytes: int = 2) -> Iterator[Disk]:
    """Mount a disk for this test; skip, with the reason, if mounting is not possible."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "small", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no small disk here: a tmpfs cannot be mounted, which takes root ({error})")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)
