"""`orch ui`: the MLflow UI over the embedded store, on loopback, kept up to date while it runs.

No other program can answer in the server's place: its socket listens before it starts, and this process keeps the
socket open for as long as the address is in use.
"""

from __future__ import annotations

import html
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Sequence
from contextlib import closing, suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import IO

from orchestrator.cli.text import say
from orchestrator.config.credentials import masked_url
from orchestrator.errors import OrchError, TrackingError
from orchestrator.layout import state_dir
from orchestrator.project import Project
from orchestrator.system.files import check_private, make_private
from orchestrator.system.ports import HOST, listen, taken, usual_port
from orchestrator.system.processes import NEUTRAL, python
from orchestrator.tracking import stores
from orchestrator.tracking.door import new_secret

_PERIOD_SECONDS = 5.0
_START_SECONDS = 180.0
_STOP_SECONDS, _GONE_SECONDS = 10.0, 5.0
_LOOK_SECONDS = 0.1
_ONLY_ASKED = 0
"""Signal number 0, which is never delivered: sending it fails if there is no process to receive it."""


def serve(project: Project, names: Sequence[str], *, port: int | None, browse: bool) -> int:
    """Sync, serve until stopped, and leave no process. Prints how to reach it from another machine.

    Ctrl-C, SIGTERM and a closed terminal stop it, whatever a library does at that moment: the work is done in another
    thread, while this one only waits for a signal. Raises TrackingError if the server ends by itself.
    """
    received_signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as SIGHUP is under `nohup`
            signal.signal(number, lambda received, _: received_signals.append(received))
    with listen(port) as listening:
        if port is None and listening.getsockname()[1] != (usual := usual_port(os.getuid())):
            _say(f"not on port {usual}, as usual: {taken(usual)}")
        service = _Service(project, names, listening, browse=browse)
        service.start()
        while not received_signals and service.is_alive():
            time.sleep(_LOOK_SECONDS)
        service.stop()
    if service.is_alive():  # stuck in a library call: nothing is lost by not waiting for it
        sys.stdout.flush()
        os._exit(0)
    if service.error is not None:
        raise service.error
    return 0


class _Service(threading.Thread):
    """Syncs, starts the server, and keeps syncing until it is stopped or fails."""

    def __init__(self, project: Project, names: Sequence[str], listening: socket.socket, *, browse: bool) -> None:
        super().__init__(daemon=True)
        self.error: Exception | None = None
        self._project, self._names, self._listening, self._browse = project, names, listening, browse
        self._server: subprocess.Popen[bytes] | None = None
        self._page: Path | None = None
        self._starting, self._stopped = threading.Lock(), threading.Event()

    def stop(self) -> None:
        """Stop the server, and wait briefly for work in progress."""
        with self._starting:
            self._stopped.set()
        if self._server is not None:
            _stop(self._server)
        self.join(_GONE_SECONDS)
        if self._page is not None:
            self._page.unlink(missing_ok=True)

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
        secret = new_secret()
        with tempfile.TemporaryFile() as log:
            with self._starting:
                if self._stopped.is_set():
                    return
                server = self._server = _start(self._project, self._listening, secret, log)
            _wait_until_up(server, self._port, secret, log)
        self._announce(f"http://{HOST}:{self._port}/?token={secret}")
        while server.poll() is None:
            if self._stopped.wait(_PERIOD_SECONDS):
                return
            _sync(self._project, self._names)
        raise TrackingError(
            "the MLflow server has ended", why=f"exit status {server.poll()}", fix="orch ui starts it again"
        )

    @property
    def _port(self) -> int:
        return int(self._listening.getsockname()[1])

    def _announce(self, url: str) -> None:
        print(url, flush=True)
        _say(f"from another machine: ssh -L {self._port}:{HOST}:{self._port} {socket.gethostname()}", "Ctrl-C stops it")
        if self._browse:
            self._page = _open(url)


def _start(project: Project, listening: socket.socket, secret: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the server on a socket. It gets the secret by standard input, which stays open while this process runs."""
    program = "orchestrator.tracking.ui_server"
    descriptor = listening.fileno()
    server = subprocess.Popen(
        python("-m", program, str(stores.own_store(project).absolute()), str(descriptor)),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=log,
        start_new_session=True,
        cwd=NEUTRAL,
        pass_fds=[descriptor],
    )
    if server.stdin is not None:
        with suppress(OSError):  # it has ended already; the reason is read later
            server.stdin.write(f"{secret}\n".encode())
            server.stdin.flush()
    return server


def _wait_until_up(server: subprocess.Popen[bytes], port: int, secret: str, log: IO[bytes]) -> None:
    """Wait for an answer on the server's socket, without a proxy; no other program can have its port."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        with closing(HTTPConnection(HOST, port, timeout=5)) as connection, suppress(OSError, HTTPException):
            connection.request("GET", "/health", headers={"Authorization": f"Bearer {secret}"})
            if connection.getresponse().status == HTTPStatus.OK:
                return
    raise TrackingError("the MLflow server did not start", why=_why(server, log), fix="orch ui starts it again")


def _why(server: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return "; ".join([f"exit status {server.poll()}", *lines[-1:]])


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
        while time.monotonic() < deadline + _GONE_SECONDS:  # zombies stay if their parent does not wait for them
            os.killpg(server.pid, number)  # until no process is left
            server.poll()
            time.sleep(0.05)
            number = signal.SIGKILL if time.monotonic() > deadline else _ONLY_ASKED


def _open(url: str) -> Path | None:
    """Open a URL in the user's browser, through a file: other users of the machine could read the token in an argument.

    Returns the file, which the caller removes once the server has ended.
    """
    make_private(folder := state_dir() / "ui")
    check_private(folder)
    page = folder / f"{secrets.token_hex(8)}.html"
    page.touch(mode=0o600, exist_ok=False)
    page.write_text(f'<!doctype html><meta http-equiv="refresh" content="0;url={html.escape(url)}">\n')
    if not webbrowser.open(page.as_uri()):
        _say("no browser could be started here: open the URL above")
    return page


def _say(*lines: str) -> None:
    for line in lines:
        say(line)
