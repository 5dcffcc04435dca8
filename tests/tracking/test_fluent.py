"""MLflow's fluent calls in a run's own process: they reach the run's spool, and nothing else is made."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import fluent as mlflow_fluent
from mlflow.tracking._tracking_service import utils

from orchestrator.layout import AttemptPaths
from orchestrator.tracking import ArtifactLine, Metrics, Params, SpoolWriter, Tags, read
from orchestrator.tracking.experiment import RunExperiment
from orchestrator.tracking.fluent import fluent


@pytest.fixture
def attempt(tmp_path, monkeypatch):
    made = AttemptPaths(tmp_path / "an 'exp'" / "runs" / "0a1b2c" / "a001")
    made.path.mkdir(parents=True)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(utils, "_artifact_repos_cache", OrderedDict())  # by run id, and these tests have one
    monkeypatch.setattr(mlflow_fluent, "_active_experiment_id", None)
    return made


@pytest.fixture
def run(attempt):
    with SpoolWriter(attempt.metrics) as writer:
        yield RunExperiment(writer, attempt)


def found(attempt, kind):
    return [record for record, _ in read(attempt.metrics) if isinstance(record, kind)]


def metrics(attempt):
    return [(name, each.step, value) for each in found(attempt, Metrics) for name, value in each.values.items()]


def test_what_is_logged_reaches_the_run_and_makes_nothing_else(attempt, run, tmp_path):
    with fluent(run):
        for value in (1.0, 2.0):
            mlflow.log_metric("own", value)
        mlflow.log_metric("own", 3.0, step=5)
        mlflow.log_params({"p": 1})
        mlflow.set_tag("t", "v")
        mlflow.log_text("x", "deep/a.txt")
        assert mlflow.active_run().info.run_id == "0a1b2c"
        mlflow.log_metric("late", 1.0, synchronous=False)
    assert metrics(attempt) == [("own", 0, 1.0), ("own", 1, 2.0), ("own", 5, 3.0), ("late", 0, 1.0)]
    assert [each.values for each in found(attempt, Params)] == [{"p": "1"}]
    assert [each.values for each in found(attempt, Tags)] == [{"t": "v"}]
    assert found(attempt, ArtifactLine) == [ArtifactLine(path="../artifacts/deep/a.txt", folder="deep")]
    assert (attempt.path.parent / "artifacts" / "deep" / "a.txt").read_text() == "x"
    assert list((tmp_path / "cwd").iterdir()) == []


def test_runs_that_a_module_starts_are_the_run_itself(attempt, run):
    with fluent(run):
        mlflow.set_experiment("another")
        for number in (1.0, 2.0):
            with mlflow.start_run(run_name="another", tags={"mine": "1"}) as started:
                mlflow.log_metric("a", number, step=int(number))
                with mlflow.start_run(nested=True):
                    mlflow.log_metric("b", number, step=int(number))
            assert started.info.run_id == "0a1b2c"
        data = mlflow.get_run("0a1b2c").data
        history = mlflow.MlflowClient().get_metric_history("0a1b2c", "a")
    assert (data.metrics, data.tags) == ({"a": 2.0, "b": 2.0}, {"mine": "1"})
    assert [point.value for point in history] == [1.0, 2.0]
    assert None not in [point.model_id for point in history], "or MLflow logs them again for each model"
    assert metrics(attempt) == [("a", 1, 1.0), ("b", 1, 1.0), ("a", 2, 2.0), ("b", 2, 2.0)]


def test_the_environment_is_as_before_and_no_run_is_left_active(run, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server.invalid:5000")
    before = dict(os.environ)
    with fluent(run):
        assert mlflow.get_tracking_uri().startswith("orch:")
        assert mlflow.get_registry_uri() == "http://server.invalid:5000"
        mlflow.set_experiment("another")
        mlflow.log_metric("a", 1.0)
    assert dict(os.environ) == before
    assert mlflow.active_run() is None


def test_ranks_other_than_the_first_keep_nothing(attempt):
    with SpoolWriter(Path(os.devnull)) as writer, fluent(RunExperiment(writer, attempt)):
        mlflow.log_metric("a", 1.0)
        mlflow.log_text("x", "a.txt")
    assert not (attempt.path.parent / "artifacts").exists()


def test_a_process_that_the_run_started_is_warned_that_nothing_is_kept(attempt, monkeypatch, caplog):
    other = attempt.path.parent / "a002"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"orch:{other}")
    mlflow.MlflowClient().log_metric("0a1b2c", "a", 1.0)
    assert "not kept" in caplog.text
    assert not other.exists()
