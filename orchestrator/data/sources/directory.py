"""Data versions that are a folder as it is now, hashed.

A file is hashed once: its checksum is kept by size, times and inode. Nothing stops anyone from
changing the folder later; staging then finds bytes with another hash and refuses them. Empty folders
and permission bits are not part of a version.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.data.checksum import checksum_of
from orchestrator.data.manifest import Entry, Manifest
from orchestrator.errors import RequestError, nearest
from orchestrator.system.cache import Answers
from orchestrator.system.threads import map_in_threads

_THREADS = 8
_DEPTH = 256
_SETTLED_NS = 2_000_000_000
"""A file younger than this may change once more without a new time stamp (git's 'racy' files)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryVersion:
    """The keys of a data version with `source: directory`."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A file of the folder: its path in it, its real path, and what tells whether it has changed."""

    path: str
    real: str
    stamp: tuple[int, int, int, int]

    @property
    def size(self) -> int:
        return self.stamp[0]


def resolve(
    version: DirectoryVersion, *, project: Path, cache: Path, clock: Callable[[], int] = time.time_ns
) -> Manifest:
    """Return the folder's files with their checksums.

    Raises RequestError if there is no such folder, or it is empty, or something in it cannot be read,
    or leads out of it.
    """
    root = _root(version.path, project)
    found = list(_walk(root, root, "", frozenset([root])))
    if not found:
        raise RequestError(f"{root} holds no files", fix="correct the data version's `path`")
    checksums = _checksums(found, Answers(cache / "directory"), root, clock())
    entries = [
        Entry(path=file.path, hash=checksum, size=file.size, sources=(file.real,))
        for file, checksum in zip(found, checksums, strict=True)
    ]
    repair = "restore the file, or launch again to pin what is there now"
    origin = {"source": "directory", "path": version.path, "folder": str(root), "repair": repair}
    return Manifest.of(entries, origin=origin)


def _root(path: str, project: Path) -> Path:
    root = project / Path(path).expanduser()
    if not root.exists():
        siblings = [child.name for child in root.parent.iterdir()] if root.parent.is_dir() else []
        hint = nearest(root.name, siblings)
        raise RequestError(f"no folder {root}{hint}", fix="correct the data version's `path`")
    if not root.is_dir():
        fix = "name the folder that holds it, or track the file with DVC"
        raise RequestError(f"{root} is a file", why="`source: directory` takes a folder", fix=fix)
    return root.resolve()


def _walk(folder: Path, root: Path, prefix: str, above: frozenset[Path]) -> Iterator[Found]:
    try:
        children = sorted(os.scandir(folder), key=lambda child: child.name)
    except OSError as error:
        raise _unreadable(folder, error) from error
    for child in children:
        path = f"{prefix}{child.name}"
        real, status = _follow(child, root)
        if stat.S_ISREG(status.st_mode):
            yield Found(path=path, real=real, stamp=_stamp(status))
        elif not stat.S_ISDIR(status.st_mode):
            raise RequestError(f"{child.path} is neither a file nor a folder", fix="remove it from the data")
        elif (below := Path(real)) in above:
            raise RequestError(f"{child.path} leads to a folder that it is in", fix="remove the link")
        elif len(above) > _DEPTH:
            raise RequestError(f"{root} has folders deeper than {_DEPTH}: {path[:50]!r}...", fix="remove them")
        else:
            yield from _walk(below, root, f"{path}/", above | {below})


def _stamp(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _follow(child: os.DirEntry[str], root: Path) -> tuple[str, os.stat_result]:
    """Return where a path leads, and what is there."""
    try:
        if not child.is_symlink():
            return child.path, child.stat(follow_symlinks=False)
        real = Path(child.path).resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError) as error:
        raise _unreadable(child.path, error) from error
    if not real.is_relative_to(root):
        fix = "copy what it leads to into the folder, or name a folder that holds both"
        raise RequestError(f"{child.path} leads out of the data version, to {real}", fix=fix)
    return str(real), status


def _checksums(found: list[Found], answers: Answers, root: Path, now: int) -> list[str]:
    kept = _kept(answers.read(str(root)))
    known = {file.path: checksum for file in found if (checksum := _known(kept, file))}
    hashed = iter(map_in_threads(_hash, [file for file in found if file.path not in known], threads=_THREADS))
    checksums = [known.get(file.path) or next(hashed) for file in found]
    settled = {
        file.path: [*file.stamp, checksum]
        for file, checksum in zip(found, checksums, strict=True)
        if max(file.stamp[1:3]) < now - _SETTLED_NS
    }
    if settled and settled != kept:
        answers.write(settled, str(root))
    return checksums


def _kept(answer: object) -> dict[str, object]:
    return answer if isinstance(answer, dict) else {}


def _known(kept: dict[str, object], file: Found) -> str | None:
    match kept.get(file.path):
        case [*stamp, str(checksum)] if tuple(stamp) == file.stamp:
            return checksum
    return None


def _hash(file: Found) -> str:
    try:
        checksum = checksum_of(Path(file.real), "md5")
        now = _stamp(Path(file.real).stat())
    except OSError as error:
        raise _unreadable(file.real, error) from error
    if now != file.stamp:
        raise RequestError(
            f"{file.real} changed while it was read", fix="let the program that writes it finish, then try again"
        )
    return checksum


def _unreadable(path: Path | str, error: OSError | RuntimeError) -> RequestError:
    why = (isinstance(error, OSError) and error.strerror) or str(error)
    return RequestError(f"{path} cannot be read", why=why, fix="make it readable, or remove it from the data")
