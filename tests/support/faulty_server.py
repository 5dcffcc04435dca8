"""A real MLflow server, and a proxy in front of it that refuses, hangs, is slow, or returns errors on request."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_PATIENCE_SECONDS = 600.0
_HOP_HEADERS = {"connection", "transfer-encoding", "keep-alive", "server", "date", "content-length"}


class MlflowServer:
    """`mlflow server` on loopback, over SQLite unless another backend is given; it can be killed and frozen.

    `connections` are how many it may have to its database; 0: as many as MLflow's default, 15.
    """

    def __init__(self, folder: Path, *, backend: str = "", connections: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._port = folder, _free_port()
        self._env = {"MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": str(connections)} if connections else {}
        self._argv = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(self._port),
            "--workers",
            "1",
            "--backend-store-uri",
            backend or f"sqlite:///{folder / 'mlflow.db'}",
            "--artifacts-destination",
            str(folder / "artifacts"),
        ]
        self.address = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, again after `kill`, and return once it answers."""
        env = {
            **os.environ,
            **self._env,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "XDG_STATE_HOME": str(self._folder),  # it does not belong to the test that happens to start it
        }
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._argv, env=env, stdout=log, stderr=log, cwd=self._folder, start_new_session=True
            )
        _wait_until_up(self._process, self._port, self._folder / "log")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all its processes while the body runs: connections are accepted, but not answered."""
        if self._process is None:
            raise RuntimeError("it is not running")
        os.killpg(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self._process.pid, signal.SIGCONT)


@contextmanager
def mlflow_server(folder: Path, *, backend: str = "") -> Iterator[str]:
    """Run a server, and yield it."""
    server = MlflowServer(folder, backend=backend)
    try:
        server.start()
        yield server.address
    finally:
        server.kill()


def _wait_until_up(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(log.read_text())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding") != "chunked":  # as an empty file is sent
        return handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
    parts = []
    while size := int(handler.rfile.readline(), 16):
        parts.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(parts)


class Proxy:
    """Passes requests on. `fault`: None, `down`, `frozen`, `slow`, `500`, or `413` (of bodies over 20 kB).

    `calls` counts the requests that came.
    """

    def __init__(self, target: str) -> None:
        self.fault: str | None = None
        self.slow_seconds = 2.0
        self.calls = 0
        self.closing = threading.Event()
        self.host, self.port = target.removeprefix("http://").split(":")
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def do(self) -> None:
                proxy.calls += 1
                proxy.answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = _body(handler)
        match self.fault:
            case "down":
                return
            case "frozen":
                self.closing.wait(600)
                return
            case "slow":
                self.closing.wait(self.slow_seconds)
            case "500":
                handler.send_error(500)
                return
            case "413" if len(body) > 20_000:
                handler.send_error(413)
                return
        self._pass_on(handler, body)

    def _pass_on(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        connection = http.client.HTTPConnection(self.host, int(self.port), timeout=60)
        try:
            headers = {name: value for name, value in handler.headers.items() if name.lower() not in _HOP_HEADERS}
            connection.request(handler.command, handler.path, body, headers)
            response = connection.getresponse()
            content = response.read()
        except OSError:
            return
        finally:
            connection.close()
        handler.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in _HOP_HEADERS:
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
