"""Versions: complete copies of data versions on a node, who holds them, and whether they are as they were made.

    <root>/<digest>-<nonce>/         appears whole, by one rename; its name is never used again
        view/                        exactly the manifest's files, read-only
        files.jsonl                  their paths, hashes and sizes, a line each
        version.json                 what it is; without this nobody takes the version any more
        leases/<holder>              empty files: who reads the view

`leases/` is the lock, and the only one: a lease is a file made in it, and a process that removes a version first
removes that folder, which the filesystem refuses while a file is in it. So a version is either leased or being removed,
never both, whichever process is killed at whatever moment; and what a killed one has left of it, any other may remove.
It takes rename(2) and rmdir(2) to be atomic, and no flock.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.data.checksum import checksum_of
from orchestrator.data.store.holder import Ask, Holder
from orchestrator.data.store.objects import untouched
from orchestrator.system.files import create, make_folder, write_text

FORMAT = 1
UNREADABLE = (OSError, ValueError, TypeError)
"""What reading the listing of a version raises, if somebody has changed that."""

_NAME = re.compile(r"([0-9a-f]{64})-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """One file of a view. `size` is the true one, whatever the manifest said."""

    path: str
    hash: str
    size: int

    def to_json(self) -> list[object]:
        return [self.path, self.hash, self.size]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What version.json says. `boot`: in which boot of the machine it was made or last read as a whole."""

    boot: str
    files: int
    bytes: int
    primitive: str
    origin: Mapping[str, object]

    @classmethod
    def read(cls, path: Path) -> Facts | None:
        """Return the facts; None where there are none, or none that this program understands."""
        try:
            value = json.loads(path.read_bytes())
            if value.pop("format") != FORMAT:
                return None
            return cls(**value)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def to_json(self) -> dict[str, object]:
        return {
            "format": FORMAT,
            "boot": self.boot,
            "files": self.files,
            "bytes": self.bytes,
            "primitive": self.primitive,
            "origin": dict(self.origin),
        }


@dataclass(frozen=True, slots=True)
class Version:
    """One version's folder."""

    path: Path

    @property
    def digest(self) -> str:
        return self.path.name.partition("-")[0]

    @property
    def view(self) -> Path:
        return self.path / "view"

    @property
    def leases(self) -> Path:
        return self.path / "leases"

    @property
    def listing(self) -> Path:
        return self.path / "files.jsonl"

    @property
    def marker(self) -> Path:
        return self.path / "version.json"

    def facts(self) -> Facts | None:
        """Return what it is; None if nobody may take it any more."""
        return Facts.read(self.marker) if self.leases.is_dir() else None

    def files(self) -> Iterator[File]:
        """Yield the files line by line: no other thread is kept waiting for long."""
        with self.listing.open("rb") as lines:
            for line in lines:
                path, checksum, size = json.loads(line)
                yield File(path=path, hash=checksum, size=size)

    def write(self, files: Iterable[File], facts: Facts) -> None:
        """Write what a version says of itself, before it appears."""
        create(self.listing)
        with self.listing.open("w") as lines:
            lines.writelines(f"{json.dumps(file.to_json())}\n" for file in files)
        write_text(self.marker, json.dumps(facts.to_json()))
        make_folder(self.leases, exist_ok=False)

    # --- leases -------------------------------------------------------------------------------------------

    def lease(self, holder: Holder) -> bool:
        """Take a lease; False if the version is being removed."""
        try:
            os.close(os.open(self.leases / holder.name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def release(self, holder: Holder) -> None:
        (self.leases / holder.name).unlink(missing_ok=True)

    @contextmanager
    def held(self, holder: Holder) -> Iterator[bool]:
        """Lease the version while the body runs; yields False if it is being removed."""
        held = self.lease(holder)
        try:
            yield held
        finally:
            if held:
                self.release(holder)

    def holders(self) -> list[Holder]:
        """Return who has a lease, dead or alive."""
        return [holder for name in names_in(self.leases) if (holder := Holder.parse(name))]

    def revoke(self, ask: Ask | None) -> bool:
        """Make sure that nobody can lease the version any more; False if somebody may still hold it."""
        for holder in self.holders():
            if holder.alive(ask) is False:
                self.release(holder)
        try:
            self.leases.rmdir()
        except OSError as error:
            return error.errno == errno.ENOENT
        return True

    def invalidate(self) -> None:
        """Let nobody take the version any more; who holds it keeps it."""
        self.marker.unlink(missing_ok=True)

    @property
    def used_ns(self) -> int:
        """When a lease was last taken or given back. Only an order: a clock may jump."""
        try:
            return self.leases.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    # --- is it as it was made? ----------------------------------------------------------------------------

    def changed(self) -> list[str]:
        """Return what has been written, removed or added, by sizes and times: a line per file."""
        found: list[str] = []
        known: set[str] = set()
        view = os.fspath(self.view)
        for file in self.files():
            known.add(file.path)
            status = untouched(f"{view}/{file.path}")
            if status is None or status.st_size != file.size:
                found.append(f"{file.path!r} {_described(self.view / file.path)}")
        return found + self._unexpected_files(known)

    def damage(self, file: File) -> str | None:
        """Read a file; return what is wrong with it."""
        path = self.view / file.path
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                return f"{file.path!r} is not a regular file"
            found = checksum_of(path, file.hash.partition(":")[0])
        except OSError as error:
            return f"{file.path!r}: {error.strerror}"
        return None if found == file.hash else f"{file.path!r} has {found}, not {file.hash}"

    def unexpected_files(self) -> list[str]:
        return self._unexpected_files({file.path for file in self.files()})

    def _unexpected_files(self, known: set[str]) -> list[str]:
        return sorted(f"{path!r} does not belong to the version" for path in _below(self.view) if path not in known)


def versions(root: Path, digest: str | None = None) -> list[Version]:
    """Return the versions below `root`, also those that are being removed."""
    found = [(name, match) for name in names_in(root) if (match := _NAME.fullmatch(name))]
    return [Version(root / name) for name, match in sorted(found) if digest in (None, match[1])]


def remove_tree(folder: Path) -> None:
    """Remove a folder whose own folders are read-only; what another process removes meanwhile is not an error."""
    for path, _, _ in os.walk(folder):
        try:
            Path(path).chmod(0o700)
        except OSError:
            continue
    shutil.rmtree(folder, ignore_errors=True)


def _described(path: Path) -> str:
    try:
        status = path.lstat()
    except OSError:
        return "is gone"
    return "has been written to" if stat.S_ISREG(status.st_mode) else "is not a regular file"


def _below(folder: Path) -> Iterator[str]:
    root = os.fspath(folder)
    for path, folders, files in os.walk(root):
        links = [name for name in folders if Path(path, name).is_symlink()]
        for name in files + links:
            yield os.path.relpath(os.path.join(path, name), root)  # noqa: PTH118 - for each of 200,000 files


def names_in(folder: Path) -> list[str]:
    """Return what is in a folder; nothing if there is none."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
