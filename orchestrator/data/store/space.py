"""Space: free bytes and inodes for what is to be copied, made by removing versions that nobody holds, oldest first.

Making space needs none: with no inode left on the disk, versions can still be removed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from orchestrator.data.manifest import Entry
from orchestrator.data.options import Staging
from orchestrator.data.store.copy_claims import CopyClaims, outstanding_bytes
from orchestrator.data.store.holder import Holder
from orchestrator.data.store.objects import Objects
from orchestrator.data.store.versions import UNREADABLE, File, Version, remove_tree, versions
from orchestrator.errors import DataError
from orchestrator.system.units import size

log = logging.getLogger(__name__)

_BLOCK = 4096
"""The least that the usual filesystems give to a file that is not empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a copy is going to take of the disk: `on_disk` is what filesystems give to as many bytes, in blocks."""

    bytes: int
    inodes: int
    on_disk: int = 0

    @classmethod
    def of(cls, entries: Sequence[Entry], *, folders: int) -> Self:
        """Return what these files take, each for itself, in this number of new folders."""
        return cls(
            bytes=sum(entry.size for entry in entries),
            inodes=len(entries) + folders,
            on_disk=sum(-(-entry.size // _BLOCK) * _BLOCK for entry in entries),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """What is free on a disk; None: it has no fixed number of inodes."""

    bytes: int
    inodes: int | None


def disk_of(path: Path) -> Disk:
    found = os.statvfs(path)
    return Disk(bytes=found.f_bavail * found.f_frsize, inodes=found.f_favail if found.f_files else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The space of one store. `disk` says what is free on the disk that it is on."""

    root: Path
    objects: Objects
    claims: CopyClaims
    limits: Staging
    disk: Callable[[Path], Disk] = disk_of

    def make(self, need: Need, holder: Holder) -> None:
        """Remove what nobody holds until the need fits, with what others are copying; raises DataError if it cannot."""
        reserved = outstanding_bytes(self.claims, holder)
        self._remove_while(replace(need, bytes=need.bytes + reserved, on_disk=need.on_disk + reserved), holder)
        if shortage := self._shortage(need):
            raise self.none(shortage)

    def trim(self, holder: Holder) -> None:
        """Remove what nobody holds as long as there is more than the limits allow."""
        self._remove_while(Need(bytes=1, inodes=0, on_disk=1), holder)

    def evict_all(self, holder: Holder) -> bool:
        """Remove all that nobody holds; returns whether there was any version."""
        evicted = [self.evict(version) for version in self._oldest_first()]
        self.remove_unlinked(holder)
        return any(evicted)

    def evict_oldest(self, *, but: str) -> bool:
        """Remove the version that was used longest ago and nobody holds, not `but`; returns whether there was one."""
        return any(self.evict(version) for version in self._oldest_first() if version.digest != but)

    def _remove_while(self, need: Need, holder: Holder) -> None:
        """Remove versions, then objects of none, as long as there is no space for the need."""
        used = self._used()  # a walk over all objects: once, not for each version that goes
        for version in self._oldest_first():
            if not self._shortage(need, used):
                return
            used -= self._evict(version)[1]
        if self._shortage(need, used):
            self.remove_unlinked(holder)

    def _used(self) -> int:
        """Return the bytes of all objects, where they are limited."""
        return 0 if self.limits.max_bytes is None else self.objects.bytes()

    def _oldest_first(self) -> list[Version]:
        """Return all versions, those first that nobody may take any more."""
        found = versions(self.root / "versions")
        return sorted(found, key=lambda version: (version.facts() is not None, version.used_ns))

    def _shortage(self, need: Need, used: int | None = None) -> str:
        """Return what is missing for a need, in words. `used` are the bytes of all objects, if they are known."""
        free, limits = self.disk(self.root), self.limits
        if need.on_disk and need.on_disk > free.bytes - limits.keep_free_bytes:
            kept = f", of which {size(limits.keep_free_bytes)} stay free" if limits.keep_free_bytes else ""
            return f"{size(need.on_disk)} are to be copied, {size(free.bytes)} are free{kept}"
        if free.inodes is not None and need.inodes > free.inodes:
            return f"{need.inodes} files and folders are to be made, {free.inodes} inodes are free"
        if need.bytes and limits.max_bytes is not None:
            used = self._used() if used is None else used
            if used + need.bytes > limits.max_bytes:
                top = size(limits.max_bytes)
                return f"{size(need.bytes)} are to be copied, {size(used)} of at most {top} (max_gb) are there"
        return ""

    def evict(self, version: Version) -> bool:
        """Remove a version unless somebody holds it; returns whether it is gone.

        Its listing goes last, and with it the last trace: if this is cut short, the next one finds its objects.
        """
        return self._evict(version)[0]

    def _evict(self, version: Version) -> tuple[bool, int]:
        """Do that, and return with it the bytes of the objects that are gone."""
        if not version.revoke(self.claims.ask):
            return False, 0
        hashes = {file.hash for file in _files(version)}
        remove_tree(version.view)
        freed = sum([self.objects.remove(checksum) for checksum in hashes])
        remove_tree(version.path)
        if gone := not version.path.exists():
            log.info("removed data version %s from %s", version.digest[:12], self.root)
        return gone, freed

    def remove_unlinked(self, holder: Holder | None = None) -> None:
        """Remove objects that are in no view. A live copier's may be among them: then let it be.

        One may begin at this moment: it copies again what is gone, and what it has not finished yet stays.
        """
        if not self.claims.others(holder):
            self.objects.remove_unlinked(self.claims.at_work)

    def full(self, why: str) -> DataError:
        """Return the error for a disk that was full before it was expected."""
        free = self.disk(self.root)
        inodes = "" if free.inodes is None else f" and {free.inodes} inodes"
        return self.none(f"{why} while copying; {size(free.bytes)}{inodes} are free")

    def none(self, why: str) -> DataError:
        held = [f"{v.digest[:12]} by {h}" for v in versions(self.root / "versions") for h in v.holders()]
        holders = f"; held are {', '.join(held)}" if held else ""
        return DataError(
            f"not enough space on scratch {self.root}",
            why=f"{why}{holders}",
            fix="set cluster.scratch to a larger disk, or remove other files (orch data status shows ours)",
        )


def _files(version: Version) -> list[File]:
    try:
        return list(version.files())
    except UNREADABLE:
        return []  # torn by a crash: its objects are unlinked ones, and go as such
