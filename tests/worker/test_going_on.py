"""Runs that go on from others: their weights, their whole state, their checkpoints evaluated, and one after another."""

from __future__ import annotations

import os
import shutil
from importlib import metadata
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError

import pytest
import torch
from desks import Desk
from processes import wait_for
from states import own_state

from orchestrator import api
from orchestrator.errors import RequestError
from orchestrator.layout import ExperimentPaths
from orchestrator.project import find_project
from orchestrator.records.checkpoints import latest_of
from orchestrator.records.record import RunState
from orchestrator.worker.fit.weights import InitialWeights
from orchestrator.worker.fit.writer import AtomicCheckpointIO

NETS = """
import torch
from pytorch_lightning.demos.boring_classes import BoringModel

class Net(BoringModel):
    def __init__(self, features=2):
        super().__init__()
        self.layer = torch.nn.Linear(32, features)

    def validation_step(self, batch, batch_idx):
        self.log("val/score", self.layer.weight.abs().sum())

    def test_step(self, batch, batch_idx):
        self.log("test/sum", self.layer.weight.sum())

    def predict_step(self, batch, batch_idx):
        return self(batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def predict_dataloader(self):
        return self.val_dataloader()
"""
EXPERIMENT = """
# @package _global_
name: {name}
model: {{_target_: nets.Net}}
objective: {{metric: val/score, mode: max}}
trainer: {{max_epochs: 2, limit_train_batches: 4, limit_val_batches: 2, limit_test_batches: 2, log_every_n_steps: 1}}
tracking: {{kind: none}}
"""
PLAY = """
# @package _global_
name: play
model: {_target_: orchestrator.testing.script.Script, steps: 1, until: null, ends: [done]}
tracking: {kind: none}
"""


class TuningDesk(Desk):
    """One with experiments of which each can go on from the other's weights."""

    def __init__(self, folder: Path) -> None:
        tuned = {name: EXPERIMENT.format(name=name) for name in ("pretrain", "tune")}
        super().__init__(folder, nets=NETS, experiments={**tuned, "play": PLAY})

    def drafted(self, name: str, *words: str):
        """Return the only run of an experiment as it would be launched."""
        project = find_project(self.folder)
        with api.prepare(project, [f"experiment={name}", *words]) as prepared:
            [run] = prepared.experiment.runs
            return run

    def only(self, name: str):
        [record] = self.records(name)
        return record

    def checkpoint(self, name: str, which: str = "last", run: str | None = None):
        run = run or self.only(name).id
        folder = ExperimentPaths(self.folder / "runs" / name).run(run)
        attempt = folder.attempts()[-1]
        path = latest_of(attempt) if which == "last" else attempt.state / f"{which}.ckpt"
        return torch.load(path, weights_only=False)


