"""What MLflow is told of experiments and runs: notes, commands that compose to the same run again, files, datasets."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from launches import planned_run

from orchestrator import api, clusters
from orchestrator.config import schema
from orchestrator.config.overrides import _plain
from orchestrator.config.quoting import as_override, quoted
from orchestrator.errors import ConfigError
from orchestrator.layout import ExperimentPaths, RunsRoot
from orchestrator.project import Project
from orchestrator.records.attempts import EventWriter, claim_attempt
from orchestrator.records.experiment import read_experiment
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import publish_launch
from orchestrator.records.record import Claim
from orchestrator.spec import Objective, Resources
from orchestrator.system.files import make_private
from orchestrator.system.processes import ProcessId
from orchestrator.tracking import notes as tracking_notes
from orchestrator.tracking.view import tracked

ROOT = Path(__file__).resolve().parents[2]
OBJECTIVE = Objective(metric="val/acc", mode="max")


# --- a run again ------------------------------------------------------------------------------------------

CONF = """
# @package _global_
defaults: [override /data: none, override /model: mlp]
name: odd
vars: {text: plain, deep: {x: 1}}
sweep:
  grid: {model: [mlp, convnet], model.lr: [1e-3, 0.01]}
  resources: [{when: {model: convnet}, set: {nodes: 2}}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("a 'project'")
    (found / "conf" / "experiment").mkdir(parents=True)
    (found / "conf" / "experiment" / "odd.yaml").write_text(CONF)
    (found / "conf" / "model").mkdir()
    (found / "conf" / "model" / "any.yaml").write_text("_target_: anything.Model\n")
    (found / "anything.py").write_text("class Model:\n    def __init__(self, value=None):\n        pass\n")
    return found


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=odd"],
        ["experiment=odd", "model.lr=1e-4,2e-4", "seed=range(0,2)", "model=mlp"],
        ["experiment=odd", "sweep=none", "model.lr=0.5"],
        ["name=plain", "model=any", "+model.value=a,'b c',\"it's\",null,[1,2],1e-5,true,'1'"],
        ["name=plain", "model=mlp", "+trainer.fast_dev_run=false,true"],
    ],
    ids=["as written", "command line", "no sweep", "odd values", "added keys"],
)
def test_the_command_in_a_runs_note_composes_to_that_run_and_no_other(folder, overrides):
    """By its id: that is model, data, trainer, seed, task and world size."""
    project = Project(folder=folder, runs=RunsRoot(folder / "runs"))
    with api.prepare(project, [*overrides, "cluster=slurm"]) as prepared:
        experiment = prepared.experiment
    header = LaunchHeader(
        overrides=experiment.overrides, choices=experiment.choices, sweep=experiment.sweep, cluster=experiment.cluster
    )
    for run in {run.id: run for run in (experiment.runs[0], experiment.runs[-1])}.values():
        record = SimpleNamespace(given=None, point=run.point, planned=SimpleNamespace(resources=run.resources))
        words = shlex.split(shlex.join(tracking_notes.again(record, header, {})))
        with api.prepare(project, words) as again:
            assert [found.id for found in again.experiment.runs] == [run.id], words


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("ab'\"\\ ,:={}[]()$\t.-_/1", max_size=8) | st.sampled_from(["true", "null", "NaN", "1e3", "a/b"]),
    lambda inner: st.lists(inner, max_size=3), max_leaves=4,
)  # fmt: skip


@given(VALUES, st.booleans())
def test_a_value_that_is_written_as_an_override_is_read_back_by_hydra(value: Any, plain: bool):
    read = OverridesParser.create().parse_override(as_override("key", value, plain=plain))
    assert not read.is_sweep_override()
    assert (_plain(read.value()), type(_plain(read.value()))) == (value, type(value))


def test_words_that_need_no_quotes_get_none_for_people():
    assert [quoted(word, plain=True) for word in ("mlp", "a b", "true", "1e3")] == ["mlp", "'a b'", "'true'", "'1e3'"]
    assert quoted("mlp") == "'mlp'"


def test_a_data_version_named_by_a_branch_is_pinned_in_the_command():
    record = SimpleNamespace(given=None, point={}, planned=SimpleNamespace(resources=Resources()))
    header = LaunchHeader(overrides=("experiment=x",), cluster={"kind": "inline"})
    origin = {"rev": "HEAD", "commit": "abc"}
    assert tracking_notes.again(record, header, origin) == ["experiment=x", "data.version.rev=abc"]
    header = LaunchHeader(overrides=("data.version.rev=v1",), cluster={"kind": "inline"})
    assert tracking_notes.again(record, header, origin) == ["data.version.rev=v1"]


