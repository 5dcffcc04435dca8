"""One metric call in the training loop: the logger of `orch`, and Lightning's MLFlowLogger on SQLite and over HTTP.

A further peer is MLflow's own asynchronous logging over HTTP, which keeps its queue only in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric
from pytorch_lightning.loggers import MLFlowLogger

from bench.measure import Row, Seconds, in_turns
from bench.sandbox import Sandbox
from bench.servers import server
from orchestrator.layout import AttemptPaths
from orchestrator.tracking import SpoolWriter
from orchestrator.tracking.logger import SpoolLogger

_ROUNDS = 5
_CALLS = {"writer": 5_000, "logger": 5_000, "sqlite": 100, "http": 50, "async": 500}
_AT_LEAST = {"async": 7.0}
_PEERS = {"sqlite": "MLFlowLogger on SQLite", "http": "MLFlowLogger over HTTP", "async": "MLflow's async logging"}


def rows(box: Sandbox) -> list[Row]:
    with SpoolWriter(box.folder / "metrics.jsonl") as writer, server(box) as mlflow:
        logger = SpoolLogger(writer, AttemptPaths(box.folder))
        sqlite = MLFlowLogger(tracking_uri=f"sqlite:///{box.folder / 'mlflow.db'}")
        queued: list[Any] = []
        http = MLFlowLogger(tracking_uri=mlflow.address)
        calls: dict[str, Callable[[dict[str, float], int], Any]] = {
            "writer": writer.metrics,
            "logger": logger.log_metrics,
            "sqlite": sqlite.log_metrics,
            "http": http.log_metrics,
            "async": _asynchronous(mlflow.address, queued),
        }
        found = in_turns("metric", _ROUNDS, {side: partial(_per_call, calls[side], _CALLS[side]) for side in calls})
        for operation in queued:  # while the server is there: at exit MLflow would wait minutes for it
            operation.wait()
    return [
        *(
            Row(
                what="a metric call: the logger",
                measured=found["logger"],
                peer=peer,
                peer_measured=found[side],
                at_least=_AT_LEAST.get(side),
            )
            for side, peer in _PEERS.items()
        ),
        Row(
            what="a metric call: the spool itself",
            measured=found["writer"],
            peer=_PEERS["sqlite"],
            peer_measured=found["sqlite"],
        ),
    ]


def _asynchronous(address: str, queued: list[Any]) -> Callable[[dict[str, float], int], Any]:
    """Return MLflow's asynchronous logging of one metric; its pending operations are added to a list."""
    client = MlflowClient(address)
    run = client.create_run(client.create_experiment("async")).info.run_id

    def log(values: dict[str, float], step: int) -> None:
        metrics = [Metric(name, value, 1_000 + step, step) for name, value in values.items()]
        queued.append(client.log_batch(run, metrics, synchronous=False))

    return log


def _per_call(log: Callable[[dict[str, float], int], Any], calls: int) -> Seconds:
    """Return the median of single calls."""
    taken = []
    for step in range(calls):
        began = time.perf_counter()
        log({"train/loss": 0.5 + step}, step)
        taken.append(time.perf_counter() - began)
    return median(taken)
