"""A tiny fit as a run of `orch`, next to a bare Lightning script that does the same: the time of whole processes.

Both end with `os._exit`, as the worker does: Python's regular exit takes a second with torch loaded, which would hide
the cost of the start.
"""

from __future__ import annotations

import itertools
import time

from bench.measure import Row, Seconds, in_turns, say, timed
from bench.sandbox import PYTHON, Sandbox
from orchestrator.layout import RunsRoot
from orchestrator.local.launcher import ChildProcesses, start_of
from orchestrator.local.tasks import Task, tasks_of
from orchestrator.records.launches import read_launch

_ROUNDS = 5
_EXPERIMENT = """\
# @package _global_
defaults:
  - override /cluster: workstation
  - override /tracking: none
name: boring
model: {_target_: pytorch_lightning.demos.boring_classes.BoringModel}
trainer: {max_epochs: 1, limit_train_batches: 4, limit_val_batches: 2}
"""
_BARE = """
import os
import pytorch_lightning as pl
from pytorch_lightning.demos.boring_classes import BoringModel
pl.seed_everything(0, workers=True, verbose=False)
trainer = pl.Trainer(
    max_epochs=1, limit_train_batches=4, limit_val_batches=2, accelerator="cpu", devices=1, logger=False,
    enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(BoringModel())
os._exit(0)
"""


def rows(box: Sandbox) -> list[Row]:
    tasks = iter(_tasks(box))
    folders = (box.folder / f"bare-{i}" for i in itertools.count())

    def bare() -> Seconds:
        folder = next(folders)
        folder.mkdir()
        return box.seconds([PYTHON, "-c", _BARE], cwd=folder, env={"OMP_NUM_THREADS": "1"})

    found = in_turns("job start", _ROUNDS, {"ours": lambda: _worker(next(tasks)), "peer": bare})
    added = [mine - other for mine, other in zip(found["ours"], found["peer"], strict=True)]
    peer = "the bare Lightning script"
    return [
        Row(
            what="a run of 4 steps, as a process",
            measured=found["ours"],
            peer=peer,
            peer_measured=found["peer"],
            at_most=1.1,
        ),
        Row(what="... what it takes beyond its peer", measured=added),
    ]


def _tasks(box: Sandbox) -> list[Task]:
    """Launch a run for each round, without starting any."""
    say("job_start: launching the runs")
    project = box.folder / "project"
    (project / "conf" / "experiment").mkdir(parents=True)
    (project / "conf" / "experiment" / "boring.yaml").write_text(_EXPERIMENT)
    with box.idle_workstation():
        box.run(box.orch("launch", "experiment=boring", f"seed=range(0,{_ROUNDS + 1})"), cwd=project)
    launch = RunsRoot(project / "runs").experiment("boring").launch(1)
    return list(tasks_of(launch))


def _worker(task: Task) -> Seconds:
    """Start a run as the workstation's supervisor does, and wait for its end."""
    header = read_launch(task.launch).header
    return timed(lambda: _wait(ChildProcesses(start_of(task, header, devices=()))))


def _wait(child: ChildProcesses) -> None:
    while (status := child.ended()) is None:
        time.sleep(0.002)
    output = child.close()
    if status:
        raise RuntimeError(f"the run failed with exit status {status}: {output}")
