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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from orchestrator import api
from orchestrator.errors import OrchError, RequestError, TrackingError
from orchestrator.project import Project

_PERIOD_SECONDS = 5.0
_START_SECONDS = 180.0
_STOP_SECONDS, _GONE_SECONDS = 10.0, 5.0
_ONLY_ASKED = 0
"""The signal that is none: it fails where nobody would get it."""


def serve(project: Project, names: Sequence[str], *, port: int) -> int:
    """Sync, serve until told to stop, and leave no process. Says how to reach it from another machine.

    Ctrl-C, SIGTERM and a terminal that is closed stop it. Raises TrackingError if the server ends by itself.
    """
    port = _free_port(port)
    told = threading.Event()

    def stop(*_: object) -> None:
        told.set()  # what a library does at that moment may swallow the exception
        sys.exit(0)

    for number in _told_to_stop(signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    server = None
    try:
        _sync(project, names)
        for name in names:
            if uri := api.server_of(project, name):
                _say(f"{name} is on {uri}")
        _say("starting the MLflow UI ...")
        with _put_off():
            server = _start(project, port)
        _wait_until_up(server, port)
        print(f"http://127.0.0.1:{port}", flush=True)
        _say(f"from another machine: ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}", "Ctrl-C stops it")
        _sync_while_up(project, names, server, told)
    except KeyboardInterrupt:
        return 0
    finally:
        if server is not None:
            with _put_off():
                _stop(server)
    return 0


def _told_to_stop(*numbers: signal.Signals) -> list[signal.Signals]:
    """Return those of some signals that are not ignored, as SIGHUP is below `nohup`."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def _put_off() -> Iterator[None]:
    """Have signals to stop wait for the end of a block: what it starts has to be known, what it stops be gone."""
    came: list[int] = []
    numbers = _told_to_stop(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda received, _: came.append(received)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for received in came[:1]:
            signal.raise_signal(received)


def _start(project: Project, port: int) -> subprocess.Popen[bytes]:
    uri = f"sqlite:///{project.tracking_store / 'mlflow.db'}"
    return subprocess.Popen(
        [
            sys.executable, "-m", "orchestrator.cli.tethered",  # so that it ends with us, if we are killed, too
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1",
            "--port", str(port), "--workers", "1",
        ],
        # Without its job executor the server needs 0.5 GB and not 2.4; one worker answers fastest (FACTS 23).
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        cwd=project.runs.path,
    )  # fmt: skip


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
        "the MLflow server did not start", why=f"exit status {server.poll()}",
        fix="try another --port; `python -m mlflow server` shows its own messages",
    )  # fmt: skip


def _sync_while_up(
    project: Project, names: Sequence[str], server: subprocess.Popen[bytes], told: threading.Event
) -> None:
    while server.poll() is None:
        if told.wait(_PERIOD_SECONDS):
            return
        _sync(project, names)
    raise TrackingError(
        "the MLflow server has ended", why=f"exit status {server.poll()}", fix="orch ui starts it again"
    )


def _sync(project: Project, names: Sequence[str]) -> None:
    for name in names:
        try:
            api.sync(project, name)
            if done := api.register(project, name):
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
        print(line, file=sys.stderr, flush=True)
