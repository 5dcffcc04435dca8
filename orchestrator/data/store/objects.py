"""Objects: files under their checksums on a node's scratch, right by their hash when they came in.

    <root>/<boot>/<algorithm>/<first two digits>/<rest>   mode 0444, modification time WRITTEN_NS

An object appears by a rename, after its copy was hashed, under a name that only the same bytes have: two processes
that copy the same object do no harm, and no lock is needed. Anybody may remove an object at any time: what needs it
links it into a folder of its own, and copies it again where that finds nothing. An object of an earlier boot may have
been torn by the crash that ended it; it is only a source like others, to be read and hashed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.data.checksum import CHUNK, Checksum
from orchestrator.data.manifest import Entry
from orchestrator.data.store.progress import Meter
from orchestrator.system.files import make_folder

READ_ONLY = 0o444
WRITTEN_NS = 1_000_000_000 * 10**9
"""The modification time of all files of ours, so that any other shows that somebody has written to one."""


class WrongBytesError(Exception):
    """A source could not be read, or has other bytes than its checksum says."""


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects below `root` that this boot of the machine has brought, and those of earlier ones."""

    root: Path
    boot: str

    def place(self, checksum: str) -> str:
        """Return an object's path; as text, since a Path would cost more than what is done with it."""
        return self._place(self.boot, checksum)

    def has(self, checksum: str) -> bool:
        return untouched(self.place(checksum)) is not None

    def folders_to_make(self, checksums: Iterable[str]) -> int:
        """Return how many folders are to be made for objects."""
        return sum(not os.path.isdir(folder) for folder in {os.path.dirname(self.place(each)) for each in checksums})

    def earlier_boots(self) -> list[str]:
        """Return the boots of the machine of which there may be objects, but for this one."""
        return [boot for boot in self.boots() if boot != self.boot]

    def of_boots(self, boots: Iterable[str], checksum: str) -> list[Path]:
        """Return where these boots have left the object."""
        return [path for boot in boots if (path := Path(self._place(boot, checksum))).is_file()]

    def remove(self, checksum: str, *, used: bool = False) -> int:
        """Remove an object that nothing links to; with `used`, whatever links to it (it is damaged).

        Returns the bytes that went.
        """
        gone = 0
        for boot in self.boots():
            path = Path(self._place(boot, checksum))
            try:
                status = path.lstat()
                if used or status.st_nlink == 1:
                    path.unlink()
                    gone += status.st_size
            except (FileNotFoundError, NotADirectoryError):
                continue
        return gone

    def bytes(self) -> int:
        """Return what all objects take, as a walk over all of them finds it."""
        return sum(status.st_size for _, status in self._all())

    def remove_unlinked(self, at_work: Callable[[str], bool]) -> None:
        """Remove all objects that nothing links to, and what is unfinished of takers that are not `at_work`."""
        for path, status in self._all():
            taker = _taker(path.name)
            if status.st_nlink == 1 and not (taker and at_work(taker)):
                path.unlink(missing_ok=True)

    def boots(self) -> list[str]:
        try:
            return os.listdir(self.root)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def _place(self, boot: str, checksum: str) -> str:
        algorithm, _, name = checksum.partition(":")
        return f"{self.root}/{boot}/{algorithm}/{name[:2]}/{name[2:]}"

    def _all(self) -> Iterator[tuple[Path, os.stat_result]]:
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                try:
                    yield path, path.lstat()
                except FileNotFoundError:
                    continue

    def take(self, source: str, entry: Entry, taker: str, meter: Meter) -> None:
        """Copy the object from a source; raises WrongBytesError, or OSError if scratch fails.

        Until it has been hashed it lies beside its place, under a name that begins with the taker's: a rename from
        another folder would have all threads wait for one lock of the kernel's.
        """
        target = self.place(entry.hash)
        folder, _, name = target.rpartition("/")
        temporary = f"{folder}/.{taker}.{name}"  # see _taker
        checksum = Checksum(entry.algorithm)
        try:
            size = _copy(source, _created(temporary), checksum, entry.size, meter)
            if str(checksum) != entry.hash:
                raise WrongBytesError(f"{source} has {checksum} ({size} bytes), not {entry.hash} ({entry.size} bytes)")
            os.rename(temporary, target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def adopt(self, path: Path, entry: Entry, meter: Meter) -> None:
        """Make a file of this disk the object, after reading it; raises WrongBytesError if it is not."""
        checksum = Checksum(entry.algorithm)
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise WrongBytesError(f"{path} is not a regular file")
            for chunk in _chunks(str(path), entry.size):
                meter.beat()
                checksum.update(chunk)
            size = path.stat().st_size
            if str(checksum) != entry.hash:
                raise WrongBytesError(f"{path} has {checksum} ({size} bytes), not {entry.hash} ({entry.size} bytes)")
            path.chmod(READ_ONLY)
            os.utime(path, ns=(WRITTEN_NS, WRITTEN_NS))
            target = Path(self.place(entry.hash))
            make_folder(target.parent)
            path.rename(target)
        except FileNotFoundError as error:
            if not self.has(entry.hash):  # else another process has adopted it
                raise WrongBytesError(f"{path}: {error.strerror}") from error
        meter.add(bytes=entry.size)

    def remove_unfinished(self, taker: str) -> None:
        """Remove what a taker that has died was copying."""
        for path, _ in self._all():
            if _taker(path.name) == taker:
                path.unlink(missing_ok=True)


def _taker(name: str) -> str | None:
    """Return who copies what is unfinished under this name; None of an object that is whole."""
    return name[1:].partition(".")[0] if name.startswith(".") else None


def _created(path: str) -> int:
    """Create a file to be written, and the folder that it is in."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags, READ_ONLY)
    except FileNotFoundError:
        make_folder(Path(path).parent)
        return os.open(path, flags, READ_ONLY)


def _copy(source: str, written: int, checksum: Checksum, expected: int, meter: Meter) -> int:
    """Copy to a descriptor and hash; returns the number of bytes. What was counted of a failed copy is taken back."""
    size = 0
    try:
        for chunk in _chunks(source, expected):
            meter.beat()
            checksum.update(chunk)
            _write(written, chunk)
            size += len(chunk)
            meter.add(bytes=len(chunk))
        if os.fstat(written).st_mode & 0o777 != READ_ONLY:  # the umask took some
            os.fchmod(written, READ_ONLY)
        os.utime(written, ns=(WRITTEN_NS, WRITTEN_NS))
    except BaseException:
        meter.add(bytes=-size)
        raise
    finally:
        os.close(written)
    return size


def _chunks(source: str, expected: int) -> Iterator[bytes]:
    """Yield a file's content, every chunk but the last with CHUNK bytes."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not block
    except OSError as error:
        raise WrongBytesError(f"{source}: {error.strerror}") from error
    try:
        left = expected
        while chunk := _read(descriptor, left, source):
            yield chunk
            left -= len(chunk)
            if left == 0 and len(chunk) < CHUNK:
                return
    finally:
        os.close(descriptor)


def _read(descriptor: int, left: int, source: str) -> bytes:
    """Return the next CHUNK bytes, or as many as are `left` if a read ends there: each call may take a millisecond.

    Of a small file one byte more than expected is asked for: it would show that there is more, and a buffer of a whole
    CHUNK costs more than reading it.
    """
    try:
        chunk = os.read(descriptor, min(CHUNK, max(left, 0) + 1))
        while 0 < len(chunk) < CHUNK and len(chunk) != left and (more := os.read(descriptor, CHUNK - len(chunk))):
            chunk += more
    except OSError as error:
        raise WrongBytesError(f"{source}: {error.strerror}") from error
    return chunk


def _write(descriptor: int, chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:
        left = left[os.write(descriptor, left) :]


def untouched(path: str) -> os.stat_result | None:
    """Return the status of a regular file that nobody has written to since we did; None if there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) and status.st_mtime_ns == WRITTEN_NS else None
