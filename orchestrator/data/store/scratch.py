"""Scratch: the folder on a node's own disk that belongs to this user alone."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from string import Template

from orchestrator.errors import DataError

log = logging.getLogger(__name__)

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def scratch_dir(configured: str | None, environ: Mapping[str, str], *, uid: int | None = None) -> Path:
    """Return the user's folder on scratch, made if needed: `<base>/orchestrator-<uid>`.

    The base is the configured one (`$NAME` and `~` are replaced), else `$SLURM_TMPDIR`, `$TMPDIR` or
    /tmp, whichever exists first. Raises DataError if the folder cannot be trusted.
    """
    owner = os.getuid() if uid is None else uid
    folder = scratch_base(configured, environ) / f"orchestrator-{owner}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        _check(folder, folder.lstat(), owner)
    except OSError as error:
        raise _unusable(folder, error.strerror or str(error)) from error
    return folder


def scratch_base(configured: str | None, environ: Mapping[str, str]) -> Path:
    """Return the folder of the node that `scratch_dir` makes the user's in. Raises DataError if it is none."""
    if configured is not None:
        base = Path(Template(configured).safe_substitute(environ)).expanduser()
        if not base.is_absolute() or not base.is_dir():
            raise _unusable(base, "it is not an absolute path of an existing folder on this node")
        return base
    for name in ("SLURM_TMPDIR", "TMPDIR"):
        if value := environ.get(name):
            if Path(value).is_absolute() and Path(value).is_dir():
                return Path(value)
            # sbatch exports the login node's TMPDIR, which need not exist here
            log.warning("%s=%s is not a folder on this node", name, value)
    return Path("/tmp")  # noqa: S108 - what is made in it is checked to be ours


def _check(folder: Path, status: os.stat_result, owner: int) -> None:
    if stat.S_ISLNK(status.st_mode):
        raise _unusable(folder, "it is a symbolic link, and could lead anywhere")
    if not stat.S_ISDIR(status.st_mode):
        raise _unusable(folder, "it is not a folder")
    if status.st_uid != owner:
        raise _unusable(folder, f"it belongs to the user with uid {status.st_uid}, not {owner}")
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise _unusable(folder, f"others may write into it (mode {stat.S_IMODE(status.st_mode):04o})")


def _unusable(folder: Path, why: str) -> DataError:
    fix = f"set the site's scratch folder to one on this node's disk, or put {folder} right"
    return DataError(f"scratch folder {folder} cannot be used", why=why, fix=fix)
