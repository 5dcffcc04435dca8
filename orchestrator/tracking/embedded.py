"""The embedded store's place: on a local disk, made whole or not at all, and written by one at a time."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import socket
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import TrackingError

_NETWORKED = frozenset({
    "9p", "acfs", "afs", "beegfs", "beegfs_nodev", "ceph", "cifs", "coda", "glusterfs", "gpfs", "lustre", "nfs", "nfs4",
    "ocfs2", "orangefs", "panfs", "pvfs2", "quobyte", "smb3", "smbfs", "vboxsf", "virtiofs", "wekafs",
})  # fmt: skip
_LOCAL_FUSE = frozenset({"fuseblk"})  # a disk that the kernel itself cannot read


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFolders:
    """Where an embedded store lies: its database, which needs a local disk, and its artifacts, which do not."""

    database: Path
    files: Path


def store_folders(own: Path, local: Sequence[Path], mounts: str) -> StoreFolders:
    """Return where the store of a folder for runs lies; `mounts` is what /proc/self/mountinfo says.

    It is the runs' `own`, but for the database where that is on a network filesystem: SQLite's locks do not hold
    there. That then lies in the first of the `local` folders that is on a local disk, and artifacts stay beside the
    runs, by the host's name: checkpoints are still links. Raises TrackingError where there is no local disk.
    """
    runs = own.parent
    if not is_networked(runs, mounts):
        return StoreFolders(database=own, files=own / "artifacts")
    name = f"{runs.parent.name}-{hashlib.sha256(str(runs.absolute()).encode()).hexdigest()[:12]}"
    for folder in local:
        if not is_networked(folder, mounts):
            return StoreFolders(database=folder / "mlflow" / name, files=own / socket.gethostname() / "artifacts")
    raise TrackingError(
        f"there is no local disk for the tracking store of {runs}",
        why=f"{', '.join(map(str, (runs, *local)))} lie on network filesystems, where SQLite's locks do not hold",
        fix="set XDG_CACHE_HOME to a folder on a local disk, or use tracking=server",
    )


def is_networked(path: Path, mounts: str) -> bool:
    """Return whether a path lies on a filesystem that other machines may write to, as far as its type tells."""
    kind = _filesystem(path.resolve(), mounts)
    fuse = kind.startswith("fuse") and kind not in _LOCAL_FUSE
    return fuse or kind in _NETWORKED


def _filesystem(path: Path, mounts: str) -> str:
    """Return the type of the filesystem that a path lies on; of mounts over one another the last counts."""
    kinds = {}
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, told = before.split(), after.split()
        if len(fields) >= 5 and told:
            kinds[fields[4].encode().decode("unicode_escape")] = told[0]
    return next((kinds[str(above)] for above in (path, *path.parents) if str(above) in kinds), "")


def mounts() -> str:
    """Return what is mounted here; nothing where the system does not say."""
    try:
        return Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""


def make_database(path: Path, files: Path) -> None:
    """Make the database if it is not there, whole or not at all; raise if it is no database.

    Artifacts that a database left which is gone are removed: nobody knows whose they are.

    MLflow itself tries for 100 seconds to open what cannot be opened, so that is found out first.
    """
    if path.exists():
        with closing(sqlite3.connect(path)) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # noqa: PLC0415 - loads SQLAlchemy

    partial = path.with_name("mlflow.db.partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    store = SqlAlchemyStore(f"sqlite:///{partial}", files.as_uri())  # type: ignore[no-untyped-call]  # mlflow ships it untyped
    store.engine.dispose()
    shutil.rmtree(files, ignore_errors=True)
    partial.replace(path)


@contextmanager
def locked(folder: Path, wait_seconds: float) -> Iterator[None]:
    """Be the only writer of an embedded store. `flock` will do: the store is on a local disk by design."""
    with (folder / "lock").open("a") as file:
        deadline = time.monotonic() + wait_seconds
        while not _try_lock(file.fileno()):
            if time.monotonic() > deadline:
                raise TrackingError(
                    f"the tracking store {folder} is busy",
                    why=f"another process has been writing to it for more than {wait_seconds:g} s",
                    fix="wait for it to end and sync again: `orch ui --once`",
                )
            time.sleep(0.05)
        yield


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
