"""The uploader process of a run: started with it, restarted if it dies, and given some time at the end."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import threading
from typing import Self

from orchestrator.system.processes import NEUTRAL, python
from orchestrator.worker.assignment import Assignment

_log = logging.getLogger(__name__)
_RESTART_SECONDS = 10.0


class Uploader:
    """Keeps one `python -m orchestrator.tracking.uploader` running until it is closed."""

    def __init__(self, argv: list[str]) -> None:
        self._argv = argv
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._process = self._start()
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    @classmethod
    def beside(cls, assignment: Assignment) -> Self | None:
        """Start an uploader if the run's launch asks for one; None otherwise, or if it cannot be started."""
        tracking = assignment.header.tracking
        if not assignment.leads or tracking["kind"] != "server" or tracking["upload"] != "jobs":
            return None
        task = (str(assignment.launch.path), str(assignment.planned.index), str(assignment.planned.attempt))
        argv = python("-m", "orchestrator.tracking.uploader", *task)
        try:
            return cls(argv)
        except OSError as error:
            _log.warning("metrics stay here until `orch ui --once`: no uploader can be started: %s", error)
            return None

    def release(self) -> None:
        """Make it send the rest, and end. Returns at once."""
        with self._lock:
            self._closing.set()
            _close_input(self._process, last=b"\n")  # a forked child that outlives this process keeps the pipe open

    def close(self, seconds: float) -> None:
        """Release it and wait for at most this many seconds; what it has not sent by then is sent later."""
        self.release()
        try:
            self._process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            _log.warning("not all was sent to the tracking server; `orch ui --once` sends the rest")

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._argv, stdin=subprocess.PIPE, cwd=NEUTRAL)

    def _keep(self) -> None:
        while True:
            self._process.wait()
            if self._closing.wait(_RESTART_SECONDS):
                return
            with self._lock:
                if self._closing.is_set():
                    return
                _close_input(self._process)
                self._process = self._start()


def _close_input(process: subprocess.Popen[bytes], *, last: bytes = b"") -> None:
    if process.stdin is not None and not process.stdin.closed:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(last)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
