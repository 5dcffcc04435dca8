"""`python -m orchestrator.worker.warm MODULE`: imports once what training needs, and forks a process for each run.

A forked process becomes `python -m MODULE ...` in all that matters: a session, signals, an environment, a folder and
output of its own. It only need not import torch and Lightning again.

What a fork cannot take along must not be there before it: other threads, CUDA, NVML, MLflow. Where it is, this process
ends, and says why; whoever asked for runs starts them one by one instead. It has no other state: whoever asks learns
the process of each run at once, and if this process is killed, the runs go on without it.

It speaks JSON over the Unix socket that is its standard input, one message a packet:
    in   {"ticket": 1, "argv": [...], "env": {...}, "cwd": "..."}, with the descriptor that takes the run's output,
         and those that it shall keep open
    out  {"ready": true}, then {"ticket": 1, "process": {...}}, and once that has ended {"pid": 123, "status": -9}
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


def unfit() -> str:
    """Return what this process has that a fork cannot take along, or nothing."""
    threads = psutil.Process().num_threads()
    if threads > 1:
        return f"it has {threads} threads"
    if "mlflow" in sys.modules:
        return "MLflow is imported"
    if getattr(sys.modules.get("pynvml"), "nvmlLib", None) is not None:  # torch imports it, and calls nothing
        return "NVML is in use"
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return "CUDA is in use" if cuda is not None and cuda.is_initialized() else ""


def prepare(module: str) -> str:
    """Import what a worker's module needs; return why this process cannot be forked for it, or nothing."""
    log.to_stderr()
    _import_what_runs(module)
    if (first := os.fork()) == 0:
        os._exit(0)
    os.waitpid(first, 0)  # numerical libraries end their pools of threads at a fork, and make new ones when needed
    gc.freeze()  # what is there now is shared with all runs, and never looked at again
    return unfit()


def _import_what_runs(module: str) -> None:
    """Import what a worker's module imports once it runs; another than ours, such as the tests' own, trains nothing."""
    import orchestrator.worker.attempt  # noqa: F401 - it is to be there

    if module == "orchestrator.worker":
        libraries.load()


class Server:
    """Forks what is asked for, and tells of each end, until whoever asks closes the channel."""

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
        """Be woken by the end of a child; what asks a run to stop is for the run alone to hear."""
        for number in _STOPPING:
            signal.signal(number, signal.SIG_IGN)
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def _fork(self, request: Mapping[str, object], descriptors: Sequence[int]) -> None:
        if why := unfit():
            raise RuntimeError(f"no run can be forked any more: {why}")
        pid = os.fork()
        if pid == 0:
            self._leave()
            _become(self._module, request, descriptors[0])
        for descriptor in descriptors:
            os.close(descriptor)
        self._children.add(pid)
        self._send(ticket=request["ticket"], process=ProcessId.of(pid).to_json())  # it is there until we reap it

    def _leave(self) -> None:
        """Let go, in a forked process, of all that is the server's."""
        signal.set_wakeup_fd(-1)
        for number in (*_STOPPING, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        for each in (self._channel, self._wake, self._waker):
            each.close()

    def _ended(self) -> Iterator[tuple[int, int]]:
        """Reap and yield the processes that have ended, each with its exit status; negative: a signal."""
        for pid in sorted(self._children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self._children.discard(pid)
                yield pid, os.waitstatus_to_exitcode(status)

    def _send(self, **message: object) -> None:
        self._channel.send(json.dumps(message).encode())


def _become(module: str, request: Mapping[str, Any], output: int) -> NoReturn:
    """Be the worker of a run, from its first line to its end."""
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
    except BaseException:  # noqa: BLE001 - whatever it is, it ends this run and not the next
        traceback.print_exc()
    finally:
        with suppress(OSError):  # of a full disk
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
    """Serve on standard input. Exit status: 0 nobody asks any more, 1 this process cannot be forked."""
    if why := prepare(module):
        sys.stderr.write(f"runs are started one by one, and not forked: {why}\n")
        return 1
    channel = socket.socket(fileno=os.dup(0))
    try:
        Server(module, channel).serve()
    except (BrokenPipeError, ConnectionResetError):  # whoever asked has died; its successor finds the runs
        return 0
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stderr.flush()
    os._exit(status)
