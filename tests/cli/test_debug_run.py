"""`orch run --on CLUSTER`: a few batches, in an experiment of its own. tests/slurm/test_run_on_slurm.py: on Slurm."""

from __future__ import annotations

import json
import signal
import subprocess

import pytest
from git_desk import Desk, environ
from processes import tidy, wait_for  # noqa: F401 - one is a fixture

from orchestrator.cluster import JobState, Observation
from orchestrator.config.debug import debugging
from orchestrator.config.experiment import ComposedExperiment, ComposedPoint
from orchestrator.launch.plan import Action, make_plan
from orchestrator.records.experiment import read_experiment
from orchestrator.records.launches import read_launch
from orchestrator.records.planned import PlannedRun
from orchestrator.records.record import Attempt, Claim, RunState, reconcile
from orchestrator.spec import LaunchOptions, Resources, RunId, SnapshotOptions
from orchestrator.spec.experiment import Run
from orchestrator.tracking import Metrics, read


@pytest.fixture
def desk(tmp_path, tidy):  # noqa: F811 - the fixture
    return Desk(tmp_path / "my project's folder", environ())


# --- what becomes of an experiment ------------------------------------------------------------------------


def draft(name="mine", **trainer):
    config = {"model": {}, "data": {}, "trainer": trainer, "seed": 0, "task": "fit"}
    point = ComposedPoint(point={}, config=config, resources=Resources(nodes=4, gpus_per_node=8))
    return ComposedExperiment(
        name=name,
        points=(point,),
        objective=None,
        cluster={"kind": "slurm"},
        tracking={"kind": "embedded"},
        snapshot=SnapshotOptions(),
        env="warn",
        choices={},
        sweep={},
        overrides=(),
        notes=(),
        launch=LaunchOptions(),
        tags=(),
    )


def test_a_debug_run_is_short_on_one_node_and_not_the_experiments_own():
    whole = draft(max_epochs=90, max_steps=5, val_check_interval=500, min_epochs=3, check_val_every_n_epoch=10)
    short = debugging(whole, 3)
    (point,) = short.points
    assert (short.name, short.tracking) == ("mine-debug", {"kind": "none"})
    assert point.resources == Resources(nodes=1, gpus_per_node=8)
    assert point.config["trainer"] == {
        "max_epochs": 1,
        "max_steps": 5,
        "val_check_interval": None,
        "min_epochs": None,
        "check_val_every_n_epoch": 1,
        "limit_train_batches": 3,
        "limit_val_batches": 3,
        "limit_test_batches": 3,
        "limit_predict_batches": 3,
        "log_every_n_steps": 1,
    }
    assert whole == draft(max_epochs=90, max_steps=5, val_check_interval=500, min_epochs=3, check_val_every_n_epoch=10)


def test_the_longest_name_still_is_one():
    assert debugging(draft(name="x" * 100), 3).name == "x" * 94 + "-debug"


@pytest.mark.parametrize("state", [RunState.DONE, RunState.FAILED, RunState.INTERRUPTED, RunState.CANCELLED])
def test_a_debug_run_begins_anew_with_todays_code_whatever_became_of_the_last(state):
    run = Run(id=RunId("a" * 12), point={}, config={}, resources=Resources(), data_digest=None)
    planned = PlannedRun(
        run=run.id,
        launch=1,
        index=0,
        action="submit",
        attempt=1,
        generation=1,
        history=1,
        code="old",
        point={},
        resources=Resources(),
    )
    claim = Claim(launch=1, index=0, code="old", generation=1, history=1, process=None, time=0.0)
    attempt = Attempt(number=1, claim=claim, state=state)
    seen = Observation(state=JobState.ENDED)
    record = reconcile(
        planned, [attempt], observation=seen, cancelled="cancelled" if state is RunState.CANCELLED else ""
    )
    (step,) = make_plan([run], {run.id: record}, code="new", rerun="anew")
    assert step.action is not Action.SKIP
    assert (step.attempt, step.history, step.code) == (2, 2, "new")


# --- in the terminal --------------------------------------------------------------------------------------


def test_inline_it_trains_validates_and_leaves_the_experiment_alone(warm_parent, desk):
    words = ("experiment=nets", "sweep=none", "+trainer.min_steps=50", "trainer.val_check_interval=40", "task=fit_test")
    done = desk.orch("run", "--on", "inline", "--batches", "2", *words, played=False)
    assert "done" in done.err
    debug = desk.paths("nets-debug")
    (metrics,) = debug.path.glob("runs/*/a001/metrics.jsonl")
    found = [record for record, _ in read(metrics) if isinstance(record, Metrics)]
    assert [one.step for one in found if "train/loss" in one.values] == [0, 1]
    assert [one.step for one in found if "val/loss" in one.values] == [1]
    assert read_launch(debug.launch(1)).header.tracking == {"kind": "none"}
    assert not desk.paths("nets").path.exists()


def test_on_a_workstation_it_is_followed_and_ends_with_the_terminal(desk, tmp_path):
    gate = json.dumps(str(tmp_path / "open"))
    words = ("run", "--on", "workstation", "experiment=plays", "sweep=none", f"model.until={gate}")
    for number in (1, 2):
        (tmp_path / "open").unlink(missing_ok=True)
        process = subprocess.Popen(
            desk.command(*words),
            cwd=desk.folder,
            env=desk.env,
            text=True,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        wait_for(lambda n=number: len(list(desk.paths("plays-debug").path.glob("played/*"))) == n, "the run to begin")
        if number == 1:
            process.send_signal(signal.SIGINT)
        else:
            (tmp_path / "open").touch()
        out, err = process.communicate()
        assert process.returncode == (130 if number == 1 else 0), err
    assert "step 1\n" in out
    assert desk.states("plays-debug") == [RunState.DONE]
    assert [attempt.number for attempt in ledger_record(desk).attempts] == [1, 2]


def ledger_record(desk):
    from orchestrator.clusters import observers

    (record,) = read_experiment(desk.paths("plays-debug"), observers()).records.values()
    return record


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--batches", "3"), "--batches is given, but --on is not"),
        (("--on", "inline", "--batches", "0"), "--batches is 0"),
        (("--on", "inline", "--batches", "few"), "invalid int value: 'few'"),
        (("--on", "inline", "cluster=slurm"), "--on inline and cluster=slurm are given"),
        (("--on", "slrum"), "did you mean 'slurm'"),
        (("--on", "inline,slurm"), "cluster is swept"),
        (("--on", "inline", "seed=1,2"), "`orch run` runs a single one"),
        (("--on", "inline", "cluster.devices=[7]", "resources.gpus_per_node=2"), "resources.gpus_per_node is 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_is_wrong_is_refused_and_nothing_is_done(words, told, desk):
    sweep = () if "seed=1,2" in words else ("sweep=none",)
    assert told in desk.orch("run", "experiment=plays", *sweep, *words, status=2).err
    assert not (desk.folder / "runs").exists()
