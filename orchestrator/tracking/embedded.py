"""The database of the embedded store: on a local disk, created whole or not at all, with one writer at a time."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from orchestrator.errors import TrackingError
from orchestrator.system.files import PRIVATE, replacing, try_lock


def make_database(path: Path, files: Path) -> None:
    """Create the database if it is missing, whole or not at all; raise if the file is not a database.

    Artifacts left over from a deleted database are removed, since no run refers to them.

    MLflow itself tries for 100 seconds to open a file that cannot be opened, so this is checked first.
    """
    if path.exists():
        with closing(sqlite3.connect(path)) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with replacing(path, mode=PRIVATE) as partial:
        store = SqlAlchemyStore(f"sqlite:///{partial}", files.as_uri())  # type: ignore[no-untyped-call]  # mlflow ships it untyped
        store.engine.dispose()
        shutil.rmtree(files, ignore_errors=True)


@contextmanager
def locked(folder: Path, wait_seconds: float) -> Iterator[None]:
    """Hold the write lock of an embedded store. `flock` is enough: the store is on a local disk by design."""
    descriptor = os.open(folder / "lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, PRIVATE)
    with os.fdopen(descriptor, "a") as file:
        deadline = time.monotonic() + wait_seconds
        while not try_lock(file.fileno()):
            if time.monotonic() > deadline:
                raise TrackingError(
                    f"the tracking store {folder} is busy",
                    why=f"another process has been writing to it for more than {wait_seconds:g} s",
                    fix="wait for it to end and sync again: `orch ui --once`",
                )
            time.sleep(0.05)
        yield
