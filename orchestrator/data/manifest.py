"""The manifest: the exact list of files behind a data version, and where their bytes can be read.

Its digest depends on paths and checksums only, so the same content has the same digest wherever it
comes from. A manifest is made at launch, stored with the launch, and read by the jobs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from orchestrator.data.checksum import PATTERN
from orchestrator.errors import DataError, StateError
from orchestrator.system.files import make_folder, read_bytes, replace_text

VERSION = 2
_NAME_BYTES, _DEPTH = 255, 256
_READABLE = (1, 2)
"""Version 1 had no `remote` in its rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file of a data version.

    `path` is relative, with `/`; `hash` is `algorithm:hexadecimal`; `sources` are absolute paths where
    the bytes may be read, the best first. `size` in bytes is what the source had when it was resolved:
    good for planning, but only the hash decides whether bytes are right. `remote` is for what brings bytes that no
    path holds (see origin.py), where the hash alone does not name them: such as an object's key and version.
    """

    path: str
    hash: str
    size: int
    sources: tuple[str, ...]
    remote: tuple[str, ...] = ()

    @property
    def algorithm(self) -> str:
        return self.hash.partition(":")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The files of one data version, sorted by path; made by `Manifest.of`.

    `origin` says where it came from: the `source` and its keys as asked, what they resolved to (such as
    the `commit`), `dirty` if uncommitted changes were left out, and the command of a `repair`.
    """

    digest: str
    origin: Mapping[str, Any]
    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, entries: Iterable[Entry], *, origin: Mapping[str, object]) -> Self:
        """Check, sort and digest the entries; raises DataError if they cannot be one folder."""
        ordered = tuple(sorted(entries, key=lambda entry: entry.path))
        for entry in ordered:
            _check_entry(entry)
        _check_tree([entry.path for entry in ordered])
        return cls(digest=_digest(ordered), origin=dict(origin), entries=ordered)

    @property
    def files(self) -> int:
        return len(self.entries)

    @property
    def folders(self) -> int:
        return len(_folders(entry.path for entry in self.entries))

    @property
    def bytes(self) -> int:
        return sum(entry.size for entry in self.entries)

    @property
    def summary(self) -> dict[str, object]:
        """Where the version came from, and how large it is."""
        return {**self.origin, "files": self.files, "bytes": self.bytes}

    @property
    def name(self) -> str:
        """What a person calls it: its path, and the beginning of its digest."""
        return " ".join(part for part in (str(self.origin.get("path") or ""), self.digest[:8]) if part)

    @property
    def repair(self) -> str:
        """The command that makes missing or damaged bytes readable again."""
        return str(self.origin.get("repair", "resolve the data version again"))

    def to_json(self) -> dict[str, object]:
        rows = [_row_of_entry(entry) for entry in self.entries]
        return {"version": VERSION, "digest": self.digest, "origin": dict(self.origin), "entries": rows}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Parse what `to_json` made; raises StateError for anything else."""
        try:
            if value["version"] not in _READABLE:
                raise StateError(
                    f"manifest of version {value['version']!r}",
                    why=f"this program reads versions up to {VERSION}",
                    fix="use the version of the program that launched the run",
                )
            manifest = cls.of(map(_entry_of_row, value["entries"]), origin=dict(value["origin"]))
            if manifest.digest != value["digest"]:
                raise ValueError(f"its entries have the digest {manifest.digest}, not {value['digest']}")
        except (KeyError, TypeError, ValueError, DataError) as error:
            raise StateError(
                "damaged manifest", why=str(error) or repr(error), fix="launch again to write a new one"
            ) from error
        return manifest

    def write(self, path: Path) -> None:
        make_folder(path.parent)
        replace_text(path, json.dumps(self.to_json()))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a manifest; raises StateError if the file is missing, unreadable or damaged."""
        try:
            return cls.from_json(json.loads(read_bytes(path)))
        except (OSError, ValueError) as error:
            fix = "launch again to write a new one"
            raise StateError(f"manifest {path} cannot be read", why=str(error), fix=fix) from error
        except StateError as error:
            raise StateError(f"{path}: {error.what}", why=error.why, fix=error.fix) from error


def _row_of_entry(entry: Entry) -> list[object]:
    row = [entry.path, entry.hash, entry.size, list(entry.sources)]
    return [*row, list(entry.remote)] if entry.remote else row


def _entry_of_row(row: Any) -> Entry:
    path, checksum, size, sources, *rest = row
    lists = [sources, *rest]
    right = isinstance(path, str) and isinstance(checksum, str) and type(size) is int and len(rest) <= 1
    if not right or not all(map(_is_list_of_text, lists)):
        raise ValueError(f"bad entry {row!r}")
    remote = tuple(rest[0]) if rest else ()
    return Entry(path=path, hash=checksum, size=size, sources=tuple(sources), remote=remote)


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _digest(ordered: Iterable[Entry]) -> str:
    listing = [[entry.path, entry.hash] for entry in ordered]
    return hashlib.sha256(json.dumps(listing, separators=(",", ":")).encode()).hexdigest()


def _check_entry(entry: Entry) -> None:
    parts = entry.path.split("/")
    if "\0" in entry.path or any(part in ("", ".", "..") for part in parts):
        raise _refused(entry.path, "a path must be relative, without '..', empty parts or NUL")
    try:
        longest = max(map(len, entry.path.encode(errors="surrogateescape").split(b"/")))
    except UnicodeEncodeError as error:
        raise _refused(entry.path, f"no file can have that name: {error.reason}") from error
    if longest > _NAME_BYTES:
        raise _refused(entry.path, f"no filesystem takes a name of more than {_NAME_BYTES} bytes")
    if len(parts) > _DEPTH:
        raise _refused(entry.path, f"it lies deeper than {_DEPTH} folders")
    if not PATTERN.fullmatch(entry.hash):
        raise _refused(entry.path, f"{entry.hash!r} is not a checksum this program knows")
    if entry.size < 0:
        raise _refused(entry.path, f"its size is {entry.size}")


def _folders(paths: Iterable[str]) -> set[str]:
    """Return all folders that these paths lie in."""
    found: set[str] = set()
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


def _check_tree(paths: list[str]) -> None:
    files = set(paths)
    if len(files) != len(paths):
        twice = next(path for path, after in pairwise(paths) if path == after)
        raise _refused(twice, "it is listed twice")
    if both := files & _folders(paths):
        raise _refused(min(both), "it is listed as a file and as a folder of other files")


def _refused(path: str, why: str) -> DataError:
    return DataError(f"data version with the file {path!r}", why=why, fix="correct the listing at its source")
