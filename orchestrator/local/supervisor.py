"""Runs queued tasks in order, as many at once as fit, and records each one's end.

It holds no state that matters: what has begun, where, and how it ended is in the attempts' folders, so that a new
supervisor takes over where a dead one stopped. Which task is next says `schedule`, how it becomes processes a
`Starter`; that no GPU is given out twice on a machine, `DeviceLocks`.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
import signal
import subprocess
import time
from bisect import insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO

from orchestrator.errors import StateError
from orchestrator.launch import canary, failure_limit, notification, recovery
from orchestrator.launch.recovery import Ending, Room, Stop
from orchestrator.layout import LaunchPaths
from orchestrator.local.device_locks import DeviceLocks, describe_holder
from orchestrator.local.launcher import AdoptedRun, ChildProcesses, Handle, Starter, died, start_of
from orchestrator.local.schedule import DEPTH, Device, Taken, Terms, Wanted, choose, describe_wait
from orchestrator.local.tasks import Task, decide, latest, tasks_of
from orchestrator.records.attempts import mark_state, read_attempt, read_claim, write_observed
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import read_launch
from orchestrator.records.record import Attempt, Claim, RunState
from orchestrator.system.files import listed
from orchestrator.system.processes import NEUTRAL

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.1
_HOLDER_SECONDS = 10.0  # so often it is found out who holds a device
_UNSEEN = "its process ended while no supervisor ran"
_LOOK_SECONDS = 1.0  # at what a launch waits for


@dataclass(slots=True, kw_only=True)
class _Running:
    task: Task
    handle: Handle
    wanted: Wanted
    devices: tuple[Device, ...]
    deadline: float
    oom_kills: int  # of the whole machine, when it began
    reason: str = ""  # why it was asked to stop
    kill_at: float | None = None

    @property
    def taken(self) -> Taken:
        return Taken(wanted=self.wanted, devices=self.devices, until=self.deadline + self.wanted.terms.grace_seconds)


@dataclass(slots=True, kw_only=True, order=True)
class _Waiting:
    """A place in the queue: of the same priority, first come, first served."""

    rank: tuple[int, int]
    task: Task = field(compare=False)
    wanted: Wanted = field(compare=False)
    due: float = field(default=-math.inf, compare=False)  # not before, by the supervisor's clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The task that starts next, and what it waits for. The others wait for it, but for what it does not mind."""

    task: Task
    reason: str


