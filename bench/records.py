"""An experiment with records of any number of runs, written by the ledger itself; nothing has run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator import ledger
from orchestrator.layout import ExperimentPaths, RunsRoot
from orchestrator.process import ProcessId
from orchestrator.record import Claim, RunState
from orchestrator.spec import Resources

TREE = hashlib.sha1(b"some code", usedforsecurity=False).hexdigest()
_EPOCHS = 10


_UNTRACKED: Mapping[str, Any] = {"kind": "none"}


def make_experiment(
    runs: Path, name: str, count: int, *, running: int = 0, tracking: Mapping[str, Any] = _UNTRACKED
) -> ExperimentPaths:
    """Write an experiment: of ten runs, seven are done, one has failed, two never started.

    Its launcher left without handing it to a scheduler, so that looking at it asks nobody. With `running` runs, the
    last ones, that are under way, all others have ended.
    """
    paths = RunsRoot(runs).experiment(name)
    lines = [_line(index) for index in range(count)]
    launch = ledger.publish(paths, 1, {**_header(name), "tracking": tracking}, [_config()], lines)
    if launch is None:
        raise FileExistsError(paths.path)
    launch.complete.touch()
    process = ProcessId.current()
    for index, line in enumerate(lines):
        if index >= count - running:
            _run(paths, line, process, RunState.RUNNING)
        elif index % 10 == 7:
            _run(paths, line, process, RunState.FAILED)
        elif index % 10 < 7 or running:
            _run(paths, line, process, RunState.DONE)
    return paths


def finish(paths: ExperimentPaths) -> None:
    """Write what the runs of an experiment's only launch would have written: all are done."""
    process = ProcessId.current()
    for line in ledger.read_lines(paths.launch(1)):
        _run(paths, line, process, RunState.DONE)


def files_read(paths: ExperimentPaths) -> Iterator[Path]:
    """Yield the files from which the state of all runs is known."""
    yield paths.launch(1).plan
    for run in paths.runs.iterdir():
        yield run / "a001" / "claim.json"
        yield run / "a001" / "events.jsonl"


def _run(paths: ExperimentPaths, line: Mapping[str, Any], process: ProcessId, state: RunState) -> None:
    attempt = paths.run(line["run"]).attempt(1)
    claim = Claim(
        launch=1, index=line["index"], code=line["code"], generation=1, history=1, process=process, time=1.7e9
    )
    ledger.claim_attempt(attempt, claim)
    events = ledger.EventWriter(attempt.events)
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
    ledger.mark(paths, line["run"], 1, RunState.RUNNING.value)
    if state is not RunState.RUNNING:
        ledger.mark(paths, line["run"], 1, state.value)


def _line(index: int) -> dict[str, Any]:
    point = {"model.lr": index / 1000, "seed": index}
    return {
        "index": index, "run": hashlib.sha256(json.dumps(point).encode()).hexdigest()[:12], "action": "submit",
        "reason": "new", "attempt": 1, "generation": 1, "history": 1, "code": TREE, "data": None, "base": 0,
        "set": [[["model", "lr"], point["model.lr"]], [["seed"], index]], "point": point,
        "resources": Resources(cpus_per_node=4, hours=2.0).to_json(),
    }  # fmt: skip


def _config() -> dict[str, Any]:
    model = {"_target_": "package.Model", "lr": 0.1}
    return {"model": model, "data": {"_target_": None}, "trainer": {"max_epochs": _EPOCHS}, "seed": 0, "task": "fit"}


def _header(name: str) -> dict[str, Any]:
    code = {"tree": TREE, "commit": None, "dirty": False}
    return {
        "experiment": name, "message": "a benchmark", "argv": [], "overrides": [], "choices": {}, "sweep": {},
        "objective": {"metric": "val/acc", "mode": "max"}, "cluster": {"kind": "inline"}, "tracking": {"kind": "none"},
        "env": "warn", "environment": {}, "python": "python", "code": [code], "data": {},
    }  # fmt: skip