@pytest.fixture(scope="module")
def desk(tmp_path_factory, warm_parent):
    """A desk where one run of `pretrain` has trained for two epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_STATE_HOME", own_state(tmp_path_factory))
        desk = TuningDesk(tmp_path_factory.mktemp("it's a desk"))
        desk.orch("launch", "experiment=pretrain")
        yield desk


def same_weights(one, other):
    return all(torch.equal(one["state_dict"][key], other["state_dict"][key]) for key in one["state_dict"])


def test_more_epochs_go_on_from_the_whole_state_as_if_it_had_never_ended(desk):
    first = desk.only("pretrain")
    going_on = [f"resume_from=run:{first.id[:6]}/last", "trainer.max_epochs=4"]
    desk.orch("launch", "experiment=pretrain", "name=longer", *going_on)
    desk.orch("launch", "experiment=pretrain", "name=straight", "trainer.max_epochs=4")
    longer, straight = desk.checkpoint("longer"), desk.checkpoint("straight")
    assert same_weights(longer, straight)
    assert (longer["global_step"], straight["global_step"]) == (16, 16)
    assert repr(longer["optimizer_states"]) == repr(straight["optimizer_states"])
    assert desk.only("longer").last.best["value"] == desk.only("straight").last.best["value"]
    assert len({desk.only(name).id for name in ("pretrain", "longer", "straight")}) == 3


def test_best_weights_are_trained_on_and_evaluated(desk):
    first = desk.only("pretrain")
    best = desk.checkpoint("pretrain", "best")["state_dict"]["layer.weight"]
    start = f"init_from=run:pretrain/{first.id[:5]}/best"
    desk.orch(
        "launch",
        "experiment=tune",
        start,
        "task=fit,validate,test,predict",
        "+trainer.limit_predict_batches=2",
        "trainer.limit_train_batches=1",
        "trainer.max_epochs=1",
    )
    found = {record.point["task"]: record for record in desk.records("tune")}
    assert {record.state for record in found.values()} == {RunState.DONE}
    assert found["validate"].metrics["val/score"] == pytest.approx(float(best.abs().sum()))
    assert found["test"].metrics["test/sum"] == pytest.approx(float(best.sum()), abs=1e-5)
    assert first.id not in {record.id for record in found.values()}

    trained = desk.checkpoint("tune", run=found["fit"].id)
    step = (trained["state_dict"]["layer.weight"] - best).abs().max()
    assert trained["global_step"] == 1
    assert 0 < step <= 0.0101  # Adam's first step, from these weights

    folder = ExperimentPaths(desk.folder / "runs" / "tune").run(found["predict"].id)
    kept = torch.load(folder.artifacts / "predictions.pt", weights_only=True)["predictions"]
    assert [tuple(batch.shape) for batch in kept] == [(1, 2), (1, 2)]


def test_a_file_is_a_start_too_and_its_content_makes_the_run(desk):
    pretrained = ExperimentPaths(desk.folder / "runs" / "pretrain").run(desk.only("pretrain").id).attempt(1)
    last, best = latest_of(pretrained), pretrained.state / "best.ckpt"
    for name, source in (("a.ckpt", last), ("b.ckpt", last), ("c.ckpt", best)):
        (desk.folder / name).write_bytes(source.read_bytes())
    (desk.folder / "bare.ckpt").unlink(missing_ok=True)
    torch.save(torch.load(last, weights_only=False)["state_dict"], desk.folder / "bare.ckpt")
    ids = [desk.drafted("tune", "task=test", f"init_from={name}").id for name in ("a.ckpt", "b.ckpt", "c.ckpt")]
    assert ids[0] == ids[1]
    desk.orch("launch", "experiment=tune", "name=files", "task=test", "init_from=bare.ckpt")
    assert desk.only("files").state is RunState.DONE


class Trap:
    """What a checkpoint of others may hold: it is called when it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def test_a_file_that_names_code_is_loaded_only_where_its_maker_is_trusted(desk, tmp_path):
    pretrained = ExperimentPaths(desk.folder / "runs" / "pretrain").run(desk.only("pretrain").id).attempt(1)
    plain, trap, mark = latest_of(pretrained), desk.folder / "trap.ckpt", tmp_path / "executed"
    torch.save({**torch.load(plain, weights_only=False), "more": Trap(mark)}, trap)
    for key in ("init_from", "resume_from"):
        with pytest.raises(RequestError, match=f"{key} is 'trap.ckpt', of which only weights") as caught:
            desk.drafted("tune", f"{key}={trap.name}")
        assert "it names posix.mkdir" in caught.value.why
        assert caught.value.fix.startswith("init_from_trusted=true")
    trusted = desk.drafted("tune", f"init_from={trap.name}", "init_from_trusted=true")
    assert "weights_only" not in trusted.config["init_from"]
    assert not mark.exists()
    with pytest.raises(RequestError, match="init_from_trusted is 'yes'"):
        desk.drafted("tune", "init_from=trap.ckpt", "init_from_trusted='yes'")
    for load in (
        lambda: AtomicCheckpointIO(foreign=trap).load_checkpoint(trap),
        lambda: InitialWeights(trap, weights_only=True)._checkpoint(None),
    ):
        with pytest.raises(UnpicklingError):
            load()
    assert not mark.exists()
    AtomicCheckpointIO(foreign=plain).load_checkpoint(trap, weights_only=False)
    assert mark.exists()


def test_a_torch_that_can_be_deceived_loads_no_checkpoint_of_others(desk, monkeypatch):
    (desk.folder / "bare.ckpt").unlink(missing_ok=True)
    torch.save({"layer.weight": torch.zeros(2, 32)}, desk.folder / "bare.ckpt")
    monkeypatch.setattr(metadata, "version", lambda name: "2.9.1+cu128" if name == "torch" else version(name))
    with pytest.raises(RequestError, match=r"torch 2.9.1\+cu128 can be made to run code.*CVE-2026-24747") as caught:
        desk.drafted("tune", "init_from=bare.ckpt")
    assert "init_from_trusted=true" in caught.value.fix
    assert desk.drafted("tune", "init_from=bare.ckpt", "init_from_trusted=true")


