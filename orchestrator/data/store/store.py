"""The store: data versions by their content on a node's scratch, copied once and shared by all runs there.

    objects/     files by their hash: objects.py
    versions/    complete versions, and who holds them: versions.py
    copiers/     who copies what, and work/, what they have not finished: copy_claims.py

Everything is complete before it gets its name, in one system call, so that any number of processes can stage, remove
and be killed at the same time. Nothing relies on flock: only on rename(2) and rmdir(2), and where two copy the same
after all, some work is done twice. A view is never changed; what wants to write next to its data must write elsewhere.
Permission bits and times are not kept: all files are 0444, and of one time.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from orchestrator.data.fetch import FULL, Fetcher
from orchestrator.data.manifest import Entry, Manifest
from orchestrator.data.options import Staging
from orchestrator.data.store.copy_claims import CopyClaims, Wait
from orchestrator.data.store.copying import Copy
from orchestrator.data.store.holder import Ask, Holder
from orchestrator.data.store.objects import Objects
from orchestrator.data.store.progress import Meter, Report
from orchestrator.data.store.space import Need, Space
from orchestrator.data.store.versions import UNREADABLE, Facts, File, Version, remove_tree, versions
from orchestrator.data.store.view import Link, ViewBuilder
from orchestrator.errors import DataError
from orchestrator.system.files import make_folder
from orchestrator.system.processes import boot_id
from orchestrator.system.threads import map_in_threads

log = logging.getLogger(__name__)
T = TypeVar("T")

_ROUNDS = 10
_INODES = 16
"""What a copy makes besides the files and their folders: its claim, its version's own files, and the like."""

_LOG_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A data version on this node, held for this process, and what it took to get it there.

    `waited_seconds` is the part of `seconds` in which another process copied; `primitive` is how files came into the
    view: hardlink or copy; `verified` what was read: hash (every byte, now) or marker (it was when it was copied).
    """

    version: Version
    holder: Holder
    files: int
    bytes: int
    copied_files: int = 0
    copied_bytes: int = 0
    hit: bool = True
    seconds: float = 0.0
    waited_seconds: float = 0.0
    verified: str = "marker"
    primitive: str = "hardlink"

    @property
    def view(self) -> Path:
        return self.version.view

    def release(self) -> None:
        """Hold the version no longer: it may be removed from now on."""
        self.version.release(self.holder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one call stages: the manifest, for whom, where unfinished work goes, and whom to tell."""

    manifest: Manifest
    holder: Holder
    work: Path
    report: Report | None
    fetcher: Fetcher | None


