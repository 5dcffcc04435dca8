"""A process that has imported torch and Lightning once, for the runs that really train in tests.

    python warm_parent.py SOCKET          ends with its standard input

A client sends the arguments with which `python -m orchestrator.worker.warm MODULE` would be started, and gets the pid
of a forked process that becomes just that: the prefork server of one launch, with its imports done. Nothing of this
package is imported before the fork, because the launch's frozen code is used.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

SOCKET = "ORCH_TEST_WARM_PARENT"
_MESSAGE_BYTES = 2**18


def serve(address: str) -> None:
    import pytorch_lightning  # noqa: F401 - imported for the processes that are forked
    import torch  # noqa: F401 - as above

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forked processes are not reaped here: the client watches them
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(f"{address}.new")
        listening.listen()
        Path(f"{address}.new").rename(address)
        while True:
            readable, _, _ = select.select([listening, sys.stdin], [], [])
            if sys.stdin in readable:
                return
            _answer(listening)


def _answer(listening: socket.socket) -> None:
    channel, _ = listening.accept()
    with channel:
        message, descriptors, _, _ = socket.recv_fds(channel, _MESSAGE_BYTES, 2)
        pid = os.fork()
        if pid == 0:
            listening.close()
            channel.close()
            _become(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(str(pid).encode())


def _become(asked: dict[str, Any], given: int, output: int) -> NoReturn:
    """Run the prefork server of a launch to its end; it exits by itself in all cases but one."""
    try:
        os.setsid()
        for descriptor, target in ((given, 0), (output, 1), (output, 2)):
            os.dup2(descriptor, target)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(asked["env"])
        os.chdir(asked["cwd"])
        sys.path[:1] = [asked["cwd"], *asked["env"]["PYTHONPATH"].split(os.pathsep)]
        sys.argv = ["orchestrator.worker.warm", asked["module"]]
        runpy.run_module("orchestrator.worker.warm", run_name="__main__", alter_sys=True)
    finally:
        os._exit(1)


class WarmProcess:
    """A stand-in for the subprocess of a prefork server that was forked."""

    def __init__(self, argv: list[str], *, env: dict[str, str], stdin: int, stdout: Any, cwd: Any, **_: Any) -> None:
        asked = {"module": argv[3], "env": dict(env), "cwd": str(cwd)}
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
            self._connect(channel)
            socket.send_fds(channel, [json.dumps(asked).encode()], [stdin, stdout.fileno()])
            self.pid = int(channel.recv(_MESSAGE_BYTES))

    @staticmethod
    def _connect(channel: socket.socket) -> None:
        address = Path(os.environ[SOCKET])
        while not address.exists():  # it imports torch
            time.sleep(0.05)
        channel.connect(str(address))

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        """Return at once: only a child can be waited for, and it ends with its channel."""
        return 0


if __name__ == "__main__":
    serve(sys.argv[1])
