"""The workstation cluster: a queue executed by one detached supervisor per user and machine.

The queue is a folder with one small file per launch; the supervisor holds a lock that the kernel releases when
it ends, however it ends. A command that submits or reads starts a supervisor where the queue has work and none runs;
the code that executes the queue is imported by the supervisor alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from orchestrator.cluster import Capacity, Change, Cluster, JobState, Observation
from orchestrator.errors import StateError
from orchestrator.layout import LaunchPaths, state_dir
from orchestrator.local import machine, session
from orchestrator.local import scratch as space
from orchestrator.local.inline import Inline, no_change
from orchestrator.local.tasks import observe
from orchestrator.records.launches import read_launch
from orchestrator.records.ownership import require
from orchestrator.spec import Resources
from orchestrator.system.files import (
    NOT_JSON,
    PRIVATE,
    locks_work,
    make_own,
    replace_text,
    replacing,
    reporting_write_errors,
    try_lock,
)
from orchestrator.system.processes import python, start_detached

if TYPE_CHECKING:
    from orchestrator.local.schedule import Terms
    from orchestrator.local.supervisor import Head, Supervisor

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.2
_ENTRY_BYTES = 65_536
_CHOOSE = "choose another folder for your own state with $XDG_STATE_HOME"


class Workstation:
    """Runs launches in the background of this machine."""

    background = True

    def __init__(
        self, *, scratch: str | None = None, folder: Path | None = None, **options: Unpack[machine.Options]
    ) -> None:
        self._scratch, self._options = scratch, options
        self._queue = Queue(folder or state_dir() / "workstation" / socket.gethostname())

    def check(self, shapes: Collection[Resources], folder: Path, data: Mapping[str, int]) -> tuple[str, ...]:  # noqa: ARG002 - any folder will do
        machine.check(shapes, self._terms, cluster="workstation")
        machine.check_slots(shapes, self._terms)
        self._queue.check_writable()
        logout = session.note()
        held = machine.held(shapes, self._terms)
        return (*machine.notes(self._terms), *held, *([logout] if logout else []), *space.check(data, self._scratch))

    @cached_property
    def _terms(self) -> Terms:
        return machine.terms(self._options)

    def capacity(self) -> Capacity:
        return Capacity(scratch=space.scratch(self._scratch))

    def submit(self, launch: LaunchPaths) -> None:
        self._queue.add(launch, self._terms)
        self._queue.ensure_supervisor()

    def submit_pending(self, launch: LaunchPaths) -> int:  # noqa: ARG002 - the protocol's signature
        return 0  # nothing ever waits for a free place

    def observe(self, launch: LaunchPaths, tasks: Collection[int]) -> Mapping[int, Observation]:
        host = read_launch(launch).header.process.host
        if host != socket.gethostname():
            reason = f"it was launched on {host}, and can only be seen there"
            return dict.fromkeys(tasks, Observation(state=JobState.UNKNOWN, reason=reason))
        queued = self._queue.holds(launch)
        if queued:
            try:
                self._queue.ensure_supervisor()
            except StateError as error:
                return dict.fromkeys(tasks, Observation(state=JobState.UNKNOWN, reason=f"{error.what}: {error.why}"))
        idle = "it left the queue of the workstation"
        return observe(launch, tasks, supervised=queued, idle=idle, waits=self._queue.waits(launch))

    def cancel(self, launch: LaunchPaths, tasks: Collection[int]) -> None:  # noqa: ARG002 - the protocol's signature
        """Make sure that somebody sees the `cancelled` marks."""
        if self._queue.holds(launch):
            self._queue.ensure_supervisor()

    def hold(self, launch: LaunchPaths, tasks: Collection[int]) -> None:
        """Nothing to do: who starts the tasks sees the `held` marks."""

    def release(self, launch: LaunchPaths, tasks: Collection[int]) -> None:  # noqa: ARG002 - as above
        """Nothing to do but to make sure that somebody starts the tasks."""
        if self._queue.holds(launch):
            self._queue.ensure_supervisor()

    def change(self, launch: LaunchPaths, tasks: Collection[int], change: Change) -> None:  # noqa: ARG002 - as above
        raise no_change("workstation")


class Queue:
    """The folder of one machine's queue: an entry per launch, the supervisor's lock, and its log."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check_writable(self) -> None:
        """Raise StateError, before anything is published, where a launch could not be queued: see what it takes."""
        with self._writing(), replacing(self._entries / "probe") as probe:
            probe.write_bytes(bytes(_ENTRY_BYTES))
        self._entries.joinpath("probe").unlink(missing_ok=True)
        with self.lock():
            pass

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with reporting_write_errors(self._entries, choose=_CHOOSE):
            make_own(self._folder)
            make_own(self._entries)
            yield

    def add(self, launch: LaunchPaths, terms: Terms) -> None:
        entry = {"launch": str(launch.path), "time": time.time(), **asdict(terms)}
        with self._writing():
            replace_text(self._entry(launch), json.dumps(entry), mode=PRIVATE)

    def holds(self, launch: LaunchPaths) -> bool:
        return self._entry(launch).exists()

    def remove(self, launch: LaunchPaths) -> None:
        self._entry(launch).unlink(missing_ok=True)

    def entries(self) -> list[dict[str, object]]:
        """Return the queued launches, oldest first."""
        found = []
        for path in self._entries.glob("*.json") if self._entries.is_dir() else ():
            try:
                entry = json.loads(path.read_bytes())
                found.append({**entry, "launch": os.fspath(Path(entry["launch"])), "time": float(entry["time"])})
            except (OSError, *NOT_JSON):
                _log.warning("skipped a damaged queue entry: %s", path)
        return sorted(found, key=lambda entry: entry["time"])

    def write_head(self, head: Head | None) -> None:
        """Write down what starts next, for commands that show the queue."""
        written = {}
        if head is not None:
            task = head.task
            written = {"launch": str(task.launch.path), "index": task.index, "run": task.run_id, "reason": head.reason}
        replace_text(self._head, json.dumps(written), mode=PRIVATE)

    def waits(self, launch: LaunchPaths) -> Callable[[int], str]:
        """Return what says for what a task of a launch waits, as the supervisor last wrote it."""
        try:
            head = json.loads(self._head.read_bytes())
            name = LaunchPaths(Path(head["launch"])).experiment.name
            next_one, reason = (head["launch"], head["index"]), str(head["reason"])
            behind = f"waits for its turn, behind {name} {head['run'][:8]}"
        except (OSError, *NOT_JSON):  # nothing comes next, or nobody can tell
            return lambda _: "waits for its turn"
        return lambda index: reason if (str(launch.path), index) == next_one else behind

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the supervisor's lock; yields False if another process holds it. Raises StateError where none can."""
        make_own(self._folder)
        path = self._folder / "lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            yield self._locked(descriptor, path)
        finally:
            os.close(descriptor)

    def _locked(self, descriptor: int, path: Path) -> bool:
        try:
            mine, why = try_lock(descriptor), "its filesystem lets several processes lock a file at once"
            if not mine or locks_work(path):
                return mine
        except OSError as error:
            why = f"files cannot be locked on its filesystem: {error.strerror}"
        raise StateError(f"{self._folder} cannot hold the workstation's queue", why=why, fix=_CHOOSE)

    def ensure_supervisor(self) -> None:
        """Start a supervisor, in a session of its own, unless one runs."""
        with self.lock() as free:
            if not free:
                return
        # Between here and the new process's own lock another may start too; one of them then ends at once.
        try:
            argv = python("-m", "orchestrator.local.workstation", str(self._folder))
            start_detached(session.surviving(argv), log=self._folder / "log")
        except OSError as error:
            raise StateError(
                "the workstation's supervisor cannot be started", why=str(error), fix=f"see {self._folder / 'log'}"
            ) from error

    @property
    def _head(self) -> Path:
        return self._folder / "next.json"

    @property
    def _entries(self) -> Path:
        return self._folder / "queue"

    def _entry(self, launch: LaunchPaths) -> Path:
        return self._entries / f"{hashlib.sha256(str(launch.path).encode()).hexdigest()[:16]}.json"


