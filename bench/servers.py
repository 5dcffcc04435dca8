"""An MLflow server, and a proxy that makes it faulty, both from the tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.measure import say
from bench.sandbox import CHECKOUT, Sandbox
from orchestrator.config import schema

sys.path.append(str(CHECKOUT / "tests" / "support"))

import many_uploaders
from faulty_server import MlflowServer, Proxy

__all__ = ["MlflowServer", "Proxy", "many_uploaders", "proxied", "server", "tracking"]


@contextmanager
def server(box: Sandbox, *, connections: int = 0) -> Iterator[MlflowServer]:
    say("starting an MLflow server")
    made = MlflowServer(box.folder / "server", connections=connections)
    try:
        made.start()
        yield made
    finally:
        made.kill()


@contextmanager
def proxied(target: MlflowServer, *, slow_seconds: float = 5.0) -> Iterator[Proxy]:
    made = Proxy(target.address)
    made.slow_seconds = slow_seconds
    try:
        yield made
    finally:
        made.close()


def tracking(uri: str, name: str, *, end_seconds: int = 120) -> dict[str, Any]:
    options = {"kind": "server", "uri": uri, "experiment": name, "system_metrics": False, "end_seconds": end_seconds}
    return schema.tracking(options)