class Store:
    """The store under `root`, a folder of the user's own (see scratch_dir).

    `link` makes a hard link; `job` is the scheduler's job of this process, `ask` whether such a job still runs.
    """

    def __init__(
        self,
        root: Path,
        staging: Staging | None = None,
        *,
        link: Link = os.link,
        job: str = "",
        ask: Ask | None = None,
    ) -> None:
        self.root = root
        self._staging, self._link, self._job = staging or Staging(), link, job
        self._objects = Objects(root / "objects", boot_id())
        self._claims = CopyClaims(root, ask)
        self._space = Space(root=root, objects=self._objects, claims=self._claims, limits=self._staging)

    # --- getting a version --------------------------------------------------------------------------------

    def find(self, digest: str) -> Staged | None:
        """Return a version that is already here, held for this process; its size does not matter."""
        started, holder = time.monotonic(), Holder.current(self._job)
        with self._explained():
            for version in versions(self.root / "versions", digest):
                if self._with_space(partial(version.lease, holder), but=digest):
                    facts = self._usable(version)
                    if facts:
                        always = self._staging.verify == "always"
                        return Staged(
                            version=version,
                            holder=holder,
                            files=facts.files,
                            bytes=facts.bytes,
                            primitive=facts.primitive,
                            verified="hash" if always else "marker",
                            seconds=time.monotonic() - started,
                        )
                    version.release(holder)
        return None

    def stage(
        self,
        manifest: Manifest,
        *,
        report: Report | None = None,
        fetcher: Fetcher | None = None,
        jitter_seconds: float = 0.0,
    ) -> Staged:
        """Return the manifest's version, held for this process, after copying what the store does not have.

        Who copies is one process of the node; the others wait for it, and take over if it dies. Raises DataError if
        an object's right bytes are nowhere, or there is no space; and whatever `report` raises.
        """
        started = time.monotonic()
        wait = Wait(self._claims, manifest.digest, report)
        while True:
            waited = wait.seconds
            if staged := self.find(manifest.digest):
                return replace(staged, seconds=time.monotonic() - started, waited_seconds=waited)
            with self._explained():
                copied = self._copy_if_first(manifest, report, fetcher, jitter_seconds)
            if copied:
                return replace(copied, seconds=time.monotonic() - started, waited_seconds=waited)
            wait.refresh()

    def _usable(self, version: Version) -> Facts | None:
        """Return a leased version's facts, if it may be used; after reading all of it, if that is asked for.

        What an earlier boot left may have been torn by the crash that ended it.
        """
        facts = version.facts()
        if facts is None or facts.boot != boot_id() or not version.view.is_dir():
            return None
        return None if self._staging.verify == "always" and self.verify(version) else facts

    def _copy_if_first(
        self, manifest: Manifest, report: Report | None, fetcher: Fetcher | None, jitter_seconds: float
    ) -> Staged | None:
        """Copy a version unless another process does."""
        if self._claims.copier(manifest.digest):
            return None
        digest, holder = manifest.digest, Holder.current(self._job)
        work = self._with_space(partial(self._claims.begin, holder), but=digest)
        task = Task(manifest=manifest, holder=holder, work=work, report=report, fetcher=fetcher)
        try:
            if not self._with_space(partial(self._claims.claim, digest, holder), but=digest):
                return None
            if versions(self.root / "versions", digest) and (staged := self.find(digest)):
                return staged  # its copier gave its claim back just now
            time.sleep(random.uniform(0, jitter_seconds))  # noqa: S311 - not everybody at once, nothing more
            return self._make(task)
        finally:
            self._claims.release(digest, holder)
            remove_tree(work)

    def _with_space(self, act: Callable[[], T], *, but: str) -> T:
        """Do what needs an inode or two: while there is none, versions that nobody holds go, all `but` this one."""
        while True:
            try:
                return act()
            except OSError as error:
                if error.errno not in FULL or not self._space.evict_oldest(but=but):
                    raise

    def _make(self, task: Task) -> Staged:
        self._sweep_dead()
        manifest = task.manifest
        self._space.make(Need(bytes=0, inodes=manifest.folders + _INODES), task.holder)
        version = Version(task.work / f"{manifest.digest}-{task.holder.nonce}")
        make_folder(version.view, exist_ok=False)
        builder = ViewBuilder(view=version.view, objects=self._objects, make_link=self._link)
        copied = self._fill(builder, task)
        builder.close()
        facts = Facts(
            boot=boot_id(),
            files=len(builder.files),
            bytes=sum(file.size for file in builder.files),
            primitive=builder.primitive,
            origin=manifest.origin,
        )
        version.write(builder.files, facts)
        version.lease(task.holder)
        earlier = [each for each in self.versions() if each.digest == manifest.digest or not each.facts()]
        place = self.root / "versions" / version.path.name
        make_folder(place.parent)
        version.path.rename(place)
        for each in earlier:
            self._space.evict(each)
        return Staged(
            version=Version(place),
            holder=task.holder,
            files=facts.files,
            bytes=facts.bytes,
            hit=False,
            copied_files=len(copied),
            copied_bytes=sum(entry.size for entry in copied),
            verified="hash",
            primitive=facts.primitive,
        )

    def _fill(self, builder: ViewBuilder, task: Task) -> list[Entry]:
        """Link all of a version's files into its view; returns what had to be copied for that."""
        missing = builder.link(task.manifest.entries)
        copied = distinct = _distinct(missing)
        taken = distinct if builder.can_link() else [*task.manifest.entries, *distinct]
        folders = self._objects.folders_to_make(entry.hash for entry in distinct)
        self._space.make(Need.of(taken, folders=folders), task.holder)
        for _ in range(_ROUNDS):
            if not missing:
                return copied
            full = self._copy(_distinct(missing), task)
            missing = builder.link(missing)  # what somebody has removed since is copied again
            if full and not self._space.evict_all(task.holder):
                raise full
        raise DataError(
            f"the objects of data version {task.manifest.digest[:12]} vanish as fast as they are copied",
            why=f"something cleans up {self.root}",
            fix="set cluster.scratch to a folder that nothing else cleans up",
        )

    def _copy(self, missing: Sequence[Entry], task: Task) -> OSError | None:
        """Copy objects; returns the error of a disk that is full before all have come."""
        meter = Meter(total_files=len(missing), total_bytes=_bytes(missing))
        copy = Copy(
            objects=self._objects,
            taker=task.holder.nonce,
            work=task.work,
            threads=self._staging.threads,
            meter=meter,
            report=self._reporter(task, meter),
            repair=task.manifest.repair,
            fetcher=task.fetcher,
        )
        copy.report()
        try:
            copy.run(missing)
        except OSError as error:
            if error.errno not in FULL:
                raise
            log.warning("scratch is full (%s): removing all versions that nobody holds", error.strerror)
            return error
        return None

    def _reporter(self, task: Task, meter: Meter) -> Callable[[], None]:
        logged = [time.monotonic()]

        def report() -> None:
            progress = meter.read()
            self._claims.write_progress(task.holder, progress)
            if time.monotonic() - logged[0] >= _LOG_SECONDS:
                log.info("data version %s: %s", task.manifest.digest[:12], progress)
                logged[0] = time.monotonic()
            if task.report:
                task.report(progress)

        return report

    # --- looking after it ---------------------------------------------------------------------------------

    def versions(self) -> list[Version]:
        """Return all versions here, the one used last first."""
        return sorted(versions(self.root / "versions"), key=lambda version: -version.used_ns)

    def verify(self, version: Version) -> list[str]:
        """Read all of a version; returns what is wrong, a line per file. A damaged one is taken by nobody more."""
        try:
            files = list(version.files())
        except UNREADABLE as error:
            return self._unlisted(version, error)
        found = map_in_threads(version.damage, files, threads=self._staging.threads)
        problems = [problem for problem in found if problem] + version.unexpected_files()
        if problems:
            log.warning("data version %s on this node is damaged: %s", version.digest[:12], "; ".join(problems[:3]))
            self._discard(version, [file for file, problem in zip(files, found, strict=True) if problem])
        return problems

    def changed(self, version: Version) -> list[str]:
        """Return what was changed in a version, by sizes and times. It is then taken by nobody more."""
        try:
            problems = version.changed()
        except UNREADABLE as error:
            return self._unlisted(version, error)
        if problems:
            self._discard(version, [file for file in version.files() if not self._objects.has(file.hash)])
        return problems

    def _unlisted(self, version: Version, error: Exception) -> list[str]:
        """Say that nobody can tell any more what belongs to a version."""
        version.invalidate()
        return [f"{version.listing.name} cannot be read: {error}"]

    def collect(self, *, all_idle: bool = False) -> list[Version]:
        """Remove what dead processes left and what exceeds the limits; with `all_idle`, all that nobody holds."""
        if not self.root.exists():
            return []
        holder, before = Holder.current(self._job), self.versions()
        with self._explained():
            self._sweep()
            if all_idle:
                self._space.evict_all(holder)
            self._space.trim(holder)
        return [version for version in before if not version.path.exists()]

    def _discard(self, version: Version, damaged: Sequence[File]) -> None:
        version.invalidate()
        for file in damaged:
            self._objects.remove(file.hash, used=True)

    def _sweep_dead(self) -> None:
        for dead in self._claims.dead():
            self._objects.remove_unfinished(dead.nonce)
            remove_tree(self._claims.work(dead))

    def _sweep(self) -> None:
        """Remove what dead processes have left, and versions that nobody may take any more."""
        self._sweep_dead()
        self._claims.release_dead()
        for version in versions(self.root / "versions"):
            if version.facts() is None:
                self._space.evict(version)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the operating system says of scratch into an error that names it."""
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                self._space.remove_unlinked()  # what this copy has brought so far fills the disk of everybody
                raise self._space.full(str(error.strerror)) from error
            fix = "make scratch writable, or set the site's scratch folder to another one"
            raise DataError(f"scratch {self.root} cannot be used", why=str(error), fix=fix) from error


def _distinct(entries: Sequence[Entry]) -> list[Entry]:
    return list({entry.hash: entry for entry in entries}.values())


def _bytes(entries: Sequence[Entry]) -> int:
    return sum(entry.size for entry in entries)
