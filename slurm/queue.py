"""The state of a user's jobs in Slurm, from squeue, whose answer all processes share for a second, and from sacct.

squeue knows the queue: a job that it does not list is not queued, whatever sacct says, which may be hours behind. sacct
knows how jobs ended. If one of the two does not answer, the answer of the other is used, and what only the silent one
could know is unknown.
That a job is missing is only ever concluded from an answer to a query made for that purpose, never from a shared one.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from orchestrator.cluster import JobState, Observation
from orchestrator.errors import ClusterError
from orchestrator.layout import LaunchPaths, cache_dir
from orchestrator.records.launches import read_launch
from orchestrator.slurm import commands, leases
from orchestrator.slurm.states import SACCT, SQUEUE, TIMES, SlurmTask, parse
from orchestrator.system.cache import Answers
from orchestrator.system.processes import ProgramError
from orchestrator.system.units import about

_FRESH_SECONDS = 1.0
_NAME_SECONDS = 600.0
_ANSWER_SECONDS = 10.0
_PATIENCE_SECONDS = 2.0  # if squeue takes longer, sacct is asked at the same time
_SHORT_SECONDS = 1.0  # a failure that took no longer is not remembered
_WITH_PROCESSES = frozenset({"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"})
_NO_ACCOUNTING = re.compile(
    r"accounting[ _]storage (is disabled|plugin)|supported accounting_storage|command not found", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class QueueScope:
    """The scope of a query: a user (a uid), and a cluster; empty: this machine's own."""

    user: int
    cluster: str = ""

    @classmethod
    def of(cls, launch: LaunchPaths) -> Self:
        """Return the owner of a launch's jobs, and the cluster that they were submitted to."""
        return cls(launch.path.stat().st_uid, cluster_of(launch))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer of squeue or sacct: tasks by name; or `silent`, the reason why it did not answer.

    `last` is its latest answer before it fell silent, and `age` the age of that in seconds.
    """

    seen: Mapping[str, SlurmTask] = field(default_factory=dict)
    silent: str = ""
    last: Mapping[str, SlurmTask] = field(default_factory=dict)
    age: float = 0.0


def cluster_of(launch: LaunchPaths) -> str:
    """Return the cluster to ask about a launch: the one that it was submitted to; empty: this machine's own."""
    if chosen := read_launch(launch).header.cluster.get("clusters"):
        return str(chosen)
    last = leases.last(launch)
    return last.cluster if last and last.cluster and own_cluster() not in {"", last.cluster} else ""


def own_cluster() -> str:
    """Return the name of the cluster that this machine's commands talk to; empty if Slurm does not answer.

    Clusters may share a home folder: each counts its jobs from 1, and does not know those of the others.
    """
    if name := os.environ.get("SLURM_CLUSTER_NAME"):
        return name
    question = ("cluster", os.uname().nodename, os.environ.get("SLURM_CONF", ""))
    if known := _answers().read(*question, seconds=_NAME_SECONDS):
        return str(known)
    try:
        text = _ask(("scontrol", "show", "config"), question)
    except ProgramError:
        return str(_answers().read(*question) or "")  # a cluster is hardly ever renamed
    found = re.search(r"^ClusterName\s*=\s*(\S+)", text, re.MULTILINE)
    if found:
        _answers().write(found[1], *question)
    return found[1] if found else ""


def tasks(scope: QueueScope, wanted: Collection[str]) -> Mapping[str, SlurmTask]:
    """Return the state of these tasks of a user from squeue and, if there is accounting, sacct.

    A task is UNKNOWN if the command that could know it did not answer; it is missing if Slurm has forgotten it.
    """
    seen = _recent(scope)
    if set(wanted) <= seen.keys():
        return seen
    squeue, sacct = _both(scope, wanted)
    return combine(wanted, squeue, sacct)


def combine(wanted: Collection[str], squeue: Answer, sacct: Answer) -> dict[str, SlurmTask]:
    """Combine both answers for these tasks, and add the other tasks in squeue's. Pure."""
    found = dict(squeue.seen)
    for name in set(wanted) - found.keys():
        told = sacct.seen.get(name)
        state = told.observation.state if told else None
        if told and state is JobState.ENDED and (told.lasting or not squeue.silent):
            found[name] = told
        elif squeue.silent or (sacct.silent and told is None):
            found[name] = _unknown(name, _silence(name, told, squeue, sacct))
        elif told and state is JobState.UNKNOWN:
            found[name] = told
    return found


