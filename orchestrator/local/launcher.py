"""How a task becomes processes of this machine: one per rank, all in one process group that rank 0 leads.

The seam between the supervisor, which decides when and where, and who makes the processes: a `Starter`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Protocol

from orchestrator.local.schedule import Device
from orchestrator.local.tasks import Task
from orchestrator.records.header import LaunchHeader
from orchestrator.system.processes import ProcessId

_LAST_WORDS_SECONDS, _LATE_SECONDS = 5.0, 60.0
"""How long the other ranks have once one has died, to tell what they saw; and once rank 0 has ended well."""
_INTERRUPTED = 143
ATTEMPT = "ORCH_ATTEMPT"
"""In the environment of a run: the attempt to begin, where that is not the one that was planned."""
_OURS = (
    ATTEMPT,
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "ORCH_DEVICES",
)
_PRINTED_BYTES = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start of a task: what each of its processes, rank 0 first, is given.

    `keep` are descriptors that hold its devices: the processes keep them open, so that the kernel lets go of the
    devices when the last of them has ended, whatever becomes of the supervisor.
    """

    task: Task
    argv: tuple[str, ...]
    environments: tuple[Mapping[str, str], ...]
    keep: tuple[int, ...] = ()


class Handle(Protocol):
    """The processes of a task, started here or found running."""

    def ended(self) -> int | None:
        """Return the exit status (negative: a signal; 0 if it is not known), None while one of them runs.

        Where there are several, one that died ends the others, and its status is reported.
        """

    @property
    def pending(self) -> bool:
        """Whether none of them has begun yet; until then a time limit does not count."""

    def signal(self, number: int) -> None:
        """Send SIGKILL to the task's process group, and any other signal to each rank."""

    def close(self) -> str:
        """Let go of ended processes, and return the end of what they printed before they had logs of their own."""


Starter = Callable[[Start], Handle]
"""Starts a task's processes. Raises OSError if one cannot be started; then none is left running."""


