"""The tasks of a launch as processes of this machine: how one is started, and what is seen of it."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol

from orchestrator import ledger
from orchestrator.layout import AttemptPaths, ExperimentPaths, LaunchPaths
from orchestrator.process import ProcessId
from orchestrator.record import Claim, JobState, Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One line of a launch's plan, on this machine."""

    launch: LaunchPaths
    index: int
    run_id: str
    attempt: int
    code: str
    cpus: int
    seconds: float | None

    @classmethod
    def of(cls, launch: LaunchPaths, line: Mapping[str, Any]) -> Task:
        hours = line["resources"]["hours"]
        return cls(
            launch=launch, index=line["index"], run_id=line["run"], attempt=line["attempt"],
            code=line["code"], cpus=line["resources"]["cpus_per_node"], seconds=hours * 3600 if hours else None,
        )  # fmt: skip

    @property
    def experiment(self) -> ExperimentPaths:
        return self.launch.experiment

    @property
    def folder(self) -> AttemptPaths:
        return self.experiment.run(self.run_id).attempt(self.attempt)

    @property
    def cancelled(self) -> bool:
        return (self.launch.cancelled / self.run_id).exists()


class Handle(Protocol):
    """A process of a task, started here or found running."""

    def ended(self) -> int | None:
        """Return the exit status (negative: a signal; 0 if it is not known), None while it runs."""

    def signal(self, number: int) -> None:
        """Send a signal to the task's process group."""

    def close(self) -> str:
        """Let go of an ended process, and return the end of what it printed before it had a log of its own."""


class Child:
    """A task's process that this process has started, in a session of its own: Ctrl-C does not reach it."""

    def __init__(self, task: Task, header: Mapping[str, Any]) -> None:
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - read and closed when the process has ended
        self._process = subprocess.Popen(
            [header["python"], *header["worker"], str(task.launch.path), str(task.index)],
            env=environment(task), stdin=subprocess.DEVNULL, stdout=self._output,
            stderr=subprocess.STDOUT, start_new_session=True, cwd=task.experiment.path,
        )  # fmt: skip

    def ended(self) -> int | None:
        return self._process.poll()

    def signal(self, number: int) -> None:
        _signal_group(self._process.pid, number)

    def close(self) -> str:
        with self._output as output:
            output.seek(0, os.SEEK_END)
            output.seek(max(0, output.tell() - 4000))
            return output.read().decode(errors="replace").strip()


class Found:
    """A task's process that a former supervisor has started."""

    def __init__(self, process: ProcessId) -> None:
        self._process = process

    def ended(self) -> int | None:
        return None if self._process.alive() else 0

    def signal(self, number: int) -> None:
        if self._process.alive():
            _signal_group(self._process.pid, number)

    def close(self) -> str:
        return ""


def environment(task: Task) -> dict[str, str]:
    """Return a worker's environment: code from the snapshot only, and no more threads than it has CPUs."""
    code = os.pathsep.join(task.experiment.python_path(task.code))
    added = {"PYTHONPATH": code, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    return {"OMP_NUM_THREADS": str(task.cpus), **inherited, **added}


def observe(
    launch: LaunchPaths, tasks: Collection[int], *, supervised: bool | None, idle: str
) -> dict[int, Observation]:
    """Return what is seen of tasks. `supervised`: whether somebody will start what has not begun; None: unknown."""
    state = {None: JobState.UNKNOWN, True: JobState.PENDING, False: JobState.ENDED}[supervised]
    unclaimed = Observation(state=state, reason=_waits_for(launch) if supervised else idle)
    stopped = Observation(state=JobState.ENDED, reason="cancelled before it started")
    cancelled = set(ledger.names(launch.cancelled))
    begun = set(ledger.names(launch.experiment.runs))  # most may not have: one listing
    found = {}
    for index, line in ledger.read_some_lines(launch, tasks).items():
        claim = ledger.read_claim(Task.of(launch, line).folder) if line["run"] in begun else None
        if claim is not None:
            found[index] = _observe_claim(claim, supervised=supervised)
        else:
            found[index] = stopped if line["run"] in cancelled else unclaimed
    return found


def _waits_for(launch: LaunchPaths) -> str:
    others = ledger.read_launch(launch).header.get("after")
    return f"waits for {', '.join(others)}, and a free slot" if others else "waits for a free slot"


def _observe_claim(claim: Claim, *, supervised: bool | None) -> Observation:
    alive = claim.process.alive()
    job, node = f"pid {claim.process.pid}", claim.process.host
    if alive is None:
        reason = f"it runs on {node}, and can only be seen there"
        return Observation(state=JobState.UNKNOWN, reason=reason, job=job, node=node)
    if alive:
        return Observation(state=JobState.RUNNING, job=job, node=node)
    told = "its process has ended without a word"
    return Observation(state=JobState.ENDED, reason=told, job=job, node=node, unattended=supervised is False)


def own_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tasks_of(launch: LaunchPaths) -> Sequence[Task]:
    """Return all tasks of a launch, in the order of its plan."""
    return [Task.of(launch, line) for line in ledger.read_lines(launch)]


def _signal_group(pid: int, number: int) -> None:
    """Kill a task's whole group; ask only its first process to stop: it needs its data loaders until it has saved."""
    try:
        (os.killpg if number == signal.SIGKILL else os.kill)(pid, number)
    except (ProcessLookupError, PermissionError):
        return  # it has just ended
