"""Freeze the code of a project, so that no edit of the checkout reaches a queued run.

`take` determines the files to freeze and their name (the git tree hash), and writes only temporary files;
`write` puts them under `code/<tree>/`, whole or not at all. A snapshot has the files that `git add --all`
would record: tracked files as they are now, and untracked ones that are source or configuration. The
user's repository is only read: git writes to a copy of its index and a temporary object folder, runs no
hook, and waits for no lock. (A filter such as git-lfs runs as in `git add`.) Without git the files are
copied as they are.

The caller decides when to freeze, and into which folder.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from orchestrator.errors import StateError
from orchestrator.layout import CodePaths
from orchestrator.snapshot import checkout, plain
from orchestrator.snapshot.frozen import Pending, Snapshot
from orchestrator.snapshot.repository import find_repository
from orchestrator.snapshot.selection import MB, Selection
from orchestrator.spec import SnapshotOptions
from orchestrator.system.files import draft_of, listed, make_folder, take_by_rename, write_bytes, write_text
from orchestrator.system.threads import in_shares
from orchestrator.system.units import size

__all__ = ["Pending", "Snapshot", "take", "write"]

_log = logging.getLogger(__name__)

DIFF_LIMIT_BYTES = 20 * MB
_FILES_PER_THREAD = 100


@contextmanager
def take(project: Path, options: SnapshotOptions, *, exclude: Sequence[Path] = ()) -> Iterator[Pending]:
    """Yield the snapshot that freezing `project` would write, without the folders in `exclude`.

    Raises RequestError for files over the limits, credentials, and links that leave the project.
    """
    selection = Selection.of(project, options, exclude)
    with TemporaryDirectory(prefix="orch-snapshot-") as name:
        scratch = Path(name).resolve()
        repo = find_repository(selection.project, scratch)
        parts = list(checkout.read_parts(repo, selection, scratch)) if repo else []
        if any(part.entries for part in parts):
            yield checkout.pending(parts, selection, scratch)
        else:
            yield plain.pending(selection, plain.reason(repository=repo is not None))


def write(pending: Pending, destination: CodePaths) -> Snapshot:
    """Write the snapshot to `destination`, whole or not at all, unless it is there already.

    Its files are read-only, so that nobody edits them by accident; its folders are writable, so that it can
    be deleted. Any number of processes may write the same snapshot at once.
    """
    if listed(destination.header):
        return pending.snapshot
    try:
        parent = destination.path.parent.absolute()  # absolute, because git runs in another folder
        make_folder(parent)
        with draft_of(parent / destination.path.name) as draft:
            _draft(pending, CodePaths(draft))
            _publish(draft, destination)
    except OSError as error:
        raise StateError(
            f"cannot write the code's snapshot to {destination.path}",
            why=str(error),
            fix="free some space there, or make it writable",
        ) from error
    return pending.snapshot


def _draft(pending: Pending, draft: CodePaths) -> None:
    make_folder(draft.path)
    pending.fill(draft.tree)
    _protect(draft.tree)
    diff = pending.diff()
    about = pending.snapshot.to_json()
    if len(diff) > DIFF_LIMIT_BYTES:
        over = f"{size(len(diff))} is more than {size(DIFF_LIMIT_BYTES)}"
        about["diff"] = f"left out: {over}; the tree is whole"
        _log.warning("uncommitted diff %s", about["diff"])
    elif diff:
        about["diff"] = draft.diff.name
        write_bytes(draft.diff, diff)
    write_text(draft.header, json.dumps(about, indent=1) + "\n")


def _publish(draft: Path, destination: CodePaths) -> None:
    # A process that was faster has written the same content.
    if not take_by_rename(draft, destination.path, mine=lambda: listed(destination.header)):
        raise StateError(
            f"{destination.path} exists but is incomplete",
            why="it has no snapshot.json",
            fix="delete it and launch again",
        )


def _protect(tree: Path) -> None:
    # Creating a Path per file would cost as much as the chmod.
    for folder, _, _ in os.walk(tree):
        os.chmod(folder, stat.S_IMODE(os.lstat(folder).st_mode) & 0o755)  # noqa: PTH101 - as above; the umask may be 0
    files = [os.path.join(folder, name) for folder, _, names in os.walk(tree) for name in names]  # noqa: PTH118 - of many files
    in_shares(_make_read_only, files, least=_FILES_PER_THREAD)


def _make_read_only(paths: Sequence[str]) -> None:
    for path in paths:
        mode = os.lstat(path).st_mode
        if not stat.S_ISLNK(mode):
            os.chmod(path, stat.S_IMODE(mode) & 0o555)  # noqa: PTH101 - as above