def _silence(name: str, told: SlurmTask | None, squeue: Answer, sacct: Answer) -> str:
    if not squeue.silent:
        return f"squeue no longer knows its job, and sacct does not answer: {sacct.silent}"
    before = squeue.last.get(name)
    heard = [f"{about(squeue.age)} ago it said {before.observation.state.value}"] if before else []
    heard += [f"sacct says {told.observation.state.value}"] if told else []
    heard += [f"nor does sacct: {sacct.silent}"] if sacct.silent else []
    return f"squeue does not answer: {squeue.silent}" + (f" ({'; '.join(heard)})" if heard else "")


def _unknown(name: str, reason: str) -> SlurmTask:
    return SlurmTask(job=name, observation=Observation(state=JobState.UNKNOWN, reason=reason, job=name))


def _both(scope: QueueScope, wanted: Collection[str]) -> tuple[Answer, Answer]:
    """Ask squeue, then sacct about tasks that squeue does not list; about all of them at once if squeue is slow."""
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(_squeue(scope)), daemon=True)
    thread.start()
    thread.join(_PATIENCE_SECONDS)
    sacct = _sacct(wanted, scope.cluster) if thread.is_alive() else None
    thread.join()
    squeue = answers[0]
    missing = set(wanted) - squeue.seen.keys()
    return squeue, sacct or (_sacct(missing, scope.cluster) if missing else Answer())


def queue(scope: QueueScope) -> dict[str, SlurmTask]:
    """Ask squeue for all tasks of a user, and share the answer. Raises ClusterError if it does not answer."""
    try:
        text = _ask((*SQUEUE, f"--user={scope.user}"), _question(scope), cluster=scope.cluster)
    except ProgramError as error:
        raise ClusterError("squeue failed", why=commands.last_line(error.stderr), fix=commands.FIX) from error
    _answers().write([time.time(), text], *_question(scope))
    return _by_name(text)


def listed(scope: QueueScope) -> Mapping[str, SlurmTask]:
    """Return an answer of squeue that is at most a second old. Raises ClusterError if squeue does not answer."""
    return _recent(scope) or queue(scope)


def job_runs(job: str) -> bool | None:
    """Return whether a job may have processes on a node; None if Slurm does not answer."""
    try:
        states = commands.run(["squeue", "--all", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"]).split()
    except ProgramError as error:
        return False if "Invalid job id" in error.stderr else None
    return any(state in _WITH_PROCESSES for state in states)


def _recent(scope: QueueScope) -> dict[str, SlurmTask]:
    return _by_name(_kept(scope, seconds=_FRESH_SECONDS)[1])


def _kept(scope: QueueScope, seconds: float | None = None) -> tuple[float, str]:
    """Return the time and the text of squeue's latest shared answer."""
    match _answers().read(*_question(scope), seconds=seconds):
        case [float(when), str(text)]:
            return when, text
    return 0.0, ""


def _squeue(scope: QueueScope) -> Answer:
    try:
        return Answer(seen=queue(scope))
    except ClusterError as error:
        when, text = _kept(scope)
        return Answer(silent=error.why, last=_by_name(text), age=max(0.0, time.time() - when))


def _sacct(names: Collection[str], cluster: str) -> Answer:
    """Ask sacct about jobs. Without accounting the answer is empty, but not silent."""
    jobs = ",".join(sorted({name.partition("_")[0] for name in names}))
    chosen = [f"--clusters={cluster}"] if cluster else []  # it does not read SLURM_CLUSTERS
    question = ("sacct", cluster, os.environ.get("SLURM_CONF", ""))
    try:
        return Answer(seen=_by_name(_ask((*SACCT, *chosen, "--jobs", jobs), question)))
    except ProgramError as error:
        if _NO_ACCOUNTING.search(error.stderr) or isinstance(error.__cause__, FileNotFoundError):
            return Answer()
        return Answer(silent=commands.last_line(error.stderr))


def _ask(argv: Sequence[str], question: Sequence[object], *, cluster: str = "") -> str:
    """Run a query with a short timeout. A failure is remembered as long as it took: many launches wait only once."""
    silence = _answers().read("silence", *question)
    if silence and 0 < silence["until"] - time.time() < _ANSWER_SECONDS * 2:
        raise ProgramError(argv, None, silence["why"])
    began = time.monotonic()
    try:
        return commands.run(argv, cluster=cluster, env=TIMES, timeout_s=_ANSWER_SECONDS)
    except ProgramError as error:
        took = time.monotonic() - began
        if took > _SHORT_SECONDS:
            _answers().write({"why": error.stderr, "until": time.time() + took}, "silence", *question)
        raise


def _answers() -> Answers:
    return Answers(cache_dir() / "slurm")


def _question(scope: QueueScope) -> tuple[str | int, ...]:
    return (SQUEUE[-1], scope.user, scope.cluster, os.environ.get("SLURM_CONF", ""))


def _by_name(text: str) -> dict[str, SlurmTask]:
    return {item.job: item for item in parse(text)}