class Supervisor:
    """Starts, watches and stops the tasks of launches. `step` does what is due and says whether work is left."""

    def __init__(
        self,
        *,
        sync: Callable[[str, Path, str], None],
        start: Starter = ChildProcesses,
        locks: DeviceLocks | None = None,
        users: Callable[[Sequence[Device]], Mapping[str, str]] = lambda _: {},
        clock: Callable[[], float] = time.monotonic,
        restarts: bool = False,
        early: Callable[[LaunchPaths], bool] = lambda _: False,
    ) -> None:
        """`sync(python, runs, experiment)` is called each time something of an experiment has changed.

        `locks` keeps other users' supervisors off the devices (None: nobody else gives these out). `users` tells by
        address who else computes on devices. `head` is afterwards what is next, and what it waits for. `restarts`: the
        tasks are some of a launch's, and of those stopped before they began nothing is written: they are started again.
        `early` says of a launch that starts after others whether it has to wait for them.
        """
        self._sync, self._make, self._locks, self._users, self._clock = sync, start, locks, users, clock
        self._restarts, self._early = restarts, early
        self._looked: dict[LaunchPaths, tuple[float, bool]] = {}
        self.head: Head | None = None
        self._arrivals = itertools.count()
        self._queue: list[_Waiting] = []
        self._running: list[_Running] = []
        self._headers: dict[LaunchPaths, LaunchHeader] = {}
        self._safeguards: dict[LaunchPaths, canary.Safeguards] = {}
        self._stopping = False
        self._holders: dict[str, tuple[float, str]] = {}

    def add(self, launch: LaunchPaths, terms: Terms) -> None:
        """Take over all tasks of a launch that have not ended; those already running are found."""
        self._headers[launch] = read_launch(launch).header
        new = []
        for task in map(latest, tasks_of(launch)):
            if listed(task.folder.path):
                self._adopt(task, Wanted(resources=task.resources, terms=terms))
            elif not _attempt(task).final:  # it may have failed before it could claim anything
                new.append(task)
        self.queue(launch, new, terms)

    def queue(self, launch: LaunchPaths, tasks: Iterable[Task], terms: Terms) -> None:
        """Take over these tasks of a launch, none of which has begun."""
        self._headers[launch] = read_launch(launch).header
        for task in tasks:
            rank = (-terms.priority, next(self._arrivals))
            insort(self._queue, _Waiting(rank=rank, task=task, wanted=Wanted(resources=task.resources, terms=terms)))

    def _adopt(self, task: Task, wanted: Wanted) -> None:
        """Watch a task that has begun; one whose attempt belongs to another launch is not watched."""
        claim = read_claim(task.folder)
        if claim is None or claim.launch != task.launch.number or claim.process.alive() is None:  # on another node
            return
        process = AdoptedRun(claim.process, ranks=task.resources.processes_per_node)
        if process.ended() is None:
            devices = _devices(claim, wanted.terms)
            deadline = self._deadline(task, already=time.time() - claim.process.started)
            self._watch_over(task, process, wanted, devices, deadline)
        else:
            self._record_end(task, status=0, reason=_UNSEEN, output="", cause="killed")
            self._start_again(task, wanted.terms)

    def _watch_over(
        self, task: Task, handle: Handle, wanted: Wanted, devices: tuple[Device, ...], deadline: float
    ) -> None:
        running = _Running(
            task=task, handle=handle, wanted=wanted, devices=devices, deadline=deadline, oom_kills=oom_kills()
        )
        self._running.append(running)

    def busy(self, launch: LaunchPaths) -> bool:
        """Return whether tasks of a launch wait or run."""
        return any(w.task.launch == launch for w in self._queue) or any(r.task.launch == launch for r in self._running)

    @property
    def held_up(self) -> str:
        """What the next task waits for although none of ours runs: others have it."""
        return self.head.reason if self.head and not self._running else ""

    def step(self) -> bool:
        """Reap, stop and start what is due. Returns whether anything waits or runs."""
        for running in list(self._running):
            self._watch(running)
        self._start_what_fits()
        return bool(self._queue or self._running)

    def run(self, *, until: Callable[[], bool] = lambda: False) -> None:
        """Step until nothing is left to do, or `until` says so."""
        while self.step() and not until():
            time.sleep(_POLL_SECONDS)

    def stop(self, reason: str, *, number: int = signal.SIGTERM, grace_seconds: float | None = None) -> None:
        """Ask all running tasks to stop, wait for the grace time (None: their own), and kill what is left."""
        self._queue.clear()
        self._stopping = True
        for running in self._running:
            self._ask(running, reason, number)
            if grace_seconds is not None:
                running.kill_at = self._clock() + grace_seconds
        while self._running:
            self.step()
            time.sleep(_POLL_SECONDS)

    def _start_what_fits(self) -> None:
        self.head = None
        if self._release_unused():
            return  # another supervisor that waits for one of these devices has the time until the next look
        closed: dict[str, str] = {}
        self._safeguards.clear()
        while waiting := list(islice(filter(self._may_start, self._queue), DEPTH)):
            if waiting[0].task.cancelled:  # it may be in the others' way
                self._queue.remove(waiting[0])
                continue
            wanted, taken = [one.wanted for one in waiting], [running.taken for running in self._running]
            choice = choose(wanted, taken, closed=closed, now=self._clock())
            if choice is None:
                self.head = Head(task=waiting[0].task, reason=describe_wait(wanted[0], taken, closed))
                return
            chosen = waiting[choice.place]
            refused = self._refused(chosen.wanted, choice.devices)
            if refused:
                closed |= refused
                continue
            self._queue.remove(chosen)
            if not chosen.task.cancelled:
                self._start(chosen, choice.devices)

    def _may_start(self, waiting: _Waiting) -> bool:
        """Return whether a task is neither held nor behind a canary or others; its launch is asked once in a step."""
        launch = waiting.task.launch
        if launch not in self._safeguards:
            self._safeguards[launch] = canary.safeguards(launch)
        return waiting.task.cancelled or (
            self._clock() >= waiting.due
            and self._safeguards[launch].admits(waiting.task.index)
            and not self._is_early(launch)
        )

    def _is_early(self, launch: LaunchPaths) -> bool:
        """Return whether a launch waits for others, as far as was seen lately; its runs see how they went."""
        if not self._headers[launch].after:
            return False
        looked, early = self._looked.get(launch, (-math.inf, True))
        if early and self._clock() - looked >= _LOOK_SECONDS:
            self._looked[launch] = self._clock(), self._early(launch)
        return self._looked[launch][1]

    def _release_unused(self) -> frozenset[str]:
        """Let go of devices that no task has any more, and return which."""
        if self._locks is None:
            return frozenset()
        return self._locks.release(but={device.address for running in self._running for device in running.devices})

    def _refused(self, wanted: Wanted, devices: Sequence[Device]) -> dict[str, str]:
        """Take devices; return of those that cannot be had after all why that is."""
        ours = {device.address for running in self._running for device in running.devices}
        fresh = [device for device in devices if device.address not in ours]
        if wanted.terms.avoid_busy and (used := self._users(fresh)):
            return {address: f"used by {by}" for address, by in used.items()}
        return {address: self._holder(address) for address in (self._locks.take(devices) if self._locks else ())}

    def _holder(self, address: str) -> str:
        """Return who holds a device, as it was found out lately."""
        found, described = self._holders.get(address, (-math.inf, ""))
        if self._clock() - found >= _HOLDER_SECONDS:
            described = describe_holder(address)
            self._holders[address] = self._clock(), described
        return described

    def _start(self, waiting: _Waiting, devices: tuple[Device, ...]) -> None:
        task, header = waiting.task, self._headers[waiting.task.launch]
        keep = self._locks.descriptors(devices) if self._locks else ()
        try:
            handle = self._make(start_of(task, header, devices, keep))
        except OSError as error:
            self._record_end(task, status=1, reason=f"cannot start {header.python}: {error.strerror}", output="")
            return
        deadline = self._deadline(task)
        self._watch_over(task, handle, waiting.wanted, devices, deadline)
        self._notify(task)

    def _deadline(self, task: Task, *, already: float = 0.0) -> float:
        """Return when a task's time is up, given the seconds that it has run already."""
        return self._clock() + max(0.0, task.seconds - already) if task.seconds else math.inf

    def _watch(self, running: _Running) -> None:
        status = running.handle.ended()
        if running.handle.pending:
            running.deadline = self._deadline(running.task)
        if status is not None:
            self._reap(running, status)
        elif running.kill_at is not None:
            if self._clock() > running.kill_at:
                running.handle.signal(signal.SIGKILL)
        elif running.task.cancelled:
            self._ask(running, "cancelled")
        elif self._clock() > running.deadline:
            self._ask(running, "time limit")

    def _ask(self, running: _Running, reason: str, number: int = signal.SIGTERM) -> None:
        running.reason = running.reason or reason
        running.kill_at = running.kill_at or self._clock() + running.wanted.terms.grace_seconds
        running.handle.signal(number)

    def _reap(self, running: _Running, status: int) -> None:
        self._running.remove(running)
        running.handle.signal(signal.SIGKILL)  # what the task left behind in its process group
        output, claim = running.handle.close(), read_claim(running.task.folder)
        if claim is not None and (claim.launch != running.task.launch.number or claim.process.alive() is not False):
            self._adopt(running.task, running.wanted)  # somebody else has taken the attempt
        else:
            try:
                out_of_memory = oom_kills() > running.oom_kills
                self._record_end(running.task, status, running.reason, output, out_of_memory=out_of_memory)
                self._start_again(running.task, running.wanted.terms)
            except (OSError, StateError) as error:  # the next look sees that it has ended
                _log.warning("the end of run %s is not recorded: %s", running.task.run_id, error)
        if self._restarts:
            notification.notify_if_ended(running.task.launch)
        elif not self._stopping and not self.busy(running.task.launch):
            notification.notify(running.task.launch, notification.Event.ENDED)

    def _record_end(
        self, task: Task, status: int, reason: str, output: str, *, cause: str = "", out_of_memory: bool = False
    ) -> None:
        """Write down how an attempt ended that could not say so itself; `cause` goes with `reason`."""
        run, attempt = task.experiment.run(task.run_id), _attempt(task)
        if attempt.final:
            return
        if self._restarts and attempt.claim is None and (status <= 0 or reason):
            return
        state = RunState.INTERRUPTED
        if status > 0 and died(status) and not reason:
            state = RunState.FAILED
            signature = f"exit status {status} before training" if attempt.claim is None else f"exit status {status}"
            last = output.splitlines()[-1] if output else ""
            write_observed(run, task.attempt, "failed", signature=signature, message=last, traceback=output)
            failure_limit.brake_after(task.launch, task.run_id, signature)
            notification.notify(task.launch, notification.Event.FAILED, run_id=task.run_id, reason=signature)
        else:
            ending = _ending(reason, max(0, -status), output, cause, out_of_memory=out_of_memory)
            described = recovery.described(ending.reason, decide(task, self._room(task), ending))
            write_observed(run, task.attempt, "interrupted", reason=described, cause=ending.cause)
            state = RunState.CANCELLED if task.cancelled else state
        mark_state(task.experiment, task.run_id, task.attempt, state.value)
        self._notify(task)

    def _start_again(self, task: Task, terms: Terms) -> None:
        """Put a task whose attempt has ended early back into the queue, if its policy wants that."""
        decision = Stop() if self._stopping else decide(task, self._room(task, terms))
        if isinstance(decision, Stop):
            return
        next_one = replace(task, attempt=task.attempt + 1, resources=recovery.resources(task.resources, decision))
        rank, wanted = (-terms.priority, next(self._arrivals)), Wanted(resources=next_one.resources, terms=terms)
        due = self._clock() + decision.after_minutes * 60
        insort(self._queue, _Waiting(rank=rank, task=next_one, wanted=wanted, due=due))

    def _room(self, task: Task, terms: Terms | None = None) -> Room:
        """Return the memory that a task was given, and could be: none where its job has it."""
        if self._restarts:
            return Room()
        return Room(mem_gb=task.resources.mem_gb_per_node, mem_gb_most=terms.mem_gb if terms else None)

    def _notify(self, task: Task) -> None:
        header = self._headers[task.launch]
        if header.tracking_kind == "embedded":  # to a server each run has its own uploader
            self._sync(header.python, task.launch.runs.path, task.experiment.name)


