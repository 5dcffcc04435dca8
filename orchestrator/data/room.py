"""Room: free bytes and inodes for what is to be copied, made by removing versions that nobody holds, oldest first."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orchestrator.data.copiers import Copiers, outstanding_bytes
from orchestrator.data.holder import Holder
from orchestrator.data.objects import Objects
from orchestrator.data.progress import size
from orchestrator.data.staging import Staging
from orchestrator.data.versions import File, Version, remove_tree, versions
from orchestrator.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a copy is going to take of the disk."""

    bytes: int
    inodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """What is free on a disk; None: it has no fixed number of inodes."""

    bytes: int
    inodes: int | None


def disk_of(path: Path) -> Disk:
    found = os.statvfs(path)
    return Disk(bytes=found.f_bavail * found.f_frsize, inodes=found.f_favail if found.f_files else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The room of one store. `disk` says what is free on the disk that it is on."""

    root: Path
    objects: Objects
    copiers: Copiers
    limits: Staging
    disk: Callable[[Path], Disk] = disk_of

    def make(self, need: Need, holder: Holder) -> None:
        """Remove what nobody holds until the need fits, with what others are copying; raises DataError if it cannot."""
        reserved = outstanding_bytes(self.copiers, holder)
        self._remove_while(Need(bytes=need.bytes + reserved, inodes=need.inodes), holder)
        if lack := self._lack(need):
            raise self.none(lack)

    def trim(self, holder: Holder) -> None:
        """Remove what nobody holds as long as there is more than the limits allow."""
        self._remove_while(Need(bytes=1, inodes=0), holder)

    def clear(self, holder: Holder) -> bool:
        """Remove all that nobody holds; returns whether there was any version."""
        evicted = [self.evict(version, holder) for version in self._oldest_first()]
        self._remove_unlinked(holder)
        return any(evicted)

    def _remove_while(self, need: Need, holder: Holder) -> None:
        """Remove versions, then objects of none, as long as there is no room for the need."""
        for version in self._oldest_first():
            if not self._lack(need):
                return
            self.evict(version, holder)
        if self._lack(need):
            self._remove_unlinked(holder)

    def _oldest_first(self) -> list[Version]:
        """Return all versions, those first that nobody may take any more."""
        found = versions(self.root / "versions")
        return sorted(found, key=lambda version: (version.facts() is not None, version.used_ns))

    def _lack(self, need: Need) -> str:
        """Return what is missing for a need, in words."""
        free, limits = self.disk(self.root), self.limits
        if need.bytes and need.bytes > free.bytes - limits.keep_free_bytes:
            kept = f", of which {size(limits.keep_free_bytes)} stay free" if limits.keep_free_bytes else ""
            return f"{size(need.bytes)} are to be copied, {size(free.bytes)} are free{kept}"
        if free.inodes is not None and need.inodes > free.inodes:
            return f"{need.inodes} files and folders are to be made, {free.inodes} inodes are free"
        if need.bytes and limits.max_bytes is not None:
            used = self.objects.bytes()
            if used + need.bytes > limits.max_bytes:
                top = size(limits.max_bytes)
                return f"{size(need.bytes)} are to be copied, {size(used)} of at most {top} (max_gb) are there"
        return ""

    def evict(self, version: Version, holder: Holder) -> bool:
        """Remove a version unless somebody holds it; returns whether it is gone."""
        if not version.condemn(self.copiers.ask):
            return False
        hashes = {file.hash for file in _files(version)}
        trash = self.copiers.work(holder) / version.path.name
        try:
            version.path.rename(trash)
        except FileNotFoundError:
            return True  # another process was faster
        remove_tree(trash)
        for checksum in hashes:
            self.objects.remove(checksum)
        log.info("removed data version %s from %s", version.digest[:12], self.root)
        return True

    def _remove_unlinked(self, holder: Holder) -> None:
        """Remove objects that are in no view. A live copier's may be among them: then let it be."""
        if not self.copiers.others(holder):
            self.objects.remove_unlinked()

    def none(self, why: str) -> DataError:
        held = [f"{v.digest[:12]} by {h}" for v in versions(self.root / "versions") for h in v.holders()]
        told = f"; held are {', '.join(held)}" if held else ""
        return DataError(
            f"no room on scratch {self.root}", why=f"{why}{told}",
            fix="set cluster.scratch to a larger disk, or remove other files (orch data status shows ours)",
        )  # fmt: skip


def _files(version: Version) -> list[File]:
    try:
        return list(version.files())
    except (OSError, ValueError):
        return []  # torn by a crash: its objects are unlinked ones, and go as such
