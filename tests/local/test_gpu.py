"""On an NVIDIA GPU: runs train on it, are put on it one after another or side by side, and are measured."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from desks import Desk
from processes import wait_for

from orchestrator.layout import ExperimentPaths
from orchestrator.local import devices
from orchestrator.records.record import Record, RunState
from orchestrator.tracking import Metrics, read

GPUS = devices.find(None, {})
pytestmark = [
    # MLflow's own tables use a loader that SQLAlchemy 2.1 deprecates.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.usefixtures("tidy"),
    pytest.mark.skipif(not GPUS, reason="this machine has no NVIDIA GPU (/proc/driver/nvidia/gpus)"),
]
NETS = """
import time
from orchestrator.models.mlp import MLP

class Slow(MLP):
    \"\"\"Takes its time, and logs on which device it is.\"\"\"

    def __init__(self, seconds=0.0, **options):
        super().__init__(**options)
        self.seconds = seconds

    def training_step(self, batch):
        time.sleep(self.seconds)
        self.log("on_gpu", float(self.device.type == "cuda"))
        return super().training_step(batch)
"""
EXPERIMENT = """
# @package _global_
defaults:
  - override /model: mlp
  - override /data: synthetic
  - override /cluster: {cluster}
name: {cluster}
objective: {{metric: val/acc, mode: max}}
model: {{_target_: nets.Slow, seconds: 0.0}}
data: {{samples: 512}}
trainer: {{max_epochs: 4, log_every_n_steps: 1}}
resources: {{gpus_per_node: 1}}
tracking: {{system_metrics: 1}}
"""
BUSY = """
import sys, torch
there = torch.ones(1024, device="cuda")
torch.cuda.synchronize()
print("there", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    experiments = {kind: EXPERIMENT.format(cluster=kind) for kind in ("inline", "workstation")}
    return Desk(tmp_path / "desk", nets=NETS, experiments=experiments)


def logged(desk: Desk, record: Record, name: str) -> list[tuple[int, str, float]]:
    """Return (step, key, value) of all that a run logged."""
    found = []
    for attempt in ExperimentPaths(desk.folder / "runs" / name).run(record.id).attempts():
        lines = [line for line, _ in read(attempt.metrics) if isinstance(line, Metrics)]
        found += [(line.step, key, value) for line in lines for key, value in line.values.items()]
    return found


@pytest.mark.parametrize("kind", ["inline", "workstation"])
def test_runs_train_on_the_gpu_and_mlflow_shows_what_it_did(desk, kind):
    desk.orch("launch", f"experiment={kind}", "seed=range(1,3)", "model.seconds=0.05", "--wait")
    records = desk.records(kind)
    assert [record.state for record in records] == [RunState.DONE] * 2
    for record in records:
        assert {value for _, key, value in logged(desk, record, kind) if key.startswith("on_gpu")} == {1.0}
        assert record.last.usage["gpu_bytes"] > 0
    assert "GPU memory: " in desk.orch("status", kind)
    desk.orch("ui", "--once")
    runs = desk.tracked(kind)
    assert len(runs) == 2
    for run in runs:
        assert run.data.metrics["system/gpu_0_memory_usage_megabytes"] > 0
        assert 0 < run.data.metrics["system/gpu_0_power_usage_percentage"] <= 110
        assert 0 <= run.data.metrics["system/gpu_0_utilization_percentage"] <= 100
        assert "system/gpu_1_memory_usage_megabytes" not in run.data.metrics


def test_a_run_that_asks_for_no_gpu_sees_none(desk):
    desk.orch("launch", "experiment=workstation", "resources.gpus_per_node=0", "--wait")
    (record,) = desk.records("workstation")
    assert {value for _, key, value in logged(desk, record, "workstation") if key.startswith("on_gpu")} == {0.0}
    assert "gpu_bytes" not in record.last.usage


@pytest.mark.parametrize("at_once", [1, 2])
def test_as_many_runs_are_on_a_gpu_as_may_be(desk, at_once):
    options = [f"cluster.runs_per_gpu={at_once}", "cluster.devices=[0]", "cluster.cpus=8", "model.seconds=0.2"]
    desk.orch("launch", "experiment=workstation", "seed=range(1,3)", *options)
    most = 0

    def ended() -> bool:
        nonlocal most
        states = [record.state for record in desk.records("workstation")]
        most = max(most, states.count(RunState.RUNNING))
        return states == [RunState.DONE] * 2

    wait_for(ended, "both runs")
    assert most == at_once


def test_a_run_that_was_cancelled_goes_on_on_the_gpu_and_adds_what_is_missing(desk):
    same = ["experiment=workstation", "trainer.precision=bf16-mixed", "model.seconds=0.1"]
    desk.orch("launch", *same, "name=whole")
    desk.orch("launch", *same, "name=cut")
    wait_for(lambda: (last := desk.records("cut")[0].last) and last.progress, "a step")
    desk.orch("cancel", "cut")
    wait_for(lambda: desk.records("cut")[0].state is RunState.CANCELLED, "the run to be cancelled")
    desk.orch("launch", *same, "name=cut", "--wait")
    desk.orch("status", "whole", "--watch")
    (whole,), (cut,) = desk.records("whole"), desk.records("cut")
    assert len(cut.attempts) == 2
    expected, found = logged(desk, whole, "whole"), logged(desk, cut, "cut")
    assert sorted(point[:2] for point in found) == sorted(point[:2] for point in expected)
    assert all(math.isfinite(value) for _, _, value in found)
    assert cut.last.usage["gpu_bytes"] > 0


def test_a_gpu_on_which_somebody_computes_is_not_given_out(desk):
    with subprocess.Popen([sys.executable, "-c", BUSY], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as busy:
        assert busy.stdout.readline() == b"there\n"
        options = ["cluster.avoid_busy_gpus=true", "cluster.devices=[0]"]
        desk.orch("launch", "experiment=workstation", *options)
        wait_for(lambda: "used by pid" in desk.records("workstation")[0].reason, "the reason")
        assert desk.records("workstation")[0].state is RunState.QUEUED
        busy.communicate(b"\n")
    desk.orch("status", "workstation", "--watch")
    assert desk.records("workstation")[0].state is RunState.DONE
