"""What Slurm says of a user's jobs: squeue's answer, shared for a second by all who look, and sacct's.

That a job is not there is only ever concluded from an answer that was asked for after it was looked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from orchestrator.errors import ClusterError
from orchestrator.layout import LaunchPaths, cache_dir
from orchestrator.records.launches import read_launch
from orchestrator.slurm import commands, leases
from orchestrator.slurm.states import SACCT, SQUEUE, TIMES, Seen, parse
from orchestrator.system.cache import Answers
from orchestrator.system.processes import ProgramError

_FRESH_SECONDS = 1.0
_NAME_SECONDS = 600.0
_WITH_PROCESSES = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})
_NO_ACCOUNTING = re.compile(
    r"accounting[ _]storage (is disabled|plugin)|supported accounting_storage|command not found", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Whose:
    """Whose jobs are asked for: a user (a uid), and the cluster, empty where it is this machine's own."""

    user: int
    cluster: str = ""

    @classmethod
    def of(cls, launch: LaunchPaths) -> Self:
        """Return whose the jobs of a launch are, and the cluster that they went to."""
        return cls(launch.path.stat().st_uid, cluster_of(launch))


def cluster_of(launch: LaunchPaths) -> str:
    """Return the cluster to ask about a launch: the one it was sent to, or that took it; empty: this machine's own."""
    if chosen := read_launch(launch).header.cluster.get("clusters"):
        return str(chosen)
    last = leases.last(launch)
    return last.cluster if last and last.cluster and own_cluster() not in {"", last.cluster} else ""


def own_cluster() -> str:
    """Return the name of the Slurm that this machine's commands talk to; empty where it does not answer.

    A home may be shared by clusters: each counts its jobs from 1, and knows nothing of the others'.
    """
    if name := os.environ.get("SLURM_CLUSTER_NAME"):
        return name
    question = ("cluster", os.uname().nodename, os.environ.get("SLURM_CONF", ""))
    if known := _answers().read(*question, seconds=_NAME_SECONDS):
        return str(known)
    try:
        found = re.search(r"^ClusterName\s*=\s*(\S+)", commands.run(["scontrol", "show", "config"]), re.MULTILINE)
    except ProgramError:
        return ""
    if found:
        _answers().write(found[1], *question)
    return found[1] if found else ""


def tasks(whose: Whose, wanted: Collection[str]) -> Mapping[str, Seen]:
    """Return what squeue, and sacct where there is accounting, say of these tasks of a user.

    Raises ClusterError where Slurm does not answer. A task that is missing is one that Slurm has forgotten.
    """
    seen = _recent(whose)
    if not set(wanted) <= seen.keys():
        seen = queue(whose)
    missing = sorted({name.partition("_")[0] for name in wanted if name not in seen})
    return {**(_account(missing, whose.cluster) if missing else {}), **seen}


def queue(whose: Whose) -> dict[str, Seen]:
    """Return what squeue says now of all tasks of a user."""
    try:
        text = commands.run([*SQUEUE, f"--user={whose.user}"], cluster=whose.cluster, env=TIMES)
    except ProgramError as error:
        raise ClusterError("squeue failed", why=commands.last_line(error.stderr), fix=commands.FIX) from error
    _answers().write(text, *_question(whose))
    return _by_name(text)


def job_runs(job: str) -> bool | None:
    """Return whether a job may have processes on a node; None if Slurm does not answer."""
    try:
        states = commands.run(["squeue", "--all", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"]).split()
    except ProgramError as error:
        return False if "Invalid job id" in error.stderr else None
    return any(state in _WITH_PROCESSES for state in states)


def _recent(whose: Whose) -> dict[str, Seen]:
    return _by_name(str(_answers().read(*_question(whose), seconds=_FRESH_SECONDS) or ""))


def _answers() -> Answers:
    return Answers(cache_dir() / "slurm")


def _question(whose: Whose) -> tuple[str | int, ...]:
    return (SQUEUE[-1], whose.user, whose.cluster, os.environ.get("SLURM_CONF", ""))


def _by_name(text: str) -> dict[str, Seen]:
    return {item.job: item for item in parse(text)}


def _account(jobs: Sequence[str], cluster: str) -> dict[str, Seen]:
    """Return sacct's answer about jobs that squeue has forgotten; nothing where there is no accounting."""
    try:
        chosen = [f"--clusters={cluster}"] if cluster else []  # it does not read SLURM_CLUSTERS
        return _by_name(commands.run([*SACCT, *chosen, "--jobs", ",".join(jobs)], env=TIMES))
    except ProgramError as error:
        if _NO_ACCOUNTING.search(error.stderr) or isinstance(error.__cause__, FileNotFoundError):
            return {}
        raise ClusterError("sacct failed", why=commands.last_line(error.stderr), fix=commands.FIX) from error
