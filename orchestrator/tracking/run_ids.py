"""Which of a server's runs is ours: agreed on through the runs/ folder, which all who write share.

A server gives out its own ids, and takes any number of runs with the same tags. So whoever has made one
publishes its id by renaming a folder; the first wins, and the others delete what they made. One who dies
before publishing leaves a run that the next finds by its tags, and publishes.
"""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunIds:
    """The agreed ids of one store's runs, by names of ours; one folder each, which holds a file `id`."""

    folder: Path

    def known(self, name: str) -> str | None:
        """Return the agreed id of a name."""
        try:
            return (self.folder / name / "id").read_text(encoding="utf-8").strip() or None
        except OSError:
            return None

    def publish(self, name: str, run_id: str) -> str:
        """Propose an id, and return the one that is agreed on: the first that was proposed."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self.folder / f".tmp-{uuid.uuid4().hex}"
        draft.mkdir(mode=0o700)
        (draft / "id").write_text(run_id, encoding="utf-8")
        try:
            draft.rename(self.folder / name)
        except OSError:  # somebody was first; or, over NFS, it was done and reported as failed
            shutil.rmtree(draft, ignore_errors=True)
        agreed = self.known(name)
        if agreed is None:
            raise OSError(f"{self.folder / name} cannot be written or read")
        return agreed

    def forget(self, name: str, run_id: str) -> None:
        """Take an id back that the store no longer knows."""
        if self.known(name) == run_id:
            shutil.rmtree(self.folder / name, ignore_errors=True)