# --- an experiment ----------------------------------------------------------------------------------------


class Lab:
    """An experiment with records that are written, and no process that does anything."""

    def __init__(self, folder: Path) -> None:
        self.paths = ExperimentPaths(folder / "runs" / "e")
        self.ids = iter(["aaaaaaaaaaaa", "bbbbbbbbbbbb", "cccccccccccc"])

    def launch(self, points: list[dict[str, Any]], *, data: dict[str, Any] | None = None, **header: Any) -> list[str]:
        runs = [next(self.ids) for _ in points]
        code = self.paths.code("c0de")
        make_private(code.path)
        code.diff.write_text("--- a\n+++ b\n")
        values = {
            "experiment": "e",
            "message": "why | not\n",
            "overrides": ("experiment=e", "seed=1,2"),
            "sweep": {"grid": {"seed": [1, 2]}},
            "objective": OBJECTIVE,
            "cluster": {"kind": "inline"},
            "tracking": {"kind": "embedded"},
            "python": "python",
            "data": {"d1": data} if data else {},
            "environment": {"python": "3.11", "platform": "linux", "distributions": {"torch": "2.0", "a": "1"}},
            "code": ({"tree": "c0de", "commit": "c0mm17", "dirty": True, "branch": "main"},),
        }
        planned = [
            planned_run(index=i, run=run, data="d1" if data else None, changes=[[["seed"], i]], point=points[i])
            for i, run in enumerate(runs)
        ]
        number, written = len(self.paths.launches()) + 1, LaunchHeader(**{**values, **header})
        published = publish_launch(self.paths, number, written, [{"seed": 0, "model": {}}], planned)
        published.complete.touch()
        return runs

    def attempt(self, run: str, kind: str = "done", *, index: int = 0, job: str = "", number: int = 1, **data: Any):
        attempt = self.paths.run(run).attempt(number)
        claim = Claim(
            launch=1,
            index=index,
            code="c0de",
            generation=1,
            history=1,
            process=ProcessId.current(),
            time=time.time(),
            job=job,
        )
        assert claim_attempt(attempt, claim)
        if kind:
            EventWriter(attempt.events).write(kind, **data)
        self.paths.run(run).config.write_text("seed: 0\n")
        for name in ("log", "log.rank1"):
            (attempt.path / name).write_text("said\n")
        make_private(attempt.checkpoints)
        for name in ("best.ckpt", "last.ckpt", "epoch=3.ckpt"):
            (attempt.checkpoints / name).write_text(f"{number}")
        return attempt

    def view(self):
        found = tracked(read_experiment(self.paths, clusters.observers()))
        return replace(found, runs=tuple(found.runs))


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "it's a [folder]")


def test_an_experiments_note_says_how_far_it_is_what_was_best_and_what_was_launched(lab):
    one, two, *_ = lab.launch([{"model.lr": 0.1}, {"model.lr": 0.2}])
    for run, value in ((one, 0.5), (two, 0.75)):
        lab.attempt(run, best={"metric": "val/acc", "value": value, "checkpoint": "a001/checkpoints/best.ckpt"})
    note = lab.view().note
    assert note.startswith("**2 done**")
    assert f"Best `val/acc` (max): **0.75** by [lr=0.2 bbbbbb](run:{two})" in note
    assert "sweep:\n  grid:\n    seed:\n    - 1" in note
    assert "why \\| not" in note
    assert lab.view().tags["orch.objective"] == "max val/acc"
    assert json.loads(lab.view().tags["orch.sweep"]) == {"grid": {"seed": [1, 2]}}


def test_a_note_of_hundreds_of_launches_keeps_the_latest_and_counts_the_others(lab):
    launch = SimpleNamespace(number=7, header=LaunchHeader(user="ada", overrides=("a=1",), cluster={"kind": "inline"}))
    told = tracking_notes._launches([launch] * 100)
    assert told.count("| 0007 |") == 30
    assert "70 earlier launches" in told


