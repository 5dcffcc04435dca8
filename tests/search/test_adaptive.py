"""Adaptive sweeps as they are used: launched, continued, killed, pruned; one trial at a time, and several."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from desks import Desk
from processes import supervisors, wait_for
from states import own_state

from orchestrator.records.record import RunState

NETS = """
import time
from pathlib import Path

import torch
from pytorch_lightning.demos.boring_classes import BoringModel


class Bowl(BoringModel):
    \"\"\"Its loss is known: nearly (x - 2)^2 + width. Waits for a file, if it is given one.\"\"\"

    def __init__(self, x=0.0, width=1, until=None):
        super().__init__()
        self.x, self.width, self.until = x, width, until

    def training_step(self, batch, batch_idx):
        while self.until and self.trainer.current_epoch == 1 and not Path(self.until).exists():
            time.sleep(0.05)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.log("loss", (self.x - 2) ** 2 + self.width + 1 / (1 + self.trainer.current_epoch), sync_dist=True)
        self.log("size", float(self.width), sync_dist=True)


class Failing(Bowl):
    def validation_step(self, batch, batch_idx):
        raise ArithmeticError("no luck")
"""
EXPERIMENT = """
# @package _global_
name: bowl
model: {_target_: nets.Bowl, x: 0.0, width: 1, until: null}
objective: {metric: loss, mode: min}
trainer: {max_epochs: 3, limit_train_batches: 2, limit_val_batches: 2}
tracking: {kind: none}
sweep:
  optuna:
    n: 6
    space: {model.x: "uniform(-10, 10)", model.width: "int(1, 3)"}
    pruner: {_target_: optuna.pruners.MedianPruner, n_startup_trials: 3, n_warmup_steps: 0}
