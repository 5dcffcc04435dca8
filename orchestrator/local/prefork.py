"""A `Starter` for runs in packs: forked from a warm parent that has imported torch and Lightning once.

There is one parent for each Python, code, worker and number of threads (see worker/warm.py, which has the protocol).
It holds nothing that matters. If it dies, the runs that it has forked are watched as those of a former supervisor
are; what it was asked for and had not yet forked is started as any other run, and so is everything where there can
be no parent. Should both have been started after all, the attempt is claimed by one of them only.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import select
import signal
import socket
import subprocess
import tempfile
from typing import IO, Any

from orchestrator.local.launcher import Children, Found, Handle, Start, signal_group
from orchestrator.system.processes import ProcessId

_log = logging.getLogger(__name__)
_MESSAGE_BYTES = 2**18
_PRINTED_BYTES = 4000
_END_SECONDS = 10.0
_MOMENT_SECONDS = 0.1

_Kind = tuple[str, str, str, str]


class _NotAskedError(Exception):
    """A message could not be sent: the parent has died, or hears nothing, or the environment is too long."""


class Forking:
    """Starts runs that are packed by forking, all others as they are."""

    def __init__(self) -> None:
        self._parents: dict[_Kind, Parent] = {}
        self._unfit: set[_Kind] = set()

    def __call__(self, start: Start) -> Handle:
        if start.task.resources.pack is None or len(start.environments) > 1 or start.argv[1] != "-m":
            return Children(start)
        kind = _kind(start)
        parent = self._parents.get(kind)
        if parent is not None:
            parent.poll()
            if parent.lost:
                self._drop(kind, parent)
                parent = None
        if parent is None and kind not in self._unfit:
            for other in [each for each, parent in self._parents.items() if not parent.busy]:
                self._drop(other, self._parents[other])
            parent = self._parents[kind] = Parent(start)
        try:
            return Forked(parent, start) if parent else Children(start)
        except _NotAskedError as error:
            _log.warning("a run is started by itself, and not forked: %s", error)
            return Children(start)

    def wait(self, seconds: float) -> None:
        """Return once a parent has sent a message, or after `seconds`; without parents after a moment."""
        channels = [parent.channel for parent in self._parents.values() if not parent.lost]
        select.select(channels, [], [], seconds if channels else min(seconds, _MOMENT_SECONDS))

    def close(self) -> None:
        """End the parents; the runs that they have forked go on."""
        for parent in self._parents.values():
            parent.close()
        self._parents.clear()

    def _drop(self, kind: _Kind, parent: Parent) -> None:
        if parent.lost and not parent.ready:  # and so would be the next one
            self._unfit.add(kind)
            _log.warning("runs are started one by one, and not forked: %s", parent.printed() or "no parent came up")
        parent.close()
        del self._parents[kind]


def _kind(start: Start) -> _Kind:
    """Return what a parent is good for: where it imports from, and how many threads its libraries may use."""
    environment = start.environments[0]
    return start.argv[0], start.argv[2], environment["PYTHONPATH"], environment.get("OMP_NUM_THREADS", "")


class Parent:
    """The warm parent of one kind of runs, seen from here. `lost`: it has ended, or is ending."""

    def __init__(self, start: Start) -> None:
        self.ready = self.lost = False
        self._tickets = itertools.count()
        self._asked: dict[int, Forked] = {}
        self._forked: dict[int, Forked] = {}
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = subprocess.Popen(
                [start.argv[0], "-m", "orchestrator.worker.warm", start.argv[2]],
                env=start.environments[0],
                stdin=theirs.fileno(),
                stdout=self._output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=start.task.experiment.path,
            )
        except OSError:
            self.channel.close()
            self._output.close()
            raise
        finally:
            theirs.close()

    @property
    def busy(self) -> bool:
        """Whether a run that it was asked for has not ended."""
        self.poll()
        return bool(self._asked or self._forked)

    def ask(self, run: Forked, start: Start, output: int) -> None:
        """Have a run forked; what it prints goes to `output`. Raises _NotAskedError where that cannot be asked."""
        ticket = next(self._tickets)
        request = {
            "ticket": ticket,
            "argv": start.argv[3:],
            "env": dict(start.environments[0]),
            "cwd": str(start.task.experiment.path),
        }
        try:
            socket.send_fds(self.channel, [json.dumps(request).encode()], [output, *start.keep], socket.MSG_DONTWAIT)
        except OSError as error:
            raise _NotAskedError(error.strerror) from error
        self._asked[ticket] = run

    def poll(self) -> None:
        """Take in the messages that it has sent by now."""
        while not self.lost:
            try:
                message = self.channel.recv(_MESSAGE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if message:
                self._take(json.loads(message))
            else:
                self.lost = True

    def _take(self, message: dict[str, Any]) -> None:
        if "ready" in message:
            self.ready = True
        elif "ticket" in message:
            process = ProcessId.from_json(message["process"])
            self._forked[process.pid] = self._asked.pop(message["ticket"])
            self._forked[process.pid].begun(process)
        else:
            self._forked.pop(message["pid"]).over(message["status"])

    def kill(self) -> None:
        """End one that does not come up."""
        self._process.kill()
        self.lost = True

    def printed(self) -> str:
        """Return the last line of what it printed."""
        return _end(self._output).rpartition("\n")[2]

    def close(self) -> None:
        self.channel.close()
        try:
            self._process.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()


class Forked:
    """A run that a parent was asked for."""

    def __init__(self, parent: Parent, start: Start) -> None:
        self._parent, self._start = parent, start
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        self._process: ProcessId | None = None
        self._status: int | None = None
        self._signalled = 0
        self._instead: Handle | None = None
        try:
            parent.ask(self, start, self._output.fileno())
        except _NotAskedError:
            self._output.close()
            raise

    def begun(self, process: ProcessId) -> None:
        """Learn which process the run is; a signal that it was sent before reaches it now."""
        self._process = process
        if self._signalled:
            self.signal(self._signalled)

    def over(self, status: int) -> None:
        self._status = status

    @property
    def pending(self) -> bool:
        return self._process is None and self._instead is None and self._status is None

    def ended(self) -> int | None:
        if self._status is None and self._instead is None:
            self._parent.poll()
        if self._status is None and self._instead is None and self._parent.lost:
            self._go_on()
        return self._instead.ended() if self._instead else self._status

    def _go_on(self) -> None:
        """Do without the parent."""
        if self._process is not None:
            self._instead = Found(self._process, ranks=1)
        elif self._signalled:
            self._status = -self._signalled
        else:
            try:
                self._instead = Children(self._start)
            except OSError as error:
                self._output.write(f"cannot start {self._start.argv[0]}: {error.strerror}\n".encode())
                self._status = 1

    def signal(self, number: int) -> None:
        if self._instead is not None:
            self._instead.signal(number)
        elif self._process is None:
            self._signalled = number
            if number == signal.SIGKILL and not self._parent.ready:
                self._parent.kill()
        elif number == signal.SIGKILL:
            signal_group(self._process.pid, number)
        elif self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def close(self) -> str:
        instead = self._instead.close() if self._instead else ""
        with self._output as output:
            return "\n".join(filter(None, (_end(output), instead)))


def _end(output: IO[bytes]) -> str:
    output.seek(0, os.SEEK_END)
    output.seek(max(0, output.tell() - _PRINTED_BYTES))
    return output.read().decode(errors="replace").strip()