def test_a_run_shows_what_it_was_launched_with_and_all_that_was_printed(lab):
    run, _ = lab.launch([{"seed": 1}, {"seed": 2}])
    lab.attempt(run, "interrupted", job="17_0", reason="preempted")
    lab.attempt(run, "done", number=2, job="17_0", best={})
    make_private(lab.paths.launch(1).submitit)
    lab.paths.launch(1).script("17").write_text("#!/bin/bash\n")
    (found,) = lab.view().runs
    named = {artifact.name: artifact for artifact in found.artifacts}
    assert set(named) == {
        "config.yaml",
        "logs/a001/log",
        "logs/a001/log.rank1",
        "logs/a002/log",
        "logs/a002/log.rank1",
        "launch/overrides.txt",
        "launch/environment.txt",
        "launch/17_submission.sh",
        "code/uncommitted.diff",
        "checkpoints/best.ckpt",
    }
    assert named["launch/overrides.txt"].content == "experiment=e\nseed=1,2\n"
    assert "a==1\ntorch==2.0\n" in named["launch/environment.txt"].content
    assert "git checkout c0mm17\ngit apply" in found.tags["mlflow.note.content"]
    assert "orch run experiment=e seed=1 sweep=none" in found.tags["mlflow.note.content"]
    assert found.tags["mlflow.source.git.branch"] == "main"


@pytest.mark.parametrize(
    ("policy", "shown"),
    [
        ("best", {"best.ckpt"}),
        ("last", {"last.ckpt"}),
        ("none", set()),
        ("all", {"best.ckpt", "last.ckpt", "epoch=3.ckpt"}),
    ],
)
def test_checkpoints_are_shown_by_policy_from_the_attempt_that_wrote_them(lab, policy, shown):
    run, _ = lab.launch([{"seed": 1}, {"seed": 2}], tracking={"kind": "embedded", "checkpoints": policy})
    lab.attempt(run, "interrupted", reason="preempted")
    best = {"metric": "val/acc", "value": 1.0, "checkpoint": "a001/checkpoints/best.ckpt"}
    lab.attempt(run, "done", number=2, best=best)
    (found,) = lab.view().runs
    paths = {a.path.name: a.path.parent.parent.name for a in found.artifacts if a.folder == "checkpoints"}
    assert set(paths) == shown
    assert paths.get("best.ckpt", "a001") == "a001"
    assert paths.get("last.ckpt", "a002") == "a002"


def test_of_a_run_that_failed_only_what_it_went_on_from_is_shown_and_of_a_running_one_nothing(lab):
    failed, running = lab.launch([{"seed": 1}, {"seed": 2}], tracking={"kind": "embedded", "checkpoints": "all"})
    lab.attempt(failed, "failed", signature="KeyError", message="", traceback="")
    lab.attempt(running, "", index=1)
    names = [{a.path.name for a in run.artifacts if a.folder == "checkpoints"} for run in lab.view().runs]
    assert names[0] == {"last.ckpt", "epoch=3.ckpt"}


@pytest.mark.parametrize(
    ("origin", "kind", "name", "uri"),
    [
        ({"source": "dvc", "repo": ".", "path": "data/x", "rev": "v1", "commit": "abc"}, "dvc", "data/x", None),
        ({"source": "directory", "path": "x", "folder": "/data/x"}, "local", "x", "/data/x"),
        ({"source": "s3", "url": "s3://b/x"}, "s3", "s3://b/x", "s3://b/x"),
    ],
)
def test_a_data_version_is_a_dataset_with_its_source(lab, origin, kind, name, uri):
    run, _ = lab.launch([{"seed": 1}, {"seed": 2}], data={**origin, "repair": "dvc pull", "files": 2, "bytes": 5})
    lab.attempt(run)
    (found,) = lab.view().runs
    source = json.loads(found.data.source)
    assert (found.data.name, found.data.source_type, source.get("uri")) == (name, kind, uri)
    assert {key: source[key] for key in origin} == origin
    assert json.loads(found.data.profile) == {"files": 2, "bytes": 5}


def test_launches_of_before_these_options_are_read(lab):
    run, _ = lab.launch([{"seed": 1}, {"seed": 2}], environment={}, data=None)
    lab.attempt(run)
    (found,) = lab.view().runs
    assert found.data is None
    assert "checkpoints/best.ckpt" in {artifact.name for artifact in found.artifacts}


# --- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"checkpoints": "bset"}, "best"),
        ({"system_metrics": 0}, "positive"),
        ({"system_metrics": "on"}, "positive"),
        ({"register": "a/b"}, "registered model"),
        ({"register": 3}, "registered model"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes, told):
    with pytest.raises(ConfigError, match=told):
        schema.tracking({"kind": "embedded", **changes})


def test_a_best_run_cannot_be_registered_without_an_objective():
    with pytest.raises(ConfigError, match="no objective"):
        schema.check_register({"register": "digits"}, None)
