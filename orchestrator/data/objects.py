"""Objects: files under their checksums on a node's scratch, right by their hash when they came in.

    <root>/<algorithm>/<first two digits>/<rest>   mode 0444

An object appears after its copy was hashed, under a name that only the same bytes have: two processes
that copy the same object do no harm, and no lock is needed. It is then never replaced by an equal one:
link(2) of a file that a rename replaces at this moment fails with ENOENT (seen on ext4).
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from orchestrator.data.checksum import Checksum, chunks
from orchestrator.data.manifest import Entry, Manifest
from orchestrator.data.publish import temporary_beside
from orchestrator.errors import DataError

log = logging.getLogger(__name__)

Link = Callable[[Path, Path], None]
"""Make a hard link, as os.link does."""

READ_ONLY = 0o444
NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a filesystem says that cannot make this link: files are then copied, or renamed."""

_BATCH_FILES, _BATCH_BYTES = 64, 8 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the copying is; the totals are what this call has to copy."""

    files: int
    bytes: int
    total_files: int
    total_bytes: int


Report = Callable[[Progress], None]
"""Called after every few files."""


class _WrongBytesError(Exception):
    """A source could not be read, or has other bytes than its checksum says."""


class Objects:
    """The objects under `root`; `threads` bounds the copies at the same time."""

    def __init__(self, root: Path, *, threads: int, link: Link) -> None:
        self.root = root
        self._threads, self._link = threads, link

    def path(self, entry: Entry) -> Path:
        algorithm, _, name = entry.hash.partition(":")
        return self.root / algorithm / name[:2] / name[2:]

    def missing(self, manifest: Manifest) -> list[Entry]:
        """Return one entry for each object that is not there; the largest first."""
        distinct = {entry.hash: entry for entry in manifest.entries}.values()
        missing = [entry for entry in distinct if regular_size(self.path(entry)) != entry.size]
        return sorted(missing, key=lambda entry: -entry.size)

    def copy(self, missing: Sequence[Entry], *, repair: str, report: Report | None) -> None:
        """Copy in threads, the first error ending all; `repair` is the command to put into an error.

        Raises DataError if no source of a file has the right bytes, OSError if scratch fails.
        """
        for folder in {self.path(entry).parent for entry in missing}:
            folder.mkdir(parents=True, exist_ok=True)
        stop = threading.Event()
        with ThreadPoolExecutor(self._threads) as pool:
            copies = {pool.submit(self._fetch_batch, batch, repair, stop): batch for batch in _batches(missing)}
            try:
                self._follow(copies, missing, report)
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)

    def _follow(
        self,
        copies: dict[Future[None], list[Entry]],
        missing: Sequence[Entry],
        report: Report | None,
    ) -> None:
        total_bytes = sum(entry.size for entry in missing)
        files = size = 0
        for copy in as_completed(copies):
            copy.result()
            files += len(copies[copy])
            size += sum(entry.size for entry in copies[copy])
            if report:
                report(Progress(files=files, bytes=size, total_files=len(missing), total_bytes=total_bytes))

    def _fetch_batch(self, batch: Sequence[Entry], repair: str, stop: threading.Event) -> None:
        for entry in batch:
            if stop.is_set():
                return
            self._fetch(entry, repair)

    def _fetch(self, entry: Entry, repair: str) -> None:
        """Take the object from the first source that has the right bytes."""
        problems = []
        for source in entry.sources:
            try:
                with _opened(source) as file:
                    self._take(file, source, entry)
            except _WrongBytesError as error:
                problems.append(str(error))
            else:
                for problem in problems:
                    log.warning("%s; took %s instead", problem, source)
                return
        raise DataError(
            f"no right copy of {entry.path!r} ({entry.hash}, {entry.size} bytes)",
            why="; ".join(problems) or "it has no source",
            fix=f"remove the damaged file, then: {repair}" if _damaged(entry) else repair,
        )

    def _take(self, file: BinaryIO, source: str, entry: Entry) -> None:
        target = self.path(entry)
        temporary = temporary_beside(target)
        checksum, size = Checksum(entry.algorithm), 0
        try:
            with temporary.open("xb") as copy:
                for chunk in _read(file, source):
                    checksum.update(chunk)
                    size += len(chunk)
                    copy.write(chunk)
                os.fchmod(copy.fileno(), READ_ONLY)
            if str(checksum) != entry.hash:
                raise _WrongBytesError(f"{source} has {checksum} ({size} bytes), not {entry.hash} ({entry.size} bytes)")
            self._place(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def _place(self, temporary: Path, target: Path) -> None:
        """Give the copy its name, unless another process was faster."""
        try:
            self._link(temporary, target)
        except FileExistsError:
            if regular_size(target) != regular_size(temporary):  # torn by a crash of the node
                temporary.replace(target)
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            temporary.replace(target)


def _batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Yield what one thread copies at a time: one large file, or some small ones."""
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        batch.append(entry)
        size += entry.size
        if len(batch) == _BATCH_FILES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _opened(source: str) -> BinaryIO:
    try:
        return Path(source).open("rb")
    except OSError as error:
        raise _WrongBytesError(f"{source}: {error.strerror}") from error


def _read(file: BinaryIO, source: str) -> Iterator[bytes]:
    try:
        yield from chunks(file)
    except OSError as error:
        raise _WrongBytesError(f"{source}: {error.strerror}") from error


def _damaged(entry: Entry) -> bool:
    return any(Path(source).is_file() for source in entry.sources)


def regular_size(path: Path) -> int | None:
    """Return the size of a regular file, or None if there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
