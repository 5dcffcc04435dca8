"""What Slurm says of a user's jobs: squeue's answer, shared for a second by all who look, and sacct's.

That a job is not there is only ever concluded from an answer that was asked for after it was looked for.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from orchestrator import ledger
from orchestrator.errors import ClusterError
from orchestrator.layout import cache_dir
from orchestrator.process import ProgramError, run
from orchestrator.slurm.states import SACCT, SQUEUE, TIMES, Seen, parse

BUSY = re.compile(r"socket timed out|try again|slurm_load|slow response|unable to contact", re.IGNORECASE)
_ANSWER_SECONDS = 60.0
_FRESH_SECONDS = 1.0
_WITH_PROCESSES = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})
_FIX = "is this a Slurm login node, and does `sinfo` answer?"


def ask(argv: Sequence[str], *, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> str:
    """Return what one of Slurm's commands prints. Raises ClusterError with its last words."""
    try:
        return run(argv, stdin=stdin, env=env, timeout_s=_ANSWER_SECONDS).decode(errors="replace")
    except ProgramError as error:
        raise ClusterError(f"{argv[0]} failed", why=last_line(error.stderr), fix=_FIX) from error


def tasks(user: int, wanted: Collection[str]) -> Mapping[str, Seen]:
    """Return what squeue, and sacct where there is accounting, say of these tasks of a user (a uid).

    Raises ClusterError where Slurm does not answer. A task that is missing is one that Slurm has forgotten.
    """
    seen = _recent(user)
    if not set(wanted) <= seen.keys():
        seen = queue(user)
    missing = sorted({name.partition("_")[0] for name in wanted if name not in seen})
    return {**(_account(missing) if missing else {}), **seen}


def queue(user: int) -> dict[str, Seen]:
    """Return what squeue says now of all tasks of a user."""
    text = ask([*SQUEUE, f"--user={user}"], env=TIMES)
    path = _cache(user)
    ledger.make_private(path.parent)
    ledger.replace_text(path, text)
    return _by_name(text)


def job_runs(job: str) -> bool | None:
    """Return whether a job may have processes on a node; None if Slurm does not answer."""
    try:
        argv = ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"]
        states = run(argv, timeout_s=_ANSWER_SECONDS).decode(errors="replace").split()
    except ProgramError as error:
        return False if "Invalid job id" in error.stderr else None
    return any(state in _WITH_PROCESSES for state in states)


def last_line(text: str) -> str:
    """Return the last line that says something, without the program's name before it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^\w+: (error: )?", "", lines[-1]) if lines else "no message"


def _recent(user: int) -> dict[str, Seen]:
    path = _cache(user)
    try:
        fresh = 0 <= time.time() - path.stat().st_mtime < _FRESH_SECONDS
        return _by_name(path.read_text(encoding="utf-8", errors="replace")) if fresh else {}
    except OSError:
        return {}


def _cache(user: int) -> Path:
    cluster = hashlib.sha256(os.environ.get("SLURM_CONF", "").encode()).hexdigest()[:8]
    return cache_dir() / "slurm" / f"queue.{user}.{cluster}"


def _by_name(text: str) -> dict[str, Seen]:
    return {item.job: item for item in parse(text)}


def _account(jobs: Sequence[str]) -> dict[str, Seen]:
    """Return sacct's answer about jobs that squeue has forgotten; nothing where there is no accounting."""
    try:
        argv = [*SACCT, "--jobs", ",".join(jobs)]
        return _by_name(run(argv, env=TIMES, timeout_s=_ANSWER_SECONDS).decode(errors="replace"))
    except ProgramError as error:
        if "accounting storage is disabled" in error.stderr:
            return {}
        raise ClusterError("sacct failed", why=last_line(error.stderr), fix=_FIX) from error