def test_of_runs_that_were_not_made_here_only_weights_and_plain_values_are_loaded(desk):
    """Their ids stay the same: the weights are."""
    first, runs = desk.only("pretrain").id, desk.folder / "runs"
    shutil.copytree(runs / "pretrain", runs / "copied")
    words = ["task=test", "init_from_trusted=false"]
    theirs = desk.drafted("tune", f"init_from=run:copied/{first}/best", *words)
    own = desk.drafted("tune", f"init_from=run:pretrain/{first}/best", *words)
    assert (theirs.config["init_from"].get("weights_only"), own.config["init_from"].get("weights_only")) == (True, None)
    assert theirs.id == own.id
    desk.orch("launch", "experiment=tune", "name=of-others", f"init_from=run:copied/{first}/best", "task=test")
    going_on = [f"resume_from=run:copied/{first}/last", "trainer.max_epochs=3"]
    desk.orch("launch", "experiment=pretrain", "name=longer-of-others", *going_on)
    assert {desk.only(name).state for name in ("of-others", "longer-of-others")} == {RunState.DONE}
    shutil.rmtree(runs / "copied")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["task=test"], "task is test, and init_from is not set"),
        (["init_from=run:FIRST/bset"], "(did you mean 'best'?)"),
        (["init_from=run:ffffffffffff/best"], "no runs have such an id"),
        (["init_from=run:nowhere/FIRST/best"], "no runs have such an id"),
        (["init_from=nothing.ckpt"], "there is no such file"),
        (["init_from=5"], "it names a checkpoint"),
        (["init_from=run:FIRST/best", "resume_from=run:FIRST/last"], "both set"),
        (["resume_from=run:FIRST/last"], "has trained all there is to train"),
        (["after=nowhere"], "after: nowhere has no runs"),
        (["after=pretrian"], "(did you mean 'pretrain'?)"),
        (["after=tune"], "nothing starts after itself"),
        (["after=[pretrain,'?']"], "is a list of names"),
        (["after=pretrain,tune"], "a launch has one of it"),
    ],
)
def test_what_cannot_be_started_from_is_refused_before_anything_is_submitted(desk, words, told):
    first = desk.only("pretrain").id[:7]
    with pytest.raises(RequestError) as caught:
        desk.drafted("tune", *(word.replace("FIRST", first) for word in words))
    assert told in str(caught.value)
    assert caught.value.fix


def test_a_start_is_frozen_by_its_whole_id_and_changes_no_other_id(desk):
    first = desk.only("pretrain")
    run = desk.drafted("tune", f"init_from=run:{first.id[:4]}/best")
    whole = {"run": first.id, "experiment": "pretrain", "generation": 1, "checkpoint": "best"}
    assert run.config["init_from"] == whole
    assert run.point == {}
    last = desk.drafted("tune", f"init_from=run:{first.id}/last")
    plain = desk.drafted("tune")
    assert len({run.id, last.id, plain.id}) == 3
    assert plain.id == first.id  # neither the experiment's name nor a key that is null is part of it


# --- after ------------------------------------------------------------------------------------------------


@pytest.fixture
def play(tmp_path, tidy):
    """A desk whose runs are scripted: `gate` lets those of `first` end."""
    return TuningDesk(tmp_path / "it's another desk")


def launch_first(play, *words):
    gate = play.folder / "gate"
    words = (f"model.until='{str(gate).replace(chr(39), chr(92) + chr(39))}'", "cluster=workstation", *words)
    play.orch("launch", "experiment=play", "name=first", *words, played=True)
    wait_for(lambda: any(play.folder.glob("runs/first/played/*")), "the first to begin")
    return gate


@pytest.mark.parametrize("cluster", ["workstation", "inline"])
def test_an_experiment_starts_once_another_one_is_done(play, cluster):
    gate = launch_first(play)
    second = play.start("launch", "experiment=play", "name=second", "after=first", f"cluster={cluster}", played=True)
    wait_for(lambda: any(play.folder.glob("runs/second/launches/*/COMPLETE")), "the second to be launched")
    other = ["launch", "experiment=play", "name=other", f"cluster={cluster}", "--wait"]
    play.orch(*other, played=True)  # what waits is in nobody's way
    assert play.only("second").reason.startswith("waits for first")
    assert play.only("second").state is RunState.QUEUED
    gate.touch()
    said, _ = second.communicate()
    assert "starts after first: 1 of its 1 runs are under way" in said
    wait_for(lambda: play.only("second").state is RunState.DONE, "the second to be done")
    ended, began = (next(play.folder.glob(f"runs/{name}/played/*")).name for name in ("first", "second"))
    assert int(ended.split(".")[4]) <= int(began.split(".")[3])


def test_what_is_to_start_after_a_failure_fails_with_the_reason_and_is_retried(play):
    gate = launch_first(play, "model.ends=[raise,done]", "seed=1,2")
    play.orch("launch", "experiment=play", "name=second", "after=first", "cluster=workstation", played=True)
    play.orch("launch", "experiment=play", "name=third", "after=[first]", "cluster=workstation", played=True)
    play.orch("cancel", "third")
    wait_for(lambda: play.only("third").state is RunState.CANCELLED, "the third to be cancelled")
    gate.touch()
    wait_for(lambda: play.only("second").state is RunState.FAILED, "the second to fail")
    reason = play.only("second").reason
    assert "after first, which is not done: " in reason
    assert "is failed (ArithmeticError at script.py" in reason
    assert "and 1 more" in reason
    assert "after first, which is not done" in play.orch("status", "second")
    refused = play.orch("launch", "experiment=play", "name=fourth", "after=first", status=2, played=True)
    assert "fix: orch retry first" in refused
    play.orch("retry", "first", "--wait", played=True)
    play.orch("retry", "second", "--wait", played=True)
    assert {record.state for name in ("first", "second") for record in play.records(name)} == {RunState.DONE}
