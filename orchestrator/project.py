"""The user's project: its folder, and its runs/ folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from orchestrator.errors import RequestError
from orchestrator.layout import RunsRoot, cache_dir, short_digest
from orchestrator.system.mounts import is_network


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A folder with a user's conf/ and packages, and the folder of its experiments."""

    folder: Path
    runs: RunsRoot

    @classmethod
    def around(cls, runs: RunsRoot) -> Self:
        """Return the project as known to a process that has only the runs: its runs, and their parent folder."""
        return cls(folder=runs.path.parent, runs=runs)

    @property
    def tracking_store(self) -> Path:
        """The folder of the embedded tracking store: beside the runs, unless other machines share that filesystem.

        A database on a shared filesystem would be damaged sooner or later. There, the store is on this machine's disk
        instead, owned by the user, and filled by `orch ui` here: it can always be rebuilt from the runs.
        """
        if not is_network(self.runs.path):
            return self.runs.mlflow
        name = f"{self.folder.name}-{short_digest(str(self.runs.path.resolve()))}"
        cache = cache_dir() / "mlflow"
        own = Path("/var/tmp") / f"orchestrator-{os.getuid()}" / "mlflow"  # noqa: S108 - made private, and checked
        return (own if is_network(cache) else cache) / name

    @property
    def import_path(self) -> list[str]:
        """The folders with the project's packages: the folder itself, and src/ below it."""
        return [str(path) for path in (self.folder, self.folder / "src") if path.is_dir()]


def find_project(start: Path, *, runs: str | None = None) -> Project:
    """Return the project around a folder: the nearest folder above it with a conf/, else `start` itself.

    `runs` is the --runs option; the default is $ORCH_RUNS, then runs/ in the project's folder.
    """
    try:
        here = start.resolve(strict=True)
    except OSError as error:
        raise RequestError(
            f"there is no folder {start}", why=error.strerror or "", fix="give --project an existing folder"
        ) from error
    if not here.is_dir():
        raise RequestError(f"{start} is not a folder", fix="give --project an existing folder")
    folder = next((path for path in (here, *here.parents) if (path / "conf").is_dir()), here)
    chosen = runs or os.environ.get("ORCH_RUNS")
    return Project(folder=folder, runs=RunsRoot(Path(chosen).absolute() if chosen else folder / "runs"))
