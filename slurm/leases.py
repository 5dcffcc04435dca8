"""The lease to submit a launch, and the record of what has been submitted: launches/NNNN/turns/0001/.

A process takes a lease by renaming a folder, which holds its claim and all arrays known so far, to the next number. The
rename is the only lock, and the last lease has the complete record. A lease ends when its end file is written, or when
its submitter is dead; the process that takes the next one first looks for arrays that the dead submitter submitted but
could not record. A submitter that was wrongly considered dead sees the next lease before its next sbatch, and stops. An
array that it submits in that very moment does no harm: a run's attempt is claimed once, and the other job ends at once.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from orchestrator.errors import ClusterError, StateError
from orchestrator.layout import LaunchPaths, LeasePaths
from orchestrator.system.files import (
    draft_of,
    make_private,
    parsing,
    read_bytes,
    read_text,
    replace_text,
    take_by_rename,
    write_text,
)
from orchestrator.system.processes import ProcessId

_TRIES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One submitted array: its job id in Slurm, and the plan's tasks in it; a pack is listed by its first task."""

    id: str
    offset: int
    indices: tuple[int, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(id=str(value["job"]), offset=int(value["offset"]), indices=tuple(map(int, value["indices"])))

    def to_json(self) -> dict[str, object]:
        return {"job": self.id, "offset": self.offset, "indices": self.indices}

    def name(self, index: int) -> str:
        """Return Slurm's name of a task: `<array job>_<index>`."""
        return f"{self.id}_{index - self.offset}"


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The end of a lease. `reason`: why tasks are left; empty if none are. Tasks that were `refused` stay unsubmitted.

    `lost_seconds`: for how long after `time` Slurm may still accept a request that it did not answer; 0: none is open.
    """

    reason: str = ""
    refused: bool = False
    time: float = 0.0
    lost_seconds: float = 0.0

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return an end; keys of a newer version are ignored."""
        refused = value.get("refused", False)
        if not isinstance(refused, bool):
            raise TypeError(f"refused is {refused!r}")
        seconds = {key: float(value.get(key, 0.0)) for key in ("time", "lost_seconds")}
        return cls(reason=str(value.get("reason", "")), refused=refused, **seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitLease:
    """A lease as it was when it was read: its submitter, all arrays known, and its end if it has ended.

    `job`: Slurm's name of the job at whose end it was taken; empty if a user's command took it. `cluster`: the name of
    the Slurm cluster that the launch is submitted to; empty if that is not known.
    """

    number: int
    submitter: ProcessId
    job: str
    jobs: tuple[Job, ...]
    end: End | None
    cluster: str = ""

    @property
    def holder(self) -> str:
        return f"job {self.job}" if self.job else f"process {self.submitter.pid} on {self.submitter.host}"


class LeaseLostError(ClusterError):
    """Another submitter considered this one dead, and has taken over."""


def lease_lost() -> LeaseLostError:
    """Return the error of a submitter that has lost its lease."""
    return LeaseLostError("another process submits this launch", why="it considered this one dead", fix="orch status")


def last(launch: LaunchPaths) -> SubmitLease | None:
    """Return the last lease, whose record includes all earlier ones; None if none was taken."""
    for _ in range(_TRIES):
        paths = launch.leases()
        if not paths:
            return None
        with suppress(FileNotFoundError):  # deleted since the listing, so there is a later one
            return _read(paths[-1])
    raise StateError(f"{launch.lease(1).path.parent} cannot be read", why="it changes all the time", fix="try again")


def _read(paths: LeasePaths) -> SubmitLease:
    # The end is read first: if it is there, what is read afterwards is final.
    end = None
    with suppress(FileNotFoundError), parsing(paths.end):
        end = End.from_json(json.loads(read_bytes(paths.end)))
    with parsing(paths.claim):
        claim = json.loads(read_bytes(paths.claim))
        submitter, job = ProcessId.from_json(claim["process"]), str(claim["job"])
        cluster = str(claim.get("cluster", ""))
    with parsing(paths.jobs):
        jobs = tuple(Job.from_json(entry) for entry in json.loads(read_bytes(paths.jobs)))
    return SubmitLease(number=paths.number, submitter=submitter, job=job, end=end, jobs=jobs, cluster=cluster)


def take(launch: LaunchPaths, *, after: int, jobs: Sequence[Job], job: str, cluster: str = "") -> OwnLease | None:
    """Take the lease after number `after`; None if another process has it. `jobs` are all arrays known so far."""
    paths = launch.lease(after + 1)
    mine = {"process": ProcessId.current().to_json(), "job": job, "cluster": cluster, "token": uuid.uuid4().hex}
    claim = json.dumps(mine)
    with draft_of(paths.path) as draft:
        make_private(draft)
        write_text(LeasePaths(draft).claim, claim)
        _write_jobs(LeasePaths(draft), jobs)
        if not take_by_rename(draft, paths.path, mine=lambda: _is(paths.claim, claim)):
            return None
    for earlier in launch.leases():
        if earlier.number < after:
            shutil.rmtree(earlier.path, ignore_errors=True)
    make_private(launch.pending_mark.parent)
    launch.pending_mark.touch(mode=0o600)
    return OwnLease(launch, paths, jobs)


class OwnLease:
    """A lease that this process has taken."""

    def __init__(self, launch: LaunchPaths, paths: LeasePaths, jobs: Sequence[Job]) -> None:
        self._launch, self._paths, self._jobs, self._before = launch, paths, list(jobs), len(jobs)

    @property
    def number(self) -> int:
        return self._paths.number

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All arrays known so far."""
        return tuple(self._jobs)

    @property
    def tasks(self) -> tuple[int, ...]:
        """The tasks that were submitted under this lease."""
        return tuple(index for job in self._jobs[self._before :] for index in job.indices)

    def renew(self) -> None:
        """Show that this process is alive. Raises LeaseLostError if another process has taken over."""
        if self._lost():
            raise lease_lost()
        os.utime(self._launch.path)

    def add(self, job: Job) -> None:
        """Record an array that Slurm has accepted."""
        self._jobs.append(job)
        with suppress(FileNotFoundError):  # another process has taken over, and finds the array in Slurm
            _write_jobs(self._paths, self._jobs)

    def finish(self, *, reason: str = "", refused: bool = False, lost_seconds: float = 0.0) -> None:
        """Record the end of the lease, with the reason if tasks are left."""
        if self._lost():
            return
        if refused or not reason:
            self._launch.pending_mark.unlink(missing_ok=True)
        end = End(reason=reason, refused=refused, time=time.time(), lost_seconds=lost_seconds)
        with suppress(FileNotFoundError):
            replace_text(self._paths.end, json.dumps(asdict(end)))

    def _lost(self) -> bool:
        return self._launch.leases()[-1:] != [self._paths]


def _write_jobs(paths: LeasePaths, jobs: Sequence[Job]) -> None:
    replace_text(paths.jobs, json.dumps([job.to_json() for job in jobs]))


def _is(path: Path, text: str) -> bool:
    try:
        return read_text(path) == text
    except OSError:
        return False
