"""Metrics of a run's nodes: on each node, a thread of the run's first process writes them to a separate file.

A step is a second since the run's history began, so that the curves of a run continue when it moves to another node.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from orchestrator.errors import OrchError
from orchestrator.local import nvml
from orchestrator.records.attempts import read_claim
from orchestrator.tracking.node import Node
from orchestrator.tracking.spool import SpoolWriter
from orchestrator.tracking.upload import SYSTEM
from orchestrator.worker.assignment import Assignment

_log = logging.getLogger(__name__)
_PERIOD_SECONDS = 10.0
_FIRST_SECONDS = 1.0
_LEAST_SECONDS = 1.0
_ODD = re.compile(r"[^A-Za-z0-9._-]")


def period(tracking: Mapping[str, Any]) -> float | None:
    """Return the seconds between two measurements of a node, as a launch's `tracking` section asks; None: never."""
    wanted = tracking.get("system_metrics", False)
    if wanted is False or tracking.get("kind") == "none":
        return None
    return _PERIOD_SECONDS if wanted is True else max(_LEAST_SECONDS, float(wanted))


@contextmanager
def measured(assignment: Assignment) -> Iterator[None]:
    """Measure this node while the body runs, if this process is the run's first one there."""
    seconds = period(assignment.header.tracking)
    if seconds is None or not assignment.context.first_on_node:
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_measure, args=(assignment, seconds, ended), name="node metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _measure(assignment: Assignment, seconds: float, ended: threading.Event) -> None:
    """Measure soon after the start, then periodically, and once at the end. No error here may disturb the run."""
    try:
        began, prefix = _began(assignment), _prefix(assignment)
        gpus = _nvml() if assignment.planned.resources.gpus_per_node else None
        node = Node(Path(os.environ.get("TMPDIR") or "/tmp"), gpus, _visible(assignment))  # noqa: S108 - only looked at
        with SpoolWriter(assignment.attempt.system(_name())) as spool:
            step, wait = -1, min(_FIRST_SECONDS, seconds)
            while True:
                last = ended.wait(wait)
                step, wait = max(step + 1, round(time.time() - began)), seconds
                spool.metrics({f"{prefix}{name}": value for name, value in node.measure().items()}, step)
                if last:
                    return
    except (OSError, OrchError, RuntimeError) as error:
        _log.warning("no metrics of this node are recorded: %s", error)


def _nvml() -> ModuleType | None:
    """Return NVML's Python bindings; None without them, or without a driver."""
    try:
        return nvml.library()
    except (ImportError, OSError):
        return None


def _visible(assignment: Assignment) -> str | None:
    """Return the run's GPUs on this node; None for all."""
    return ",".join(assignment.context.devices) or os.environ.get("CUDA_VISIBLE_DEVICES")


def _began(assignment: Assignment) -> float:
    """Return when the run's history began."""
    first = read_claim(assignment.run.attempt(assignment.planned.history))
    return first.time if first else time.time()


def _prefix(assignment: Assignment) -> str:
    """Return the prefix of metric names; with several nodes it includes the node's name."""
    return f"{SYSTEM}{_name()}/" if assignment.context.nodes > 1 else SYSTEM


def _name() -> str:
    return _ODD.sub("_", os.environ.get("SLURMD_NODENAME") or socket.gethostname())
