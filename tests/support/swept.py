"""An experiment whose runs have trained according to their records and spools; nothing has run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from launches import planned_run

from orchestrator.layout import ExperimentPaths, RunsRoot
from orchestrator.records.attempts import EventWriter, claim_attempt, mark_state
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import publish_launch
from orchestrator.records.planned import PlannedRun
from orchestrator.records.record import Claim
from orchestrator.spec import Objective
from orchestrator.system.processes import ProcessId
from orchestrator.tracking import SpoolWriter

STEPS = 12
DIGEST = "da7a" * 16
Point = Mapping[str, Any]


def swept(
    runs: Path,
    points: Iterable[Point],
    *,
    name: str = "sweep",
    reach: Callable[[Point], float] = lambda point: 0.5,
    state: Callable[[Point], str] = lambda point: "done",
    metrics: Iterable[str] = ("val/acc", "val/loss"),
    curves: bool = True,
    tracking: str = "none",
) -> ExperimentPaths:
    """Write an experiment with a run per point. The first metric rises to the run's final value, the others fall."""
    paths = RunsRoot(runs).experiment(name)
    lines = [_planned(index, point) for index, point in enumerate(points)]
    config = {"model": {"lr": 0.1}, "data": {}, "trainer": {}, "seed": 0, "task": "fit"}
    launch = publish_launch(paths, 1, _header(name, tracking), [config], lines)
    assert launch is not None
    launch.complete.touch()
    for planned in lines:
        if state(planned.point) != "queued":
            _train(paths, planned, reach(planned.point), state(planned.point), tuple(metrics), curves=curves)
    return paths


def _train(
    paths: ExperimentPaths, planned: PlannedRun, value: float, state: str, names: tuple[str, ...], *, curves: bool
) -> None:
    attempt = paths.run(planned.run).attempt(1)
    process = ProcessId.current()
    claim = Claim(launch=1, index=planned.index, code="c0de", generation=1, history=1, process=process, time=1.7e9)
    assert claim_attempt(attempt, claim)
    if curves:
        with SpoolWriter(attempt.metrics) as spool:
            for step in range(STEPS):
                share = (step + 1) / STEPS
                spool.metrics({names[0]: value * share, **dict.fromkeys(names[1:], 1 - value * share)}, step)
    events = EventWriter(attempt.events)
    reached = {names[0]: value, **dict.fromkeys(names[1:], 1 - value)}
    if state == "failed":
        events.write("failed", signature="KeyError at model.py:41", message="'x'", traceback="Traceback ...")
    else:
        events.write(state, metrics=reached, best={"metric": names[0], "value": value, "step": STEPS})
    mark_state(paths, planned.run, 1, state)


def _planned(index: int, point: Point) -> PlannedRun:
    run = hashlib.sha256(json.dumps(point).encode()).hexdigest()[:12]
    return planned_run(index=index, run=run, data=DIGEST, point=dict(point))


def _header(name: str, tracking: str) -> LaunchHeader:
    version = {"source": "dvc", "path": "data/digits", "rev": "v1", "files": 3, "bytes": 1000}
    return LaunchHeader(
        experiment=name,
        overrides=("experiment=sweep",),
        objective=Objective(metric="val/acc", mode="max"),
        cluster={"kind": "inline"},
        tracking={"kind": tracking},
        python="python",
        code=({"tree": "c0de", "commit": "f00d" * 10, "dirty": False},),
        data={DIGEST: version},
    )