class ChildProcesses:
    """A task's processes that this process has started, in a group of their own: Ctrl-C does not reach them."""

    pending = False

    def __init__(self, start: Start) -> None:
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - read and closed when they have ended
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._deaths: list[int | None] = []
        self._since: float | None = None
        try:
            for environment in start.environments:
                self._ranks.append(self._popen(start, environment))
        except OSError:
            self.signal(signal.SIGKILL)
            for rank in self._ranks:
                rank.wait()
            self._output.close()
            raise

    def _popen(self, start: Start, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        leader = self._ranks[0].pid if self._ranks else 0  # a process that is not waited for keeps its number
        return subprocess.Popen(
            start.argv,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            process_group=leader,
            pass_fds=start.keep,
            cwd=start.task.experiment.path,
        )

    def ended(self) -> int | None:
        found = [rank.poll() for rank in self._ranks]
        if not self._deaths and any(map(died, found)):
            self._deaths = found  # and not of those that are killed for it
        if None in found:
            self._hurry(rank_0_ended=found[0] is not None)
            return None
        return final_status(self._deaths or found)

    def _hurry(self, *, rank_0_ended: bool) -> None:
        """Have the others end by themselves within a moment, once one has died or rank 0 has ended."""
        if not self._deaths and not rank_0_ended:
            return
        patience = _LAST_WORDS_SECONDS if self._deaths else _LATE_SECONDS
        self._since = self._since or time.monotonic()
        if time.monotonic() > self._since + patience:
            self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        if not self._ranks:
            return
        if number == signal.SIGKILL:
            signal_group(self._ranks[0].pid, number)
            return
        for rank in self._ranks:
            rank.send_signal(number)

    def close(self) -> str:
        described = describe_deaths(self._deaths) if len(self._ranks) > 1 else ""
        with self._output as output:
            output.seek(0, os.SEEK_END)
            output.seek(max(0, output.tell() - _PRINTED_BYTES))
            return "\n".join(filter(None, (output.read().decode(errors="replace").strip(), described)))


class AdoptedRun:
    """A task's processes that a former supervisor has started: rank 0, which leads their group, and the other ranks."""

    pending = False

    def __init__(self, leader: ProcessId, *, ranks: int) -> None:
        self._leader = leader
        self._others = _other_ranks(leader.pid) if ranks > 1 and leader.alive() else []
        self._missed: float | None = None
        self._killed = False

    def ended(self) -> int | None:
        if not self._leader.alive():
            return 128 + signal.SIGKILL if self._killed else 0
        if not all(other.alive() for other in self._others):
            self._missed = self._missed or time.monotonic()
            if time.monotonic() > self._missed + _LATE_SECONDS:  # whether it died or was done, nobody can tell
                self._killed = True
                self.signal(signal.SIGKILL)
        return None

    def signal(self, number: int) -> None:
        if number == signal.SIGKILL:
            signal_group(self._leader.pid, number)
            return
        for process in (self._leader, *self._others):
            if process.alive():
                _signal(os.kill, process.pid, number)

    def close(self) -> str:
        return "another rank had ended long before" if self._killed else ""


def _other_ranks(leader: int) -> list[ProcessId]:
    """Return the processes of a leader's group that were not started by one of it, as data loaders are."""
    import psutil

    group = {p.pid: p.info["ppid"] for p in psutil.process_iter(["ppid"]) if _group_of(p.pid) == leader}
    found = []
    for pid in [pid for pid, parent in group.items() if pid != leader and parent not in group]:
        with suppress(psutil.NoSuchProcess):  # it has just ended
            found.append(ProcessId.of(pid))
    return found


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:  # it has just ended
        return -1


def died(status: int | None) -> bool:
    """Return whether a rank failed or was killed: being interrupted does not count."""
    return status not in (None, 0, _INTERRUPTED)


def final_status(ranks: Sequence[int | None]) -> int:
    """Return the exit status of a task by those of its ranks: of the dead the highest, as srun does, else of rank 0.

    A signal counts as 128 and its number there: a rank that lost its connection to one that was killed ends with 1.
    """
    dead = filter(died, ranks)
    return max(dead, key=lambda status: 128 - status if status < 0 else status, default=ranks[0]) or 0


def describe_deaths(ranks: Sequence[int | None]) -> str:
    """Return a line that says which ranks died, and of what."""
    return "; ".join(_describe_death(rank, status) for rank, status in enumerate(ranks) if status and died(status))


def _describe_death(rank: int, status: int) -> str:
    if status < 0:
        return f"rank {rank} was killed by {signal.Signals(-status).name}"
    return f"rank {rank} ended with exit status {status}"


def start_of(task: Task, header: LaunchHeader, devices: Sequence[Device], keep: Sequence[int] = ()) -> Start:
    """Return how a task is started on these devices."""
    argv = (header.python, *header.worker, str(task.launch.path), str(task.index))
    return Start(task=task, argv=argv, environments=tuple(environments(task, devices)), keep=tuple(keep))


def environments(task: Task, devices: Sequence[Device]) -> list[dict[str, str]]:
    """Return each rank's environment: code from the snapshot only, its own GPUs only, threads for its CPUs.

    What says where a process stands is not inherited: we may have been started from a job, or by torchrun.
    """
    ranks = task.resources.processes_per_node
    code = os.pathsep.join(task.experiment.python_path(task.code))
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") and k not in _OURS}
    threads = str(max(1, task.resources.cpus_per_node // ranks))
    added = {"PYTHONPATH": code, "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", ATTEMPT: str(task.attempt)}
    shared = {"OMP_NUM_THREADS": threads, **inherited, **added, **_visible(task, devices)}
    if ranks == 1:
        return [shared]
    places = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "NODE_RANK": "0"}
    return [{**shared, **places, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _visible(task: Task, devices: Sequence[Device]) -> dict[str, str]:
    """Return what hides all other GPUs. Where none are counted nothing is hidden from a run that asks for some."""
    if not devices and task.resources.gpus_per_node:
        return {}
    ids = ",".join(device.id for device in devices)
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ids,
        "HIP_VISIBLE_DEVICES": ids,
        "ORCH_DEVICES": ids,
    }


def signal_group(pid: int, number: int) -> None:
    """Send a signal to the process group that a process leads, or led: what it left behind."""
    _signal(os.killpg, pid, number)


def _signal(send: Callable[[int, int], None], pid: int, number: int) -> None:
    try:
        send(pid, number)
    except (ProcessLookupError, PermissionError):
        return  # it has just ended
