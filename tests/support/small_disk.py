"""A small disk for tests that fill it: a real filesystem of a few megabytes, in a separate mount."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

MB = 10**6
_BYTES = 16 * 2**20
_INODES = 128


@dataclass(frozen=True)
class SmallDisk:
    """A disk that other programs use, too, and can fill to any degree."""

    path: Path

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    @property
    def free_inodes(self) -> int:
        return os.statvfs(self.path).f_favail

    def leave_bytes(self, left: int) -> None:
        """Let another program's file take all but this much space."""
        with (self.path / f"bytes of others {self.free_inodes}").open("wb") as file:
            while (more := min(self.free_bytes - left, MB)) > 0:
                file.write(bytes(more))
                file.flush()

    def leave_inodes(self, left: int) -> None:
        """Let another program's empty files take all but this many inodes."""
        folder = self.path / "inodes of others"
        folder.mkdir(exist_ok=True)
        for number in count():
            if self.free_inodes <= left:
                return
            (folder / f"{number} of {self.free_inodes}").touch()

    def give_back(self) -> None:
        """Let the other programs remove their files."""
        for path in self.path.glob("* of others*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _mount(kind: str, folder: Path) -> list[str]:
    """Return the command that mounts a disk of a kind."""
    if kind == "tmpfs":
        return ["mount", "-t", "tmpfs", "-o", f"size={_BYTES},nr_inodes={_INODES}", "none", str(folder)]
    image = folder.with_name("image")
    with image.open("wb") as file:
        file.truncate(_BYTES)
    _run(["mkfs.ext4", "-q", "-N", str(_INODES), "-O", "^has_journal", "-m", "0", str(image)])
    return ["mount", "-o", "loop", str(image), str(folder)]


def _run(argv: list[str]) -> None:
    if shutil.which(argv[0], path="/sbin:/usr/sbin:/bin:/usr/bin") is None:
        pytest.skip(f"no small disk here: no program {argv[0]}")
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no small disk here: {done.stderr.strip() or argv}")


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    """Mount a disk of 16 MiB with space for about a hundred files and folders; only root can."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    _run(_mount(request.param, folder))
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