class Sidecars:
    """One process per runs/ folder that carries metrics to the tracking store while runs are running."""

    def __init__(self) -> None:
        self._processes: dict[Path, subprocess.Popen[bytes]] = {}

    def sync(self, python: str, runs: Path, experiment: str) -> None:
        """Have an experiment synced soon. A sidecar that died is started again."""
        process = self._processes.get(runs)
        if process is None or process.poll() is not None:
            process = self._processes[runs] = subprocess.Popen(
                [python, "-P", "-m", "orchestrator.tracking.sidecar", str(runs)],
                stdin=subprocess.PIPE,
                env=None,
                cwd=NEUTRAL,
                start_new_session=True,
            )
        pipe: IO[bytes] | None = process.stdin
        try:
            if pipe is not None:
                pipe.write(f"{experiment}\n".encode())
                pipe.flush()
        except BrokenPipeError:
            _log.warning("the tracking sidecar of %s has died; `orch ui --once` catches up", runs)

    def close(self) -> None:
        """Let every sidecar sync once more and end."""
        for process in self._processes.values():
            if process.stdin is not None:
                process.stdin.close()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()


def _ending(reason: str, number: int, output: str, cause: str, *, out_of_memory: bool) -> Ending:
    """Return how an attempt ended: for a reason, by the signal of a number (0: of none), or silently."""
    if reason or not number:
        return Ending(cause=cause, reason=reason or "ended without a final event")
    if number == signal.SIGKILL and out_of_memory:
        return Ending(cause="out_of_memory", reason="out of memory: killed by the kernel")
    rank = re.search(r"\b(rank \d+) was killed by", output)
    return Ending(cause="killed", reason=f"killed by {signal.Signals(number).name}{f' ({rank[1]})' if rank else ''}")


def oom_kills() -> int:
    """Return how many processes of this machine the kernel has killed for their memory; 0 where it does not say."""
    try:
        text = Path("/proc/vmstat").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _attempt(task: Task) -> Attempt:
    return read_attempt(task.experiment.run(task.run_id), task.folder)


def _devices(claim: Claim, terms: Terms) -> tuple[Device, ...]:
    """Return the devices that a run was started on."""
    known = {device.id: device for device in terms.devices}
    return tuple(known.get(name, Device(id=name, address=name)) for name in claim.devices)