"""


class SearchDesk(Desk):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, nets=NETS, experiments={"bowl": EXPERIMENT})

    def trials(self, name: str = "bowl"):
        return super().trials(name)

    def points(self, name: str = "bowl"):
        return [dict(record.point) for record in self.trials(name)]


@pytest.fixture(scope="module")
def desk(tmp_path_factory, warm_parent):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", own_state(tmp_path_factory))
        patch.setenv("OMP_NUM_THREADS", "1")
        desk = SearchDesk(tmp_path_factory.mktemp("desk"))
        desk.orch("launch", "experiment=bowl")
        yield desk


def value_of(point) -> float:
    return (point["model.x"] - 2) ** 2 + point["model.width"]


def test_each_trial_has_its_own_values_and_trains_with_them(desk):
    trials = desk.trials()
    assert [record.state for record in trials] == [RunState.DONE] * 6
    assert len({record.point["model.x"] for record in trials}) == 6
    for record in trials:
        assert 0 < record.metrics["loss"] - value_of(record.point) <= 1.001
        config = (desk.folder / "runs" / "bowl" / "runs" / record.id / "config.yaml").read_text()
        assert f"x: {record.point['model.x']}" in config
    shown = desk.orch("compare", "bowl")
    best = min(trials, key=lambda record: record.best_value("loss"))
    assert shown.splitlines()[1].split()[0] == best.id[:8]
    assert "model.x" in shown.splitlines()[0]
    assert f"model.x={best.point['model.x']}" in desk.orch("status", "bowl")


def test_more_trials_go_on_with_the_same_search_and_nothing_is_run_twice(desk):
    six = desk.points()
    said = desk.orch("launch", "experiment=bowl", "sweep.optuna.n=8")
    assert "2 runs, 6 already there" in said
    eight = desk.points()
    assert eight[:6] == six
    assert len(eight) == 8
    assert [len(record.attempts) for record in desk.trials()] == [1] * 8
    assert "nothing to do" in desk.orch("launch", "experiment=bowl", "sweep.optuna.n=8")


def test_one_at_a_time_takes_the_same_course_again(desk):
    """In another place, and though the first was stopped in the middle: with two launches of it."""
    again = SearchDesk(desk.folder.with_name("again"))
    again.orch("launch", "experiment=bowl", "sweep.optuna.n=8")
    assert again.points() == desk.points()
    assert [record.reason for record in again.trials()] == [record.reason for record in desk.trials()]


def test_trials_without_hope_are_ended_early_and_count_as_done(desk):
    desk.orch("launch", "experiment=bowl", "name=pruned", "sweep.optuna.n=12", "trainer.max_epochs=6")
    trials = desk.trials("pruned")
    pruned = [record for record in trials if record.last.trial.get("pruned")]
    assert pruned
    assert all(record.state is RunState.DONE for record in trials)
    assert len(trials) - len(pruned) >= 4
    for record in pruned:
        assert record.reason == f"pruned at validation {record.last.trial['pruned']}"
        assert record.last.progress["epoch"] < 5
    assert "pruned: epoch" in desk.orch("status", "pruned", "--all")
    assert "  pruned  " in desk.orch("compare", "pruned")


def test_a_killed_trial_goes_on_with_the_values_that_it_was_given(desk):
    gate = desk.folder / "gate"
    words = ["launch", "experiment=bowl", "name=killed", f"model.until={gate}", "resources.attempts.of=1"]
    process = desk.start(*words)
    wait_for(lambda: desk.trials("killed") and desk.trials("killed")[0].last, "its start")
    wait_for(lambda: desk.trials("killed")[0].last.progress, "its first epoch")
    run, given = desk.trials("killed")[0].id, desk.trials("killed")[0].given
    os.kill(desk.trials("killed")[0].last.claim.process.pid, signal.SIGKILL)
    gate.touch()
    process.communicate()
    assert desk.trials("killed")[0].state is RunState.INTERRUPTED
    assert [record.state for record in desk.trials("killed")[1:]] == [RunState.DONE] * 5
    desk.orch(*words)
    record = desk.trials("killed")[0]
    assert (record.id, record.state, record.given) == (run, RunState.DONE, given)
    assert [attempt.trial["point"] for attempt in record.attempts] == [given, given]
    assert 0 < record.metrics["loss"] - value_of(record.point) <= 1.001


def test_failed_trials_teach_nothing_and_are_retried_with_their_own_values(desk):
    words = ["experiment=bowl", "name=failing", "sweep.optuna.n=3"]
    desk.orch("launch", *words, "model._target_=nets.Failing", status=1)
    given = desk.points("failing")
    assert [record.state for record in desk.trials("failing")] == [RunState.FAILED] * 3
    nets = (desk.folder / "nets.py").read_text()
    mended = nets.replace('raise ArithmeticError("no luck")', "super().validation_step(batch, batch_idx)")
    (desk.folder / "nets.py").write_text(mended)
    desk.orch("retry", "failing")
    (desk.folder / "nets.py").write_text(nets)
    assert [record.state for record in desk.trials("failing")] == [RunState.DONE] * 3
    assert desk.points("failing") == given


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
def test_several_objectives_and_what_mlflow_is_told(desk):
    objectives = "sweep.optuna.objectives=[{metric: loss, mode: min}, {metric: size, mode: max}]"
    desk.orch(
        "launch",
        "experiment=bowl",
        "name=two",
        "sweep.optuna.n=4",
        objectives,
        "sweep.optuna.pruner=null",
        "tracking=embedded",
    )
    desk.orch("ui", "--once")
    found = desk.tracked("two")
    params = {float(run.data.params["model.x"]) for run in found}
    assert params == {record.point["model.x"] for record in desk.trials("two")}
    assert all("trial" in run.info.run_name for run in found)
    notes = [run.data.tags["mlflow.note.content"] for run in found]
    for record in desk.trials("two"):
        assert any(f"model.x={record.point['model.x']}" in note and " trial=" not in note for note in notes)
    hidden = desk.trials("two")[0].id
    desk.orch("hide", "two", hidden)
    desk.orch("ui", "--once")
    tagged = desk.tracked("two", "tags.`orch.hidden` = 'true'")
    assert [run.data.params["model.x"] for run in tagged] == [str(desk.trials("two")[0].point["model.x"])]


def test_on_a_workstation_several_trials_run_at_once_and_each_has_values_of_its_own(desk):
    machine = ["cluster=workstation", "cluster.cpus=2", "sweep.optuna.n=4"]
    desk.orch("launch", "experiment=bowl", "name=at-once", "--wait", *machine)
    trials = desk.trials("at-once")
    assert [record.state for record in trials] == [RunState.DONE] * 4
    assert len({record.point["model.x"] for record in trials}) == 4
    wait_for(lambda: not supervisors(), "the supervisor's end")


def test_all_ranks_of_a_trial_train_with_the_same_values_and_are_pruned_together(desk):
    desk.orch(
        "launch",
        "experiment=bowl",
        "name=ranks",
        "sweep.optuna.n=7",
        "resources.gpus_per_node=2",
        "trainer.max_epochs=4",
        "+trainer.use_distributed_sampler=false",
    )
    trials = desk.trials("ranks")
    assert [record.state for record in trials] == [RunState.DONE] * 7
    for record in trials:
        assert 0 < record.metrics["loss"] - value_of(record.point) <= 1.001
    assert any(record.last.trial.get("pruned") for record in trials)


def test_what_was_given_is_kept_in_one_file_and_shown(desk):
    record = desk.trials()[0]
    kept = json.loads((desk.folder / "runs" / "bowl" / "runs" / record.id / "trial.json").read_text())
    assert kept["point"] == dict(record.given)
    shown = json.loads(desk.orch("show", "bowl", record.id, "--json"))
    assert shown["config"]["model"]["x"] == record.given["model.x"]
    assert shown["point"] == {"trial": 0, **record.given}
