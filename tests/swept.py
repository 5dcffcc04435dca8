"""An experiment whose runs have trained, as their records and spools tell it; nothing has run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator import ledger
from orchestrator.layout import ExperimentPaths, RunsRoot
from orchestrator.process import ProcessId
from orchestrator.record import Claim
from orchestrator.tracking import SpoolWriter

STEPS = 12
DIGEST = "da7a" * 16
Point = Mapping[str, Any]


def swept(
    runs: Path, points: Iterable[Point], *, name: str = "sweep",
    reach: Callable[[Point], float] = lambda point: 0.5, state: Callable[[Point], str] = lambda point: "done",
    metrics: Iterable[str] = ("val/acc", "val/loss"), curves: bool = True, tracking: str = "none",
) -> ExperimentPaths:  # fmt: skip
    """Write an experiment of one run per point. The first metric rises to what its run reaches, the others fall."""
    paths = RunsRoot(runs).experiment(name)
    lines = [_line(index, point) for index, point in enumerate(points)]
    config = {"model": {"lr": 0.1}, "data": {}, "trainer": {}, "seed": 0, "task": "fit"}
    launch = ledger.publish(paths, 1, _header(name, tracking), [config], lines)
    assert launch is not None
    launch.complete.touch()
    for line in lines:
        if state(line["point"]) != "queued":
            _train(paths, line, reach(line["point"]), state(line["point"]), tuple(metrics), curves=curves)
    return paths


def _train(
    paths: ExperimentPaths, line: Mapping[str, Any], value: float, state: str, names: tuple[str, ...], *, curves: bool
) -> None:  # fmt: skip
    attempt = paths.run(line["run"]).attempt(1)
    process = ProcessId.current()
    claim = Claim(launch=1, index=line["index"], code="c0de", generation=1, history=1, process=process, time=1.7e9)
    assert ledger.claim_attempt(attempt, claim)
    if curves:
        with SpoolWriter(attempt.metrics) as spool:
            for step in range(STEPS):
                share = (step + 1) / STEPS
                spool.metrics({names[0]: value * share, **dict.fromkeys(names[1:], 1 - value * share)}, step)
    events = ledger.EventWriter(attempt.events)
    reached = {names[0]: value, **dict.fromkeys(names[1:], 1 - value)}
    if state == "failed":
        events.write("failed", signature="KeyError at model.py:41", message="'x'", traceback="Traceback ...")
    else:
        events.write(state, metrics=reached, best={"metric": names[0], "value": value, "step": STEPS})
    ledger.mark(paths, line["run"], 1, state)


def _line(index: int, point: Point) -> dict[str, Any]:
    return {
        "index": index, "run": hashlib.sha256(json.dumps(point).encode()).hexdigest()[:12], "action": "submit",
        "reason": "new", "attempt": 1, "generation": 1, "history": 1, "code": "c0de", "data": DIGEST, "base": 0,
        "set": [], "point": dict(point), "resources": {},
    }  # fmt: skip


def _header(name: str, tracking: str) -> dict[str, Any]:
    code = {"tree": "c0de", "commit": "f00d" * 10, "dirty": False}
    version = {"source": "dvc", "path": "data/digits", "rev": "v1", "files": 3, "bytes": 1000}
    return {
        "experiment": name, "message": "", "argv": [], "overrides": ["experiment=sweep"], "choices": {}, "sweep": {},
        "objective": {"metric": "val/acc", "mode": "max"}, "cluster": {"kind": "inline"},
        "tracking": {"kind": tracking}, "env": "warn", "environment": {}, "python": "python", "code": [code],
        "data": {DIGEST: version},
    }  # fmt: skip
