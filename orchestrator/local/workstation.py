"""The workstation cluster: a queue worked off by one detached supervisor per user and machine.

The queue is a folder with one small file per launch; the supervisor holds a lock that the kernel releases when
it ends, however it ends. Whoever submits or looks starts a supervisor where the queue has work and none runs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from orchestrator import after, ledger
from orchestrator.cluster import Capacity, Cluster
from orchestrator.errors import RequestError, StateError
from orchestrator.layout import LaunchPaths, state_dir
from orchestrator.local import room
from orchestrator.local.inline import Inline, check_one_process
from orchestrator.local.supervisor import Sidecars, Supervisor
from orchestrator.local.tasks import observe, own_cpus
from orchestrator.process import start_detached
from orchestrator.record import JobState, Observation
from orchestrator.spec import Resources

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.2


class Workstation:
    """Runs launches in the background of this machine. `cpus`: the number of CPU slots; None: all of them."""

    background = True

    def __init__(
        self, *, cpus: int | None = None, grace_seconds: float = 30.0, scratch: str | None = None,
        folder: Path | None = None,
    ) -> None:  # fmt: skip
        self._cpus, self._grace, self._scratch = cpus or own_cpus(), grace_seconds, scratch
        self._queue = Queue(folder or state_dir() / "workstation" / socket.gethostname())

    def check(self, shapes: Collection[Resources], folder: Path, data: Mapping[str, int]) -> tuple[str, ...]:  # noqa: ARG002 - any folder will do
        check_one_process(shapes, "workstation")
        for shape in shapes:
            if shape.cpus_per_node > self._cpus:
                raise RequestError(
                    f"resources.cpus_per_node is {shape.cpus_per_node}", why=f"there are {self._cpus} CPU slots",
                    fix=f"resources.cpus_per_node={self._cpus}, or a larger cluster.cpus",
                )  # fmt: skip
        return room.check(data, self._scratch)

    def capacity(self) -> Capacity:
        return Capacity(scratch=room.scratch(self._scratch))

    def submit(self, launch: LaunchPaths) -> None:
        self._queue.add(launch, cpus=self._cpus, grace_seconds=self._grace)
        self._queue.ensure_supervisor()

    def go_on(self, launch: LaunchPaths) -> int:  # noqa: ARG002 - the protocol's signature
        return 0  # nothing ever waits for room

    def observe(self, launch: LaunchPaths, tasks: Collection[int]) -> Mapping[int, Observation]:
        host = ledger.read_launch(launch).header["process"]["host"]
        if host != socket.gethostname():
            told = f"it was launched on {host}, and can only be seen there"
            return dict.fromkeys(tasks, Observation(state=JobState.UNKNOWN, reason=told))
        queued = self._queue.holds(launch)
        if queued:
            self._queue.ensure_supervisor()
        return observe(launch, tasks, supervised=queued, idle="it left the queue of the workstation")

    def cancel(self, launch: LaunchPaths, tasks: Collection[int]) -> None:  # noqa: ARG002 - the protocol's signature
        """Make sure that somebody sees the `cancelled` marks."""
        if self._queue.holds(launch):
            self._queue.ensure_supervisor()


class Queue:
    """The folder of one machine's queue: an entry per launch, the supervisor's lock, and its log."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, launch: LaunchPaths, *, cpus: int, grace_seconds: float) -> None:
        ledger.make_private(self._entries)
        entry = {"launch": str(launch.path), "cpus": cpus, "grace_seconds": grace_seconds, "time": time.time()}
        ledger.replace_text(self._entry(launch), json.dumps(entry))

    def holds(self, launch: LaunchPaths) -> bool:
        return self._entry(launch).exists()

    def remove(self, launch: LaunchPaths) -> None:
        self._entry(launch).unlink(missing_ok=True)

    def entries(self) -> list[dict[str, object]]:
        """Return the queued launches, oldest first."""
        found = []
        for path in self._entries.glob("*.json") if self._entries.is_dir() else ():
            try:
                found.append(json.loads(path.read_bytes()))
            except (OSError, ValueError):
                _log.warning("skipped a damaged queue entry: %s", path)
        return sorted(found, key=lambda entry: entry["time"])

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the supervisor's lock; yields False if another process holds it."""
        ledger.make_private(self._folder)
        descriptor = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield _try_lock(descriptor)
        finally:
            os.close(descriptor)

    def ensure_supervisor(self) -> None:
        """Start a supervisor, in a session of its own, unless one runs."""
        with self.lock() as free:
            if not free:
                return
        # Between here and the new process's own lock another may start too; one of them then ends at once.
        try:
            argv = [sys.executable, "-m", "orchestrator.local.workstation", str(self._folder)]
            start_detached(argv, cwd=self._folder, log=self._folder / "log")
        except OSError as error:
            raise StateError(
                "the workstation's supervisor cannot be started", why=str(error), fix=f"see {self._folder / 'log'}"
            ) from error

    @property
    def _entries(self) -> Path:
        return self._folder / "queue"

    def _entry(self, launch: LaunchPaths) -> Path:
        return self._entries / f"{hashlib.sha256(str(launch.path).encode()).hexdigest()[:16]}.json"


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def supervise(folder: Path) -> None:
    """Work off the queue until it is empty. Returns at once if another supervisor does."""
    queue = Queue(folder)
    while queue.entries():  # looked at again after the lock is free: a submitter may just have seen it held
        with queue.lock() as mine:
            if not mine:
                return
            _work_off(queue)


def _work_off(queue: Queue) -> None:
    sidecars = Sidecars()
    supervisor: Supervisor | None = None
    taken: dict[LaunchPaths, None] = {}
    while entries := queue.entries():
        if supervisor is None:
            first = entries[0]
            supervisor = Supervisor(
                cpus=int(str(first["cpus"])), grace_seconds=float(str(first["grace_seconds"])), sync=sidecars.sync,
                held=_held,
            )  # fmt: skip
        for entry in entries:
            launch = LaunchPaths(Path(str(entry["launch"])))
            if launch not in taken:
                _take(supervisor, launch, queue, taken)
        supervisor.step()
        for launch in [launch for launch in taken if not supervisor.busy(launch)]:
            queue.remove(launch)
            del taken[launch]
        time.sleep(_POLL_SECONDS)
    sidecars.close()


def _held(launch: LaunchPaths) -> bool:
    clusters: Mapping[str, Cluster] = {"workstation": Workstation(), "inline": Inline()}
    return after.under_way(launch, clusters)


def _take(supervisor: Supervisor, launch: LaunchPaths, queue: Queue, taken: dict[LaunchPaths, None]) -> None:
    try:
        supervisor.add(launch)
        taken[launch] = None
    except StateError as error:
        _log.warning("dropped a launch that cannot be read: %s", error)
        queue.remove(launch)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    supervise(Path(sys.argv[1]))
