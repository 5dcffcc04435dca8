"""Which of a server's runs is ours: agreed on through the runs/ folder, which all who write share.

A server gives out its own ids, and takes any number of runs with the same tags. So whoever has made one
publishes its id by renaming a folder; the first wins, and the others delete what they made. One who dies
before publishing leaves a run that the next finds by its tags, and publishes.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from orchestrator.system.files import draft_of, make_private, read_text, take_by_rename, write_text


@dataclass(frozen=True, slots=True)
class RunIds:
    """The agreed ids of one store's runs, by names of ours; one folder each, which holds a file `id`."""

    folder: Path

    def known(self, name: str) -> str | None:
        """Return the agreed id of a name."""
        try:
            return read_text(self.folder / name / "id").strip() or None
        except OSError:
            return None

    def publish(self, name: str, run_id: str) -> str:
        """Propose an id, and return the one that is agreed on: the first that was proposed."""
        make_private(self.folder)
        place = self.folder / name
        with draft_of(place) as draft:
            make_private(draft)
            write_text(draft / "id", run_id)
            take_by_rename(draft, place, mine=lambda: self.known(name) == run_id)
        agreed = self.known(name)
        if agreed is None:
            raise OSError(f"{place} cannot be written or read")
        return agreed

    def forget(self, name: str, run_id: str) -> None:
        """Take an id back that the store no longer knows."""
        if self.known(name) == run_id:
            shutil.rmtree(self.folder / name, ignore_errors=True)
