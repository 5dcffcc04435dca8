"""Whose runs these are. What this user made here is theirs to act on; everything else is data, only to be read.

To act is to submit, notify, register, upload, delete or execute, and to use credentials. It takes that the
experiment's folder and those in it belong to this user, that nobody else may write them, that no link of others leads
there, and that the launches were made here (`launches.was_made_here`): a copy, even one's own, is not them. A job may
run where the home cannot be seen: it proves itself by the token of its launch, which its batch script hands it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from orchestrator.errors import StateError
from orchestrator.layout import ExperimentPaths
from orchestrator.records.launches import Launch, read_launch, was_made_here
from orchestrator.system.files import doubt, user_of

LAUNCH_ID = "ORCH_LAUNCH_ID"
"""In the environment of a job: the token of the launch that it belongs to."""


def why_read_only(experiment: ExperimentPaths, launches: Iterable[Launch] | None = None) -> str:
    """Return why an experiment is only to be read; nothing where it is this user's to act on.

    `launches` are all of its launches, or those that matter; None: all are read. One that was not made here is enough.
    """
    known = list(map(read_launch, experiment.launches())) if launches is None else list(launches)
    if why := unprotected(experiment, known):
        return why
    if os.environ.get(LAUNCH_ID) in {launch.token for launch in known}:
        return ""
    foreign = [launch for launch in known if not was_made_here(launch)]
    if not foreign:
        return ""
    number = f"launch {foreign[0].number:04d}"
    return f"{number} was not made here, but copied or by an older version; `orch adopt {experiment.name}` makes it so"


def unprotected(experiment: ExperimentPaths, launches: Iterable[Launch] = ()) -> str:
    """Return what of an experiment's folders is another's, or may be written by others; nothing where they are safe."""
    if link := _foreign_link(experiment.path):
        return f"{link} is a link of {user_of(link.lstat().st_uid)}, and could lead anywhere"
    real = ExperimentPaths(experiment.path.resolve())
    below = ("launches", "runs", "code", "data", "tracking", "index")
    folders = [real.path, *(real.path / name for name in below), *(real.launch(each.number).path for each in launches)]
    for folder in folders:
        if why := _doubt(folder):
            return why if folder != real.path else _whose(folder) or why
    return ""


def require(experiment: ExperimentPaths, launches: Iterable[Launch] | None = None) -> None:
    """Raise StateError where an experiment is only to be read."""
    if why := why_read_only(experiment, launches):
        adopt = f"orch adopt {experiment.name}, if they are your own; else launch under another name, or with --runs"
        fix = f"chmod -R go-w {experiment.path}" if "others may write" in why else adopt
        raise StateError(f"{experiment.name} is read only", why=why, fix=fix)


def _whose(folder: Path) -> str:
    owner = folder.stat().st_uid
    return "" if owner == os.getuid() else f"these runs belong to {user_of(owner)}"


def _doubt(folder: Path) -> str:
    try:
        why = doubt(folder, os.getuid())
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{folder} cannot be looked at: {error.strerror}"
    return f"{folder}: {why}" if why else ""


def _foreign_link(path: Path) -> Path | None:
    """Return the first link on the way to a folder that neither this user nor root has made."""
    for part in reversed([path, *path.parents]):
        try:
            status = part.lstat()
        except OSError:
            return None
        if stat.S_ISLNK(status.st_mode) and status.st_uid not in {os.getuid(), 0}:
            return part
    return None
