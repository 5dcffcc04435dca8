"""An experiment with records of any number of runs, written by the real code, although nothing has run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.layout import ExperimentPaths, RunsRoot
from orchestrator.records.attempts import EventWriter, claim_attempt, mark_state
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import publish_launch
from orchestrator.records.planned import PlannedRun, read_plan
from orchestrator.records.record import Claim, RunState
from orchestrator.spec import Objective, Resources, RunId
from orchestrator.system.processes import ProcessId

TREE = hashlib.sha1(b"some code", usedforsecurity=False).hexdigest()
_EPOCHS = 10


_UNTRACKED: Mapping[str, Any] = {"kind": "none"}


def make_experiment(
    runs: Path, name: str, count: int, *, running: int = 0, tracking: Mapping[str, Any] = _UNTRACKED
) -> ExperimentPaths:
    """Write an experiment: of each ten runs, seven are done, one has failed, two never started.

    Its launch was never submitted, so that a refresh queries no scheduler. With `running`, the last runs are under way
    and all others have ended.
    """
    paths = RunsRoot(runs).experiment(name)
    lines = [_planned(index) for index in range(count)]
    launch = publish_launch(paths, 1, _header(name, tracking), [_config()], lines)
    if launch is None:
        raise FileExistsError(paths.path)
    launch.complete.touch()
    process = ProcessId.current()
    for index, planned in enumerate(lines):
        if index >= count - running:
            _run(paths, planned, process, RunState.RUNNING)
        elif index % 10 == 7:
            _run(paths, planned, process, RunState.FAILED)
        elif index % 10 < 7 or running:
            _run(paths, planned, process, RunState.DONE)
    return paths


def finish(paths: ExperimentPaths) -> None:
    """Write the records of an experiment's only launch as if all of its runs were done."""
    process = ProcessId.current()
    for planned in read_plan(paths.launch(1)):
        _run(paths, planned, process, RunState.DONE)


def files_read(paths: ExperimentPaths) -> Iterator[Path]:
    """Yield the files from which the state of all runs is derived."""
    yield paths.launch(1).plan
    for run in paths.runs.iterdir():
        yield run / "a001" / "claim.json"
        yield run / "a001" / "events.jsonl"


def _run(paths: ExperimentPaths, planned: PlannedRun, process: ProcessId, state: RunState) -> None:
    attempt = paths.run(planned.run).attempt(1)
    claim = Claim(
        launch=1, index=planned.index, code=planned.code, generation=1, history=1, process=process, time=1.7e9
    )
    claim_attempt(attempt, claim)
    events = EventWriter(attempt.events)
    events.write("started", launch=1, attempt=1)
    events.write("training", resumed=False)
    for epoch in range(_EPOCHS):
        metrics = {"val/acc": epoch / _EPOCHS, "val/loss": 1 - epoch / _EPOCHS, "train/loss": 0.5}
        events.write("progress", progress={"epoch": epoch, "epochs": _EPOCHS, "step": epoch}, metrics=metrics)
    if state is RunState.FAILED:
        events.write("failed", signature="KeyError at model.py:41", message="'x'", traceback="Traceback ...\n" * 20)
    elif state is RunState.DONE:
        events.write("done", metrics={"val/acc": 0.9}, best={"metric": "val/acc", "value": 0.9, "step": 9, "epoch": 9})
    attempt.log.write_text("a line of the log\n" * 20)
    mark_state(paths, planned.run, 1, RunState.RUNNING.value)
    if state is not RunState.RUNNING:
        mark_state(paths, planned.run, 1, state.value)


def _planned(index: int) -> PlannedRun:
    point = {"model.lr": index / 1000, "seed": index}
    return PlannedRun(
        run=RunId(hashlib.sha256(json.dumps(point).encode()).hexdigest()[:12]),
        launch=1,
        index=index,
        action="submit",
        attempt=1,
        generation=1,
        history=1,
        code=TREE,
        point=point,
        resources=Resources(cpus_per_node=4, hours=2.0),
        reason="new",
        changes=[(["model", "lr"], point["model.lr"]), (["seed"], index)],
    )


def _config() -> dict[str, Any]:
    model = {"_target_": "package.Model", "lr": 0.1}
    return {"model": model, "data": {"_target_": None}, "trainer": {"max_epochs": _EPOCHS}, "seed": 0, "task": "fit"}


def _header(name: str, tracking: Mapping[str, Any]) -> LaunchHeader:
    return LaunchHeader(
        experiment=name,
        message="a benchmark",
        objective=Objective(metric="val/acc", mode="max"),
        cluster={"kind": "inline"},
        tracking=tracking,
        python="python",
        code=({"tree": TREE, "commit": None, "dirty": False},),
    )
