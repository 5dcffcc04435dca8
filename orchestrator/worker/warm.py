"""`python -m orchestrator.worker.warm MODULE`: the prefork server, which imports training once and forks each run.

A forked process is equivalent to `python -m MODULE ...`, with a session, signal handlers, an environment, a folder and
output of its own. It only saves the time of importing torch and Lightning.

Some things do not survive a fork: other threads, CUDA, NVML, MLflow. If one of them is in use, this process prints
which, and ends; its client (`orchestrator.local.prefork`) then starts runs one by one. It has no other state: the
client learns the process of each run at once, and if this server is killed, the runs continue without it.

It speaks JSON over the Unix socket that is its standard input, one message per packet:
    in   {"ticket": 1, "argv": [...], "env": {...}, "cwd": "..."}, with the file descriptor for the run's output, and
         those that the run has to keep open
    out  {"ready": true}, then {"ticket": 1, "process": {...}}, and after its end {"pid": 123, "status": -9}
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NoReturn

import psutil

from orchestrator.system.processes import ProcessId
from orchestrator.worker import log
from orchestrator.worker.fit import libraries

_MESSAGE_BYTES = 2**18
_MOST_DESCRIPTORS = 64
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)


def unforkable() -> str:
    """Return what in this process would not survive a fork; an empty text if there is nothing."""
    threads = psutil.Process().num_threads()
    if threads > 1:
        return f"it has {threads} threads"
    if "mlflow" in sys.modules:
        return "MLflow is imported"
    if getattr(sys.modules.get("pynvml"), "nvmlLib", None) is not None:  # torch only imports it
        return "NVML is in use"
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return "CUDA is in use" if cuda is not None and cuda.is_initialized() else ""


def prepare(module: str) -> str:
    """Import what a worker's module needs; return why this process cannot be forked, or an empty text."""
    log.to_stderr()
    _import_what_runs(module)
    if (first := os.fork()) == 0:
        os._exit(0)
    os.waitpid(first, 0)  # at a fork, numerical libraries end their thread pools, and make new ones when needed
    gc.freeze()  # the collector then leaves these objects, shared with all runs, alone
    return unforkable()


def _import_what_runs(module: str) -> None:
    """Import what a worker's module imports when it runs. Only `orchestrator.worker` trains; those of tests do not."""
    import orchestrator.worker.attempt  # noqa: F401 - imported for its effect on sys.modules

    if module == "orchestrator.worker":
        libraries.load()


class Server:
    """Forks the requested runs, and reports the end of each, until the client closes the channel."""

    def __init__(self, module: str, channel: socket.socket) -> None:
        self._module, self._channel = module, channel
        self._wake, self._waker = socket.socketpair()
        self._children: set[int] = set()

    def serve(self) -> None:
        self._take_signals()
        self._send(ready=True)
        while True:
            readable, _, _ = select.select([self._channel, self._wake], [], [])
            if self._wake in readable:
                self._wake.recv(_MESSAGE_BYTES)
            for pid, status in self._ended():
                self._send(pid=pid, status=status)
            if self._channel in readable:
                message, descriptors, _, _ = socket.recv_fds(self._channel, _MESSAGE_BYTES, _MOST_DESCRIPTORS)
                if not message:
                    return
                self._fork(json.loads(message), descriptors)

    def _take_signals(self) -> None:
        """Wake up when a child ends, and ignore stop signals, which are meant for the runs."""
        for number in _STOPPING:
            signal.signal(number, signal.SIG_IGN)
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _fork(self, request: Mapping[str, object], descriptors: Sequence[int]) -> None:
        if why := unforkable():
            raise RuntimeError(f"no run can be forked any more: {why}")
        pid = os.fork()
        if pid == 0:
            self._leave()
            _become(self._module, request, descriptors[0])
        for descriptor in descriptors:
            os.close(descriptor)
        self._children.add(pid)
        self._send(ticket=request["ticket"], process=ProcessId.of(pid).to_json())  # it exists until it is reaped here

    def _leave(self) -> None:
        """Reset, in a forked process, the signal handlers and sockets of the server."""
        signal.set_wakeup_fd(-1)
        for number in (*_STOPPING, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        for each in (self._channel, self._wake, self._waker):
            each.close()

    def _ended(self) -> Iterator[tuple[int, int]]:
        """Reap and yield the processes that have ended, each with its exit status, or the negative of a signal."""
        for pid in sorted(self._children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._children.discard(pid)
                yield pid, os.waitstatus_to_exitcode(status)

    def _send(self, **message: object) -> None:
        self._channel.send(json.dumps(message).encode())


def _become(module: str, request: Mapping[str, Any], output: int) -> NoReturn:
    """Run the worker's module in this forked process, and exit with its status."""
    status = 1
    try:
        os.setsid()
        _redirect(output)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.argv = [module, *request["argv"]]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001 - no error of a run may reach the server's code
        traceback.print_exc()
    finally:
        with suppress(OSError):  # the disk may be full
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _redirect(output: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    for descriptor, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, target)
    os.close(null)
    os.close(output)


def main(module: str) -> int:
    """Serve on standard input. Exit status: 0 the client has closed the channel, 1 this process cannot be forked."""
    if why := prepare(module):
        sys.stderr.write(f"runs are started one by one, and not forked: {why}\n")
        return 1
    channel = socket.socket(fileno=os.dup(0))
    try:
        Server(module, channel).serve()
    except (BrokenPipeError, ConnectionResetError):  # the client has died; its successor adopts the runs
        return 0
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stderr.flush()
    os._exit(status)
