"""The types of a snapshot: one that is written, and one that is not written yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A written snapshot.

    `tree` is the code's identity: a git tree hash, or `plain-<hash>` without git. `dirty` says that it differs
    from `commit`; `message` is a note for the user.
    """

    tree: str
    commit: str | None
    branch: str | None
    dirty: bool
    files: int
    bytes: int
    message: str = ""

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(
            tree=str(value["tree"]),
            commit=value["commit"],
            branch=value["branch"],
            dirty=bool(value["dirty"]),
            files=int(value["files"]),
            bytes=int(value["bytes"]),
            message=str(value["message"]),
        )

    def to_json(self) -> dict[str, object]:
        return {"version": 1, **asdict(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A snapshot that has a name but is not written yet; valid inside the `with` block of `take`.

    `fill` writes its files to a new folder, `diff` returns the uncommitted changes as a patch. `paths` are the files,
    relative to `root`.
    """

    snapshot: Snapshot
    fill: Callable[[Path], None]
    diff: Callable[[], bytes]
    root: Path = Path()
    paths: frozenset[str] = frozenset()

    @property
    def folders(self) -> frozenset[str]:
        """The names of the folders at the top."""
        return frozenset(path.partition("/")[0] for path in self.paths if "/" in path)
