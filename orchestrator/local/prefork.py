"""A `Starter` for runs in packs: forked from a prefork server that has imported torch and Lightning once.

There is one server for each Python, code, worker and number of threads (see worker/warm.py, which has the protocol).
It holds nothing that matters. If it dies, the runs that it has forked are watched as those of a former supervisor
are; what it was asked for and had not yet forked is started as any other run, and so is everything where there can
be no server. Should both have been started after all, the attempt is claimed by one of them only.
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

from orchestrator.local.launcher import AdoptedRun, ChildProcesses, Handle, Start, signal_group
from orchestrator.system.processes import ProcessId

_log = logging.getLogger(__name__)
_MESSAGE_BYTES = 2**18
_PRINTED_BYTES = 4000
_END_SECONDS = 10.0
_MOMENT_SECONDS = 0.1

_Kind = tuple[str, str, str, str]


class _RequestFailedError(Exception):
    """A message could not be sent: the server has died, or hears nothing, or the environment is too long."""


class PreforkLauncher:
    """Starts runs that are packed by forking, all others as they are."""

    def __init__(self) -> None:
        self._servers: dict[_Kind, PreforkServer] = {}
        self._unfit: set[_Kind] = set()

    def __call__(self, start: Start) -> Handle:
        if start.task.resources.pack is None or len(start.environments) > 1 or start.argv[1] != "-m":
            return ChildProcesses(start)
        kind = _kind(start)
        server = self._servers.get(kind)
        if server is not None:
            server.poll()
            if server.lost:
                self._drop(kind, server)
                server = None
        if server is None and kind not in self._unfit:
            for other in [each for each, server in self._servers.items() if not server.busy]:
                self._drop(other, self._servers[other])
            server = self._servers[kind] = PreforkServer(start)
        try:
            return ForkedRun(server, start) if server else ChildProcesses(start)
        except _RequestFailedError as error:
            _log.warning("a run is started by itself, and not forked: %s", error)
            return ChildProcesses(start)

    def wait(self, seconds: float) -> None:
        """Return once a server has sent a message, or after `seconds`; without servers after a moment."""
        channels = [server.channel for server in self._servers.values() if not server.lost]
        select.select(channels, [], [], seconds if channels else min(seconds, _MOMENT_SECONDS))

    def close(self) -> None:
        """End the servers; the runs that they have forked go on."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    def _drop(self, kind: _Kind, server: PreforkServer) -> None:
        if server.lost and not server.ready:  # and so would be the next one
            self._unfit.add(kind)
            _log.warning("runs are started one by one, and not forked: %s", server.printed() or "no server came up")
        server.close()
        del self._servers[kind]


def _kind(start: Start) -> _Kind:
    """Return what a server is good for: where it imports from, and how many threads its libraries may use."""
    environment = start.environments[0]
    return start.argv[0], start.argv[2], environment["PYTHONPATH"], environment.get("OMP_NUM_THREADS", "")


class PreforkServer:
    """The prefork server of one kind of runs, seen from here. `lost`: it has ended, or is ending."""

    def __init__(self, start: Start) -> None:
        self.ready = self.lost = False
        self._tickets = itertools.count()
        self._asked: dict[int, ForkedRun] = {}
        self._forked: dict[int, ForkedRun] = {}
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

    def ask(self, run: ForkedRun, start: Start, output: int) -> None:
        """Have a run forked; what it prints goes to `output`. Raises _RequestFailedError where that cannot be asked."""
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
            raise _RequestFailedError(error.strerror) from error
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
            self._forked[process.pid].on_started(process)
        else:
            self._forked.pop(message["pid"]).on_ended(message["status"])

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


class ForkedRun:
    """A run that a server was asked for."""

    def __init__(self, server: PreforkServer, start: Start) -> None:
        self._server, self._start = server, start
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        self._process: ProcessId | None = None
        self._status: int | None = None
        self._signalled = 0
        self._substitute: Handle | None = None
        try:
            server.ask(self, start, self._output.fileno())
        except _RequestFailedError:
            self._output.close()
            raise

    def on_started(self, process: ProcessId) -> None:
        """Learn which process the run is; a signal that it was sent before reaches it now."""
        self._process = process
        if self._signalled:
            self.signal(self._signalled)

    def on_ended(self, status: int) -> None:
        self._status = status

    @property
    def pending(self) -> bool:
        return self._process is None and self._substitute is None and self._status is None

    def ended(self) -> int | None:
        if self._status is None and self._substitute is None:
            self._server.poll()
        if self._status is None and self._substitute is None and self._server.lost:
            self._do_without_server()
        return self._substitute.ended() if self._substitute else self._status

    def _do_without_server(self) -> None:
        """Do without the server."""
        if self._process is not None:
            self._substitute = AdoptedRun(self._process, ranks=1)
        elif self._signalled:
            self._status = -self._signalled
        else:
            try:
                self._substitute = ChildProcesses(self._start)
            except OSError as error:
                self._output.write(f"cannot start {self._start.argv[0]}: {error.strerror}\n".encode())
                self._status = 1

    def signal(self, number: int) -> None:
        if self._substitute is not None:
            self._substitute.signal(number)
        elif self._process is None:
            self._signalled = number
            if number == signal.SIGKILL and not self._server.ready:
                self._server.kill()
        elif number == signal.SIGKILL:
            signal_group(self._process.pid, number)
        elif self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def close(self) -> str:
        instead = self._substitute.close() if self._substitute else ""
        with self._output as output:
            return "\n".join(filter(None, (_end(output), instead)))


def _end(output: IO[bytes]) -> str:
    output.seek(0, os.SEEK_END)
    output.seek(max(0, output.tell() - _PRINTED_BYTES))
    return output.read().decode(errors="replace").strip()
