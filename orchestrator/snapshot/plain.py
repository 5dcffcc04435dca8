"""Freeze a project without git: copy the files that would be frozen if git tracked none."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import RequestError
from orchestrator.snapshot.frozen import Pending, Snapshot
from orchestrator.snapshot.selection import Selection
from orchestrator.snapshot.tree import EXECUTABLE, FILE, LINK

WALK_LIMIT_FILES = 200_000
"""The most files without git: a folder with more is not a project, but a home folder or a disk."""


class _File(NamedTuple):
    path: str
    mode: str
    digest: str


def reason(*, repository: bool) -> str:
    """Return a note for the user on why files were copied without git."""
    if repository:
        return "git tracks nothing here, and ignores the rest: source and configuration files were copied"
    cause = "there is no git repository" if shutil.which("git") else "git is not installed"
    return f"{cause}: source and configuration files were copied, without commit and history"


def pending(selection: Selection, message: str) -> Pending:
    """Return the snapshot of the files, named by a hash over their paths, modes and contents."""
    included = selection.included()
    wanted, _ = selection.choose(_bounded(selection.walk(""), selection.project))
    paths = sorted({*wanted, *included})
    selection.refuse_leaving_links(paths)
    sizes = selection.sizes(paths)
    files = [_read_file(selection.project, path) for path in paths]
    snapshot = Snapshot(
        tree=_plain_tree(files),
        commit=None,
        branch=None,
        dirty=False,
        files=len(files),
        bytes=sum(sizes.values()),
        message=message,
    )

    def fill(tree: Path) -> None:
        tree.mkdir()
        copied = [_read_file(selection.project, file.path, to=tree) for file in files]
        if _plain_tree(copied) != snapshot.tree:
            raise RequestError(
                "the project changed while it was being frozen",
                why="without git its files are read twice, and differed",
                fix="launch again",
            )

    return Pending(snapshot=snapshot, fill=fill, diff=lambda: b"", root=selection.project, paths=frozenset(paths))


def _bounded(paths: Iterator[str], project: Path) -> Iterator[str]:
    for count, path in enumerate(paths):
        if count >= WALK_LIMIT_FILES:
            raise RequestError(
                f"{project} contains more than {WALK_LIMIT_FILES:,} files",
                why="without git each of them is examined",
                fix="start from the project's own folder, or `git init` it and write a .gitignore",
            )
        yield path


def _read_file(project: Path, path: str, to: Path | None = None) -> _File:
    """Return a file's mode and content hash, and copy exactly what was hashed if `to` is given."""
    source = project / path
    try:
        mode, content = _content(source)
    except OSError as error:
        raise RequestError(f"cannot read {path!r}", why=str(error), fix="make it readable") from error
    if to is not None:
        _put(to / path, mode, content)
    return _File(path, mode, hashlib.sha256(content).hexdigest())


def _content(source: Path) -> tuple[str, bytes]:
    about = source.lstat()
    if stat.S_ISLNK(about.st_mode):
        return LINK, os.fsencode(source.readlink())
    return EXECUTABLE if about.st_mode & 0o100 else FILE, source.read_bytes()


def _put(target: Path, mode: str, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if mode == LINK:
        target.symlink_to(os.fsdecode(content))
        return
    target.write_bytes(content)
    if mode == EXECUTABLE:
        target.chmod(target.stat().st_mode | 0o111)


def _plain_tree(files: Sequence[_File]) -> str:
    lines = (f"{file.mode} {file.digest} {len(file.path)}:{file.path}\n" for file in files)
    return f"plain-{hashlib.sha256(os.fsencode(''.join(lines))).hexdigest()[:40]}"
