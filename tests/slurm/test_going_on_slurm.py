"""On a real Slurm: an experiment that starts after another one, from its weights; and one whose other has failed."""

from __future__ import annotations

import pytest
from desks import Desk
from processes import wait_for
from real_slurm import in_campaign, output

from orchestrator.records.record import RunState

pytestmark = pytest.mark.slurm

NETS = """
from orchestrator.testing.net import Net

class Tested(Net):
    def test_step(self, batch, batch_idx):
        self.log("test/sum", self.layer.weight.sum())

    def test_dataloader(self):
        return self.train_dataloader()
"""
TRAIN = """
# @package _global_
name: train
model: {_target_: nets.Tested, seconds: 100, until: null, does: ''}
trainer: {max_epochs: 1, limit_train_batches: 3}
tracking: {kind: none}
cluster: {nodes_may_submit: false}
"""


@pytest.fixture
def desk(slurm, tmp_path):
    return Desk(tmp_path / "it's a desk", nets=NETS, experiments={"train": TRAIN})


def launched(desk, name, *words):
    return desk.orch("launch", "experiment=train", "cluster=slurm", f"name={name}", *words)


def test_an_experiment_starts_after_another_one_from_its_weights(desk, tmp_path):
    gate = tmp_path / "gate"
    launched(desk, "train", f"model.until={gate}", "seed=1,2")
    first = desk.records("train")[0]
    going_on = [f"init_from=run:train/{first.id[:8]}/last", "after=train", "task=test"]
    planned = desk.orch("plan", "--sbatch", "experiment=train", "cluster=slurm", "name=tested", *going_on)
    said = launched(desk, "tested", *going_on)
    assert "starts after train: 2 of its 2 runs are under way" in said
    # Slurm says so once it has looked at the job.
    wait_for(lambda: desk.records("tested")[0].reason == "Dependency", "the reason")
    [second] = desk.records("tested")
    assert second.state is RunState.QUEUED
    told = output("scontrol", "show", "job", second.job.partition("_")[0])
    job = first.job.partition("_")[0]
    assert f"Dependency=afterany:{job}" in told
    assert f"#SBATCH --dependency=afterany:{job}" in planned
    gate.touch()
    wait_for(lambda: desk.records("tested")[0].state is RunState.DONE, "the test to be done")
    assert {record.state for record in desk.records("train")} == {RunState.DONE}
    assert "test/sum" in desk.records("tested")[0].metrics


@in_campaign
def test_after_a_failure_it_fails_with_the_reason(desk, tmp_path):
    gate = tmp_path / "gate"
    launched(desk, "train", f"model.until={gate}", "model.does=raise", "+model.rank=0")
    launched(desk, "second", "after=train")
    gate.touch()
    wait_for(lambda: desk.records("second")[0].state is RunState.FAILED, "the second run to fail")
    reason = desk.records("second")[0].reason
    assert "after train, which is not done" in reason
    assert "is failed (ArithmeticError at net.py" in reason
