"""The ids that a server gave an experiment's runs, agreed on through the shared runs/ folder.

A server assigns its own ids, and accepts any number of runs with the same tags. So a process that has created
one publishes its id by renaming a folder; the first wins, and the others delete the run that they created. If
a process dies before publishing, the next one finds the run by its tags, and publishes it.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from orchestrator.system.files import draft_of, make_private, read_text, take_by_rename, write_text


@dataclass(frozen=True, slots=True)
class RunIds:
    """The agreed ids of one store's runs, by run name; one folder each, with a file `id`."""

    folder: Path

    def known(self, name: str) -> str | None:
        """Return the agreed id of a name; None if there is none yet."""
        try:
            return read_text(self.folder / name / "id").strip() or None
        except OSError:
            return None

    def publish(self, name: str, run_id: str) -> str:
        """Propose an id, and return the agreed one: the first that was proposed."""
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
        """Remove an agreed id that no longer exists in the store."""
        if self.known(name) == run_id:
            shutil.rmtree(self.folder / name, ignore_errors=True)
