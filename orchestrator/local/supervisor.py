"""Runs queued tasks in order, as many at once as there are CPU slots for, and sees to each one's end.

It holds no state that matters: what has begun and how it ended stands in the attempts' folders, so that a new
supervisor takes over where a dead one stopped. First come, first served: a wide task at the head of the queue
is waited for, so that it never starves.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from orchestrator import ledger
from orchestrator.layout import LaunchPaths
from orchestrator.local.tasks import Child, Found, Handle, Task, tasks_of
from orchestrator.record import Attempt, RunState

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.1
_LOOK_SECONDS = 1.0  # at what a launch waits for


@dataclass(slots=True, kw_only=True)
class _Running:
    task: Task
    handle: Handle
    deadline: float | None
    reason: str = ""  # why it was asked to stop
    kill_at: float | None = None


class Supervisor:
    """Starts, watches and stops the tasks of launches. `step` does what is due and says whether work is left."""

    def __init__(
        self, *, cpus: int, grace_seconds: float = 30.0, sync: Callable[[str, Path, str], None],
        held: Callable[[LaunchPaths], bool] = lambda _: False,
    ) -> None:  # fmt: skip
        """`sync(python, runs, experiment)` is told each time something of an experiment has changed.

        `held(launch)` says whether a launch that starts after others has to wait for them.
        """
        self._cpus, self._grace, self._sync = cpus, grace_seconds, sync
        self._holds, self._held, self._looked = held, deque[Task](), 0.0
        self._queue: deque[Task] = deque()
        self._running: list[_Running] = []
        self._headers: dict[LaunchPaths, Mapping[str, Any]] = {}

    def add(self, launch: LaunchPaths) -> None:
        """Take over all tasks of a launch that have not ended; those already running are found."""
        header = self._headers[launch] = ledger.read_launch(launch).header
        queue = self._held if header.get("after") else self._queue
        for task in tasks_of(launch):
            if task.folder.path.exists():
                self._adopt(task)
            elif not _attempt(task).final:  # it may have failed before it could claim anything
                queue.append(task)

    def _adopt(self, task: Task) -> None:
        """Watch a task that has begun; one whose attempt belongs to another launch is no business of ours."""
        claim = ledger.read_claim(task.folder)
        if claim is None or claim.launch != task.launch.number:
            return
        process = Found(claim.process)
        if process.ended() is None:
            deadline = _deadline(task, already=time.time() - claim.process.started)
            self._running.append(_Running(task=task, handle=process, deadline=deadline))
        else:
            self._settle(task, status=0, reason="its process ended while no supervisor ran", output="")

    def busy(self, launch: LaunchPaths) -> bool:
        """Return whether tasks of a launch wait or run."""
        waiting = any(task.launch == launch for task in (*self._queue, *self._held))
        return waiting or any(r.task.launch == launch for r in self._running)

    def step(self) -> bool:
        """Reap, stop and start what is due. Returns whether anything waits or runs."""
        for running in list(self._running):
            self._watch(running)
        self._release()
        while self._queue and self._fits(self._queue[0]):
            task = self._queue.popleft()
            if not task.cancelled:
                self._start(task)
        return bool(self._queue or self._held or self._running)

    def _release(self) -> None:
        """Queue what has waited for another experiment, once that has ended; it then looks itself how that went."""
        if not self._held or time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        waiting = [task for task in self._held if not task.cancelled]
        held = {launch for launch in {task.launch for task in waiting} if self._holds(launch)}
        self._queue.extend(task for task in waiting if task.launch not in held)
        self._held = deque(task for task in waiting if task.launch in held)

    def run(self, *, until: Callable[[], bool] = lambda: False) -> None:
        """Step until nothing is left to do, or `until` says so."""
        while self.step() and not until():
            time.sleep(_POLL_SECONDS)

    def stop(self, reason: str) -> None:
        """Ask all running tasks to stop, wait for the grace time, and kill what is left."""
        self._queue.clear()
        self._held.clear()
        for running in self._running:
            self._ask(running, reason)
        while self._running:
            self.step()
            time.sleep(_POLL_SECONDS)

    def _fits(self, task: Task) -> bool:
        """Return whether there are slots for a task; one that is wider than all of them runs alone."""
        return not self._running or sum(running.task.cpus for running in self._running) + task.cpus <= self._cpus

    def _start(self, task: Task) -> None:
        header = self._headers[task.launch]
        try:
            handle = Child(task, header)
        except OSError as error:
            self._settle(task, status=1, reason=f"cannot start {header['python']}: {error.strerror}", output="")
            return
        self._running.append(_Running(task=task, handle=handle, deadline=_deadline(task)))
        self._notify(task)

    def _watch(self, running: _Running) -> None:
        status = running.handle.ended()
        if status is not None:
            self._reap(running, status)
        elif running.kill_at is not None:
            if time.monotonic() > running.kill_at:
                running.handle.signal(signal.SIGKILL)
        elif running.task.cancelled:
            self._ask(running, "cancelled")
        elif running.deadline is not None and time.monotonic() > running.deadline:
            self._ask(running, "time limit")

    def _ask(self, running: _Running, reason: str) -> None:
        running.reason = running.reason or reason
        running.kill_at = running.kill_at or time.monotonic() + self._grace
        running.handle.signal(signal.SIGTERM)

    def _reap(self, running: _Running, status: int) -> None:
        self._running.remove(running)
        running.handle.signal(signal.SIGKILL)  # what the task left behind in its process group
        output, claim = running.handle.close(), ledger.read_claim(running.task.folder)
        if claim is not None and (claim.launch != running.task.launch.number or claim.process.alive()):
            self._adopt(running.task)  # somebody else has taken the attempt
        else:
            self._settle(running.task, status, running.reason, output)

    def _settle(self, task: Task, status: int, reason: str, output: str) -> None:
        """Write down how an attempt ended that could not say so itself."""
        run, attempt = task.experiment.run(task.run_id), _attempt(task)
        if attempt.final:
            return
        state = RunState.INTERRUPTED
        if status > 0 and not reason:
            state = RunState.FAILED
            signature = f"exit status {status} before training" if attempt.claim is None else f"exit status {status}"
            last = output.splitlines()[-1] if output else ""
            ledger.write_observed(run, task.attempt, "failed", signature=signature, message=last, traceback=output)
        else:
            told = reason or (f"killed by {signal.Signals(-status).name}" if status < 0 else "ended without a word")
            ledger.write_observed(run, task.attempt, "interrupted", reason=told)
            state = RunState.CANCELLED if task.cancelled else state
        ledger.mark(task.experiment, task.run_id, task.attempt, state.value)
        self._notify(task)

    def _notify(self, task: Task) -> None:
        header = self._headers[task.launch]
        if header["tracking"]["kind"] == "embedded":  # to a server each run has its own uploader
            self._sync(header["python"], task.launch.runs.path, task.experiment.name)


class Sidecars:
    """One process per runs/ folder that carries metrics to the tracking store while runs are running."""

    def __init__(self) -> None:
        self._processes: dict[Path, subprocess.Popen[bytes]] = {}

    def sync(self, python: str, runs: Path, experiment: str) -> None:
        """Have an experiment synced soon. A sidecar that died is started again."""
        process = self._processes.get(runs)
        if process is None or process.poll() is not None:
            process = self._processes[runs] = subprocess.Popen(
                [python, "-m", "orchestrator.sidecar", str(runs)], stdin=subprocess.PIPE,
                env=None, cwd=runs, start_new_session=True,
            )  # fmt: skip
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


def _attempt(task: Task) -> Attempt:
    return ledger.read_attempt(task.experiment.run(task.run_id), task.folder)


def _deadline(task: Task, *, already: float = 0.0) -> float | None:
    """Return when a task's time is up, given the seconds that it has run already."""
    return time.monotonic() + max(0.0, task.seconds - already) if task.seconds else None
