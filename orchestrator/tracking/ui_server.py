"""`python -m orchestrator.tracking.ui_server STORE DESCRIPTOR`: MLflow's UI over an embedded store, behind `door`.

It serves the given socket, which is listening already. The secret is the first line of standard input, so that it is
neither an argument nor in the environment. The server ends when standard input closes, however its parent ends.

Only MLflow's Flask application is loaded. The FastAPI one around it, which `mlflow server` runs, adds nothing that a
viewer needs: the assistant, the gateway, jobs, trace receivers, artifact uploads and MCP servers.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, cast

import uvicorn

from orchestrator.tracking.door import Door, Keys

if TYPE_CHECKING:
    from orchestrator.tracking.door import Application

_GRACE_SECONDS = 5


def _use_store(store: Path) -> None:
    """Set the environment that MLflow reads when imported, without the user's settings for other MLflow servers."""
    for name in [name for name in os.environ if name.lstrip("_").startswith(("MLFLOW_", "prometheus_"))]:
        del os.environ[name]
    os.environ |= {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{store / 'mlflow.db'}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _application() -> Application:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow itself uses this module, which Starlette has deprecated
        from starlette.middleware.wsgi import WSGIMiddleware
    from mlflow.server import app

    return cast("Application", WSGIMiddleware(app))


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


def _serve(store: Path, listening: socket.socket, secret: str) -> None:
    _use_store(store)
    config = uvicorn.Config(
        Door(_application(), Keys.of(secret)),
        interface="asgi3",
        lifespan="off",
        ws="none",
        log_level="warning",
        access_log=False,  # it would contain the token
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS - 2,
    )
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    word = sys.stdin.buffer.readline().decode().strip()
    threading.Thread(target=_end_with_input, daemon=True).start()
    _serve(Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])), word)
