"""Adaptive sweeps on a real Slurm: an array of trials, several at once, preempted, of two nodes, and packed."""

from __future__ import annotations

import pytest
from campaigns import amount
from desks import Desk
from processes import wait_for
from real_slurm import in_campaign, output

from orchestrator.records.record import RunState

pytestmark = [pytest.mark.slurm, pytest.mark.campaign("slurm", sample=True)]

TRIALS = amount(4, 8)

NETS = """
import time
from pathlib import Path

from orchestrator.testing.net import ValidatedNet


class Bowl(ValidatedNet):
    \"\"\"Its loss is (x - 2)^2 and something that falls. Its steps are slow until a file is there.\"\"\"

    def __init__(self, x=0.0, gate=None):
        super().__init__()
        self.x, self.gate = x, gate

    def training_step(self, batch, batch_idx):
        if self.gate and not Path(self.gate).exists():
            time.sleep(0.2)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.log("loss", (self.x - 2) ** 2 + 1 / (1 + self.trainer.current_epoch), sync_dist=True)
"""
EXPERIMENT = """
# @package _global_
name: bowl
model: {_target_: nets.Bowl, x: 0.0, gate: null}
objective: {metric: loss, mode: min}
trainer: {max_epochs: 3, limit_train_batches: 3, limit_val_batches: 2}
tracking: {kind: none}
cluster: {nodes_may_submit: false}
sweep:
  optuna:
    n: TRIALS
    space: {model.x: "uniform(-10, 10)"}
    pruner: {_target_: optuna.pruners.MedianPruner, n_startup_trials: 3}
""".replace("TRIALS", str(TRIALS))


@pytest.fixture
def desk(slurm, tmp_path):
    return Desk(tmp_path / "desk", nets=NETS, experiments={"bowl": EXPERIMENT})


def check_done(found, count):
    assert [record.state for record in found] == [RunState.DONE] * count
    assert len({record.point["model.x"] for record in found}) == count
    for record in found:
        assert 0 < record.metrics["loss"] - (record.point["model.x"] - 2) ** 2 <= 1.001


def test_trials_of_an_array_learn_from_each_other_and_a_later_launch_goes_on(desk):
    desk.orch("launch", "experiment=bowl", "cluster=slurm", "cluster.throttle=2", "--wait")
    check_done(desk.trials("bowl"), TRIALS)
    first = [record.given for record in desk.trials("bowl")]
    said = desk.orch("launch", "experiment=bowl", "cluster=slurm", f"sweep.optuna.n={TRIALS + 2}", "--wait")
    assert f"2 runs, {TRIALS} already there" in said
    check_done(desk.trials("bowl"), TRIALS + 2)
    assert [record.given for record in desk.trials("bowl")[:TRIALS]] == first


@in_campaign
def test_a_preempted_trial_goes_on_with_its_own_values_and_all_ranks_have_the_same(desk, tmp_path):
    gate = tmp_path / "gate"
    words = ["experiment=bowl", "cluster=slurm", "cluster.partition=preemptible", "sweep.optuna.n=1"]
    ranks = ["resources.nodes=2", f"resources.gpus_per_node={amount(1, 2)}"]
    desk.orch("launch", *words, *ranks, f"model.gate={gate}", "trainer.max_epochs=60")
    wait_for(lambda: desk.trials("bowl")[0].last and desk.trials("bowl")[0].last.progress, "a step")
    given = desk.trials("bowl")[0].given
    output("sbatch", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=true")
    wait_for(
        lambda: len(desk.trials("bowl")[0].attempts) == 2 and desk.trials("bowl")[0].last.trial, "a second attempt"
    )
    gate.touch()
    wait_for(lambda: desk.trials("bowl")[0].state is RunState.DONE, "the trial to be done")
    check_done(desk.trials("bowl"), 1)
    assert [attempt.trial["point"] for attempt in desk.trials("bowl")[0].attempts] == [given, given]


def test_packed_trials_learn_from_each_other_too(desk):
    desk.orch(
        "launch", "experiment=bowl", "cluster=slurm", f"resources.pack={{runs: {TRIALS // 2}, at_once: 2}}", "--wait"
    )
    check_done(desk.trials("bowl"), TRIALS)
    assert len({record.last.claim.job for record in desk.trials("bowl")}) == 2
