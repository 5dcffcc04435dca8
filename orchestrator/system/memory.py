"""How much memory this process may still take: of the machine, and of the control groups that a job is held in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")


def free_bytes(groups: Path = Path("/proc/self/cgroup"), root: Path = _CGROUPS) -> int:
    """Return the least of what the machine has free, and what each control group above this process leaves.

    Pages of files that a group has cached count as free: the kernel gives them up.
    """
    return min([int(psutil.virtual_memory().available), *_left(groups, root)])


def _left(groups: Path, root: Path) -> Iterator[int]:
    try:
        lines = groups.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, kinds, path = line.split(":", 2)
        if not kinds:  # version 2
            yield from _above(root, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _above(root / "memory", path, *names)


def _above(root: Path, path: str, limit: str, used: str, cached: str) -> Iterator[int]:
    folder = root / path.lstrip("/")
    for group in (folder, *folder.parents):
        if not group.is_relative_to(root):
            return
        try:
            most = int((group / limit).read_text())
            taken = int((group / used).read_text()) - _entry(group / "memory.stat", cached)
        except (OSError, ValueError):  # the root group, "max", or no such group in this mount
            continue
        yield max(0, most - taken)


def _entry(stat: Path, name: str) -> int:
    found = (line.split() for line in stat.read_text().splitlines())
    return next((int(value) for key, value in found if key == name), 0)