def supervise(folder: Path) -> None:
    """Execute the queue until it is empty. Returns at once if another supervisor does."""
    queue = Queue(folder)
    while queue.entries():  # looked at again after the lock is free: a submitter may just have seen it held
        with queue.lock() as mine:
            if not mine:
                return
            _work_off(queue)


def _work_off(queue: Queue) -> None:
    from orchestrator.local.device_locks import DeviceLocks
    from orchestrator.local.nvml import Users
    from orchestrator.local.prefork import PreforkLauncher
    from orchestrator.local.schedule import Terms
    from orchestrator.local.supervisor import Sidecars, Supervisor

    sidecars, prefork = Sidecars(), PreforkLauncher()
    supervisor = Supervisor(sync=sidecars.sync, start=prefork, locks=DeviceLocks(), users=Users(), early=_is_early)
    taken: set[LaunchPaths] = set()
    written: Head | None = None
    while entries := queue.entries():
        for entry in entries:
            launch = LaunchPaths(Path(str(entry["launch"])))
            if launch not in taken and _take(supervisor, launch, Terms.from_json(entry), queue):
                taken.add(launch)
        supervisor.step()
        if supervisor.head != written:
            written = supervisor.head
            queue.write_head(written)
        for launch in [launch for launch in taken if not supervisor.busy(launch)]:
            queue.remove(launch)
            taken.discard(launch)
        time.sleep(_POLL_SECONDS)
    prefork.close()
    sidecars.close()


@cache
def _others() -> Mapping[str, Cluster]:
    return {"workstation": Workstation(), "inline": Inline()}


def _is_early(launch: LaunchPaths) -> bool:
    from orchestrator.launch import dependencies as after

    return after.under_way(launch, _others())


def _take(supervisor: Supervisor, launch: LaunchPaths, terms: Terms, queue: Queue) -> bool:
    try:
        require(launch.experiment, [read_launch(launch)])
        supervisor.add(launch, terms)
    except StateError as error:
        _log.warning("dropped a launch that cannot be run: %s", error)
        queue.remove(launch)
        return False
    return True


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    supervise(Path(sys.argv[1]))
