"""`orch ui`: the MLflow UI over the embedded store, on loopback, kept up to date while it runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress

from orchestrator.cli.text import say
from orchestrator.config.credentials import masked_url
from orchestrator.errors import OrchError, RequestError, TrackingError
from orchestrator.project import Project
from orchestrator.tracking import stores

_PERIOD_SECONDS = 5.0
_START_SECONDS = 180.0
_STOP_SECONDS, _GONE_SECONDS = 10.0, 5.0
_LOOK_SECONDS = 0.1
_ONLY_ASKED = 0
"""The signal that is none: it fails where nobody would get it."""


def serve(project: Project, names: Sequence[str], *, port: int) -> int:
    """Sync, serve until told to stop, and leave no process. Says how to reach it from another machine.

    Ctrl-C, SIGTERM and a terminal that is closed stop it, whatever a library does at that moment: the work is done in a
    thread, and this one only waits for a signal. Raises TrackingError if the server ends by itself.
    """
    told: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGHUP is below `nohup`
            signal.signal(number, lambda received, _: told.append(received))
    service = _Service(project, names, _free_port(port))
    service.start()
    while not told and service.is_alive():
        time.sleep(_LOOK_SECONDS)
    service.stop()
    if service.is_alive():  # in a library that does not come back: nothing is lost, but waiting for it
        sys.stdout.flush()
        os._exit(0)
    if service.error is not None:
        raise service.error
    return 0


class _Service(threading.Thread):
    """Syncs, starts the server, and goes on syncing until it is told to stop or fails."""

    def __init__(self, project: Project, names: Sequence[str], port: int) -> None:
        super().__init__(daemon=True)
        self.error: Exception | None = None
        self._project, self._names, self._port = project, names, port
        self._server: subprocess.Popen[bytes] | None = None
        self._starting, self._stopped = threading.Lock(), threading.Event()

    def stop(self) -> None:
        """Stop the server, and wait for a moment for what is being done."""
        with self._starting:
            self._stopped.set()
        if self._server is not None:
            _stop(self._server)
        self.join(_GONE_SECONDS)

    def run(self) -> None:
        try:
            self._serve()
        except Exception as error:  # noqa: BLE001 - the main thread raises it
            self.error = None if self._stopped.is_set() else error

    def _serve(self) -> None:
        _sync(self._project, self._names)
        for name in self._names:
            if uri := stores.server_of(self._project, name):
                _say(f"{name} is on {masked_url(uri)}")
        _say("starting the MLflow UI ...")
        with self._starting:
            if self._stopped.is_set():
                return
            server = self._server = _start(self._project, self._port)
        _wait_until_up(server, self._port)
        print(f"http://127.0.0.1:{self._port}", flush=True)
        here = f"ssh -L {self._port}:127.0.0.1:{self._port} {socket.gethostname()}"
        _say(f"from another machine: {here}", "Ctrl-C stops it")
        while server.poll() is None:
            if self._stopped.wait(_PERIOD_SECONDS):
                return
            _sync(self._project, self._names)
        raise TrackingError(
            "the MLflow server has ended", why=f"exit status {server.poll()}", fix="orch ui starts it again"
        )


def _start(project: Project, port: int) -> subprocess.Popen[bytes]:
    uri = f"sqlite:///{project.tracking_store / 'mlflow.db'}"
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "orchestrator.cli.die_with_parent",  # so that it ends with us, if we are killed, too
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--backend-store-uri",
            uri,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ],
        # Without its job executor the server needs 0.5 GB and not 2.4; one worker answers fastest (FACTS 23).
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=project.runs.path,
    )


def _wait_until_up(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
        else:
            return
    raise TrackingError(
        "the MLflow server did not start",
        why=f"exit status {server.poll()}",
        fix="try another --port; `python -m mlflow server` shows its own messages",
    )


def _sync(project: Project, names: Sequence[str]) -> None:
    for name in names:
        try:
            stores.sync(project, name)
            if done := stores.register(project, name):
                _say(f"{name}: {done}")
        except OrchError as error:
            _say(f"not synced yet: {error}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Stop the server and its worker, which may outlive it: they are a process group of their own."""
    deadline = time.monotonic() + _STOP_SECONDS
    number: int = signal.SIGTERM
    with suppress(ProcessLookupError):
        while time.monotonic() < deadline + _GONE_SECONDS:  # dead ones may stay for ever, where nobody waits for them
            os.killpg(server.pid, number)  # until there is nobody left
            server.poll()
            time.sleep(0.05)
            number = signal.SIGKILL if time.monotonic() > deadline else _ONLY_ASKED


def _free_port(port: int) -> int:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise RequestError(f"port {port} cannot be used", why=str(error), fix="leave out --port") from error
        return int(probe.getsockname()[1])


def _say(*lines: str) -> None:
    for line in lines:
        say(line)
