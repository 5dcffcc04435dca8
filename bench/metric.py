"""One metric call in the training loop: our logger, and Lightning's MLFlowLogger on SQLite."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from pytorch_lightning.loggers import MLFlowLogger

from bench.measure import Row, Seconds, in_turns
from bench.sandbox import Sandbox
from orchestrator.tracking import SpoolWriter
from orchestrator.tracking.logger import SpoolLogger

_ROUNDS = 5
_CALLS = {"writer": 5_000, "logger": 5_000, "peer": 100}


def rows(box: Sandbox) -> list[Row]:
    with SpoolWriter(box.folder / "metrics.jsonl") as writer:
        logger = SpoolLogger(writer, box.folder / "artifacts")
        mlflow = MLFlowLogger(tracking_uri=f"sqlite:///{box.folder / 'mlflow.db'}")
        calls: dict[str, Callable[[dict[str, float], int], Any]] = {
            "writer": writer.metrics, "logger": logger.log_metrics, "peer": mlflow.log_metrics,
        }  # fmt: skip
        found = in_turns("metric", _ROUNDS, {side: partial(_per_call, calls[side], _CALLS[side]) for side in calls})
    whats = {"logger": "a metric call: the logger", "writer": "a metric call: the spool itself"}
    return [
        Row(what=what, measured=found[side], budget=2e-5, peer="MLFlowLogger on SQLite", peer_measured=found["peer"])
        for side, what in whats.items()
    ]


def _per_call(log: Callable[[dict[str, float], int], Any], calls: int) -> Seconds:
    """Return the median of single calls."""
    taken = []
    for step in range(calls):
        began = time.perf_counter()
        log({"train/loss": 0.5 + step}, step)
        taken.append(time.perf_counter() - began)
    return median(taken)
