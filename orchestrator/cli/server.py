"""`orch ui`: the MLflow UI over the embedded store, on loopback, kept up to date while it runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

from orchestrator import api
from orchestrator.errors import OrchError, RequestError, TrackingError
from orchestrator.project import Project

_PERIOD_SECONDS = 5.0
_START_SECONDS = 180.0


def serve(project: Project, names: Sequence[str], *, port: int) -> int:
    """Sync, serve until Ctrl-C, and stop cleanly. Says how to reach it from another machine."""
    port = _free_port(port)
    _sync(project, names)
    for name in names:
        if uri := api.server_of(project, name):
            _say(f"{name} is on {uri}")
    _say("starting the MLflow UI ...")
    server = _start(project, port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        _wait_until_up(server, port)
        host = socket.gethostname()
        print(f"http://127.0.0.1:{port}", flush=True)
        _say(f"from another machine: ssh -L {port}:127.0.0.1:{port} {host}", "Ctrl-C stops it")
        _sync_while_up(project, names, server)
    except KeyboardInterrupt:
        return 0
    finally:
        _stop(server)
    return 0


def _start(project: Project, port: int) -> subprocess.Popen[bytes]:
    uri = f"sqlite:///{project.tracking_store / 'mlflow.db'}"
    return subprocess.Popen(
        [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1",
            "--port", str(port), "--workers", "1",
        ],
        # Without its job executor the server needs 0.5 GB and not 2.4; one worker answers fastest (FACTS 23).
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
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


def _sync_while_up(project: Project, names: Sequence[str], server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        time.sleep(_PERIOD_SECONDS)
        _sync(project, names)


def _sync(project: Project, names: Sequence[str]) -> None:
    for name in names:
        try:
            api.sync(project, name)
            if done := api.register(project, name):
                _say(f"{name}: {done}")
        except OrchError as error:
            _say(f"not synced yet: {error}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


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
