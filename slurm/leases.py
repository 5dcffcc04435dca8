"""Who may submit a launch, and what has been submitted: launches/NNNN/turns/0001/.

A lease is taken by renaming a folder, with the claim and all arrays known by then in it, to the next number: the
rename is the only lock, and the last lease says everything. It is over when its last file says so, or when its
submitter is dead; who takes the next one first finds what the dead one handed over and could not write down.
A submitter that was only thought dead sees the next lease before its next sbatch, and stops. What it may have handed
over in that very moment does no harm: a run's attempt is claimed once, and its other job ends at once.
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
    """One submitted array: Slurm's id of it, and the tasks of the plan that it holds; of a pack only the first."""

    id: str
    offset: int
    indices: tuple[int, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(id=str(value["job"]), offset=int(value["offset"]), indices=tuple(map(int, value["indices"])))

    def to_json(self) -> dict[str, object]:
        return {"job": self.id, "offset": self.offset, "indices": self.indices}

    def name(self, index: int) -> str:
        """Return what Slurm calls a task."""
        return f"{self.id}_{index - self.offset}"


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a lease ended: with nothing left, or why something is. What was `refused` is never submitted.

    `lost_seconds`: for so long after `time` Slurm may yet take what it has not answered for; 0: it has answered.
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
    """A lease as it was when it was read: who took it, all arrays known, and its end if it is over.

    `job`: Slurm's name of the job at whose end it was taken; empty where a person's command took it. `cluster`: the
    name of the Slurm that the launch is submitted to; empty where that is not known.
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
    """Another submitter took us for dead, and goes on in our place."""


def lease_lost() -> LeaseLostError:
    """Return the error of a submitter that has lost its lease."""
    return LeaseLostError("another process submits this launch", why="it took this one for dead", fix="orch status")


def last(launch: LaunchPaths) -> SubmitLease | None:
    """Return the last lease, which knows what all before it did; None where none was taken."""
    for _ in range(_TRIES):
        paths = launch.leases()
        if not paths:
            return None
        with suppress(FileNotFoundError):  # deleted since the listing: there are later ones
            return _read(paths[-1])
    raise StateError(f"{launch.lease(1).path.parent} cannot be read", why="it changes all the time", fix="try again")


def _read(paths: LeasePaths) -> SubmitLease:
    # Its end first: what is read afterwards is then all that it came to.
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
    """Take the lease after number `after`; None if somebody else has it. `jobs` are all arrays known by now."""
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
    """The lease that this process has taken."""

    def __init__(self, launch: LaunchPaths, paths: LeasePaths, jobs: Sequence[Job]) -> None:
        self._launch, self._paths, self._jobs, self._before = launch, paths, list(jobs), len(jobs)

    @property
    def number(self) -> int:
        return self._paths.number

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All arrays known by now."""
        return tuple(self._jobs)

    @property
    def tasks(self) -> tuple[int, ...]:
        """The tasks that were submitted in this lease."""
        return tuple(index for job in self._jobs[self._before :] for index in job.indices)

    def renew(self) -> None:
        """Give a sign of life. Raises LeaseLostError if somebody else goes on in our place."""
        if self._lost():
            raise lease_lost()
        os.utime(self._launch.path)

    def add(self, job: Job) -> None:
        """Write down an array that Slurm has taken."""
        self._jobs.append(job)
        with suppress(FileNotFoundError):  # we were taken for dead: who goes on finds the array in Slurm
            _write_jobs(self._paths, self._jobs)

    def finish(self, *, reason: str = "", refused: bool = False, lost_seconds: float = 0.0) -> None:
        """Say that it is over, with nothing left or for which reason."""
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
