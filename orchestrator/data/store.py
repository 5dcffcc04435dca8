"""The store: files by their content on a node's scratch, and views of them.

    objects/                                        see objects.py
    views/<digest>/                                 exactly a manifest's files, hard links to objects
    views/<digest>.json                             the view is complete; written after it

Everything is complete before it gets its name, in one system call, so that any number of
processes can stage at the same time without a lock; two that stage the same do some work twice. A
view is never changed; what wants to write next to its data must write elsewhere. Permission bits are
not kept: all files are 0444.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.data.checksum import checksum_of
from orchestrator.data.manifest import Entry, Manifest
from orchestrator.data.objects import NO_LINK, READ_ONLY, Link, Objects, Report, regular_size
from orchestrator.data.publish import publish, temporary_beside
from orchestrator.errors import DataError

log = logging.getLogger(__name__)

VERSION = 1
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A data version on this node: its folder, its size, and what it took to get it there."""

    view: Path
    files: int
    bytes: int
    copied_files: int
    copied_bytes: int
    hit: bool
    seconds: float


class Store:
    """The store under `root`, a folder of the user's own (see scratch_dir).

    `threads` bounds the copies at the same time; `link` makes a hard link.
    """

    def __init__(self, root: Path, *, threads: int = 8, link: Link = os.link) -> None:
        self.root = root
        self._threads, self._link_file = threads, link
        self._objects = Objects(root / "objects", threads=threads, link=link)

    def view(self, digest: str) -> Path:
        return self.root / "views" / digest

    def stage(self, manifest: Manifest, *, report: Report | None = None) -> Staged:
        """Return the manifest's view, after copying what the store does not have.

        Raises DataError if no source of a file has the right bytes, or the disk is full.
        """
        started = time.monotonic()
        missing: list[Entry] = []
        hit = self._complete(manifest.digest)
        if not hit:
            with self._explained():
                missing = self._objects.missing(manifest)
                self._check_space(missing)
                self._objects.copy(missing, repair=manifest.repair, report=report)
                self._publish(manifest)
        return Staged(
            view=self.view(manifest.digest),
            files=manifest.files,
            bytes=manifest.bytes,
            copied_files=len(missing),
            copied_bytes=sum(entry.size for entry in missing),
            hit=hit,
            seconds=time.monotonic() - started,
        )

    def verify(self, manifest: Manifest) -> list[str]:
        """Read the whole view; return what is wrong with it, a line per file."""
        view = self.view(manifest.digest)
        with ThreadPoolExecutor(self._threads) as pool:
            problems = list(pool.map(lambda entry: _problem(view, entry), manifest.entries))
        known = {entry.path for entry in manifest.entries}
        extra = [f"{path!r}: does not belong to the version" for path in _files_below(view) if path not in known]
        return [problem for problem in problems if problem] + sorted(extra)

    # --- what is there ----------------------------------------------------------------------------------

    def _marker(self, digest: str) -> Path:
        return self.root / "views" / f"{digest}.json"

    def _complete(self, digest: str) -> bool:
        try:
            marker = json.loads(self._marker(digest).read_bytes())
            return marker == {"version": VERSION, "digest": digest} and self.view(digest).is_dir()
        except (OSError, ValueError):
            return False

    def _check_space(self, missing: Sequence[Entry]) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        disk = os.statvfs(self.root)
        needed, free = sum(entry.size for entry in missing), disk.f_bavail * disk.f_frsize
        if needed > free:
            raise self._no_room(f"{_gb(needed)} are to be copied, {_gb(free)} are free")
        if disk.f_files and len(missing) > disk.f_favail:  # 0 where a filesystem has no fixed number
            raise self._no_room(f"{len(missing)} files are to be copied, {disk.f_favail} inodes are free")

    def _no_room(self, why: str) -> DataError:
        fix = f"remove old versions under {self.root}, or set the site's scratch folder to a larger disk"
        return DataError(f"no room on scratch {self.root}", why=why, fix=fix)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the operating system says of scratch into an error that names it."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise self._no_room(f"{error.strerror} while copying") from error
            fix = "make scratch writable, or set the site's scratch folder to another one"
            raise DataError(f"scratch {self.root} cannot be used", why=str(error), fix=fix) from error

    # --- views ------------------------------------------------------------------------------------------

    def _publish(self, manifest: Manifest) -> None:
        view = self.view(manifest.digest)
        view.parent.mkdir(parents=True, exist_ok=True)
        built = temporary_beside(view)
        try:
            self._build(built, manifest)
            self._place(built, view, manifest)
        finally:
            shutil.rmtree(built, ignore_errors=True)
        marker = {"version": VERSION, "digest": manifest.digest}
        publish(self._marker(manifest.digest), json.dumps(marker).encode())

    def _build(self, built: Path, manifest: Manifest) -> None:
        built.mkdir()
        for folder in sorted({(built / entry.path).parent for entry in manifest.entries}):
            folder.mkdir(parents=True, exist_ok=True)
        for entry in manifest.entries:
            self._link(self._objects.path(entry), built / entry.path)

    def _link(self, source: Path, target: Path) -> None:
        try:
            self._link_file(source, target)
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            shutil.copyfile(source, target)
            target.chmod(READ_ONLY)

    def _place(self, built: Path, view: Path, manifest: Manifest) -> None:
        """Rename the view to its name, unless another process was faster with the same files."""
        while True:
            try:
                built.rename(view)
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
            else:
                return
            if _same_sizes(built, view, manifest):
                return
            log.warning("%s was incomplete (did something clean up scratch?); replacing it", view)
            self._retire(view)

    def _retire(self, view: Path) -> None:
        """Move a broken view out of the way, then remove it."""
        broken = temporary_beside(view)
        try:
            view.rename(broken)
        except FileNotFoundError:
            return  # another process did
        shutil.rmtree(broken, ignore_errors=True)


def _problem(view: Path, entry: Entry) -> str | None:
    path = view / entry.path
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return f"{entry.path!r}: is not a regular file"
        found = checksum_of(path, entry.algorithm)
    except OSError as error:
        return f"{entry.path!r}: {error.strerror}"
    if found == entry.hash:
        return None
    return f"{entry.path!r}: has {found} ({regular_size(path)} bytes), not {entry.hash} ({entry.size} bytes)"


def _files_below(view: Path) -> Iterator[str]:
    for folder, folders, files in os.walk(view):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in files + links:
            yield Path(folder, name).relative_to(view).as_posix()


def _same_sizes(built: Path, view: Path, manifest: Manifest) -> bool:
    return all(regular_size(built / entry.path) == regular_size(view / entry.path) for entry in manifest.entries)


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
