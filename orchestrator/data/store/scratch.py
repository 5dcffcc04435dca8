"""Scratch: the folder on a node's own disk that belongs to this user alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from string import Template
from tempfile import mkdtemp

from orchestrator.errors import DataError
from orchestrator.system.files import doubt

log = logging.getLogger(__name__)


def scratch_dir(configured: str | None, environ: Mapping[str, str], *, uid: int | None = None) -> Path:
    """Return the user's folder on scratch, made if needed: `<base>/orchestrator-<uid>`.

    The base is the configured one (`$NAME` and `~` are replaced), else `$SLURM_TMPDIR`, `$TMPDIR` or
    /tmp, whichever exists first. Where somebody else has taken the name, or may write to it, the folder is
    `orchestrator-<uid>-<random>`, the same for all runs on the node. Raises DataError if none can be made.
    """
    owner = os.getuid() if uid is None else uid
    base = scratch_base(configured, environ)
    folder = base / f"orchestrator-{owner}"
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if why := doubt(folder, owner):
            other = _other(base, owner)
            log.warning("scratch folder %s is not used: %s; %s is", folder, why, other)
            return other
    except OSError as error:
        raise _unusable(folder, error.strerror or str(error)) from error
    return folder


def taken(configured: str | None, environ: Mapping[str, str]) -> str:
    """Return why the user's folder on scratch has another name than usual; nothing where it has not."""
    folder = scratch_base(configured, environ) / f"orchestrator-{os.getuid()}"
    try:
        why = doubt(folder, os.getuid())
    except OSError:  # it is not there yet
        return ""
    return f"scratch {folder} is not used: {why}; runs use a folder of another name beside it" if why else ""


def _other(base: Path, owner: int) -> Path:
    """Return the user's folder of a name that nobody could foresee: an earlier run's, or a new one."""
    prefix = f"orchestrator-{owner}-"
    if found := _own(base, prefix, owner):
        return found[0]
    made = Path(mkdtemp(prefix=prefix, dir=base))
    first = next(iter(_own(base, prefix, owner)), made)
    if first != made:  # another run has made one at the same moment
        made.rmdir()
    return first


def _own(base: Path, prefix: str, owner: int) -> list[Path]:
    found = [base / name for name in sorted(os.listdir(base)) if name.startswith(prefix)]
    return [path for path in found if _is_own(path, owner)]


def _is_own(path: Path, owner: int) -> bool:
    try:
        return not doubt(path, owner)
    except OSError:
        return False


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


def _unusable(folder: Path, why: str) -> DataError:
    fix = f"set the site's scratch folder to one on this node's disk, or put {folder} right"
    return DataError(f"scratch folder {folder} cannot be used", why=why, fix=fix)
