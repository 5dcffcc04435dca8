"""MLflow holds what the spools hold, once, in runs that end as the record says; whatever interrupts it."""

import fcntl
import math
import os
import shutil
import sqlite3
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from mlflow.entities import ViewType
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.data import DataLoader, TensorDataset

from orchestrator.errors import RequestError, TrackingError
from orchestrator.layout import AttemptPaths
from orchestrator.tracking import (
    Artifact,
    ArtifactLine,
    Dataset,
    Metrics,
    Params,
    Report,
    SpoolWriter,
    Tags,
    TrackedExperiment,
    TrackedRun,
    read,
)
from orchestrator.tracking.fields import cut_name, decode, encode, flatten, shorten
from orchestrator.tracking.logger import SpoolLogger
from orchestrator.tracking.mlflow_store import MlflowStore
from orchestrator.tracking.upload import Seen, batches

# MLflow's own tables use a loader that SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

WRITES = {
    "create_experiment",
    "create_run",
    "delete_run",
    "log_artifact",
    "log_batch",
    "log_inputs",
    "log_text",
    "set_terminated",
    "update_run",
}


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """One database with MLflow's tables: making it costs seconds."""
    folder = tmp_path_factory.mktemp("template") / "store"
    MlflowStore.embedded(folder)
    return folder / "mlflow.db"


@pytest.fixture
def store(template, tmp_path):
    folder = tmp_path / "runs d'été\n#1" / ".mlflow"
    folder.mkdir(parents=True)
    shutil.copy(template, folder / "mlflow.db")
    return MlflowStore.embedded(folder)


@pytest.fixture
def folder(tmp_path):
    """The run's folder, with attempts a001, a002, ..."""
    path = tmp_path / 'a "run"'
    path.mkdir()
    return path


def spool(folder, number, *points, tail=b""):
    """Write the spool of an attempt: points are (key, step, value)."""
    path = folder / f"a{number:03d}" / "metrics.jsonl"
    path.parent.mkdir(exist_ok=True)
    with SpoolWriter(path) as writer:
        for key, step, value in points:
            writer.metrics({key: value}, step=step, time_ms=1_000 + step if step >= 0 else 0)
    with path.open("ab") as file:
        file.write(tail)
    return path


def run(**changes):
    given = {
        "experiment": "exp",
        "run_id": "abc123",
        "generation": 1,
        "history": 1,
        "name": "lr=0.1 seed=0",
        "params": {"model": {"lr": 0.1}},
        "tags": {"mlflow.user": "ada"},
        "state": "running",
        "started_ms": 1_000,
    }
    return TrackedRun(**{**given, **changes})


def experiment(*runs, **changes):
    given = {"name": "exp", "project": "here", "note": "| launch | runs |", "runs": runs}
    return TrackedExperiment(**{**given, **changes})


def everything(store, name="exp", view=ViewType.ACTIVE_ONLY):
    found = store.client.get_experiment_by_name(name)
    return store.client.search_runs([found.experiment_id], run_view_type=view)


def children(store, view=ViewType.ACTIVE_ONLY):
    return [r for r in everything(store, view=view) if r.data.tags["orch.kind"] == "run"]


def child(store):
    (found,) = children(store)
    return found


def parent(store):
    (found,) = [r for r in everything(store) if r.data.tags["orch.kind"] == "parent"]
    return found


def history(store, key):
    return [(m.step, m.value) for m in store.client.get_metric_history(child(store).info.run_id, key)]


def artifact(store, path):
    return Path(url2pathname(urlparse(child(store).info.artifact_uri).path)) / path


def content(store):
    """Everything in the database, to be compared before and after."""
    with sqlite3.connect(store.folder / "mlflow.db") as database:
        dump = list(database.iterdump())
    database.close()
    return dump


class Cut(BaseException):
    """Stands for the end of the process."""


class CuttingClient:
    """A client whose process ends before, or right after, its n-th write."""

    def __init__(self, client, n, *, after):
        self._client, self._n, self._after = client, n, after

    def __getattr__(self, name):
        method = getattr(self._client, name)
        if name not in WRITES:
            return method

        def call(*args, **kwargs):
            self._n -= 1
            if self._n == 0 and not self._after:
                raise Cut
            result = method(*args, **kwargs)
            if self._n == 0:
                raise Cut
            return result

        return call


# ---- runs: parent, children, status


def test_a_run_arrives_with_its_params_tags_metrics_and_status(store, folder):
    path = spool(folder, 1, ("loss", 0, 2.0), ("loss", 1, 1.0), ("acc", 1, 0.5))
    report = store.sync(experiment(run(spools=(path,), state="done", ended_ms=9_000)))
    found = child(store)
    assert report == Report(created=1, metrics_sent=3, runs_finished=1)
    assert found.data.params == {"model.lr": "0.1"}
    assert history(store, "loss") == [(0, 2.0), (1, 1.0)]
    assert (found.info.status, found.info.start_time, found.info.end_time) == ("FINISHED", 1_000, 9_000)
    assert found.info.run_name == "lr=0.1 seed=0"
    assert found.data.tags["orch.run"] == "abc123"


def test_children_lie_under_one_parent_with_the_experiments_note(store):
    tracked = experiment(run(), run(run_id="def456"), tags={"team": "vision"})
    store.sync(tracked)
    assert {r.data.tags["mlflow.parentRunId"] for r in children(store)} == {parent(store).info.run_id}
    assert parent(store).info.run_name == "exp"
    assert parent(store).data.tags["mlflow.note.content"] == "| launch | runs |"
    store.sync(replace(tracked, note="another launch"))
    assert parent(store).data.tags["mlflow.note.content"] == "another launch"
    assert parent(store).data.tags["team"] == "vision"


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("queued", "SCHEDULED"),
        ("running", "RUNNING"),
        ("done", "FINISHED"),
        ("failed", "FAILED"),
        ("cancelled", "KILLED"),
        ("lost", "KILLED"),
    ],
)
def test_every_state_has_its_status(store, state, status):
    store.sync(experiment(run(state=state)))
    assert child(store).info.status == status
    assert parent(store).info.status == status


def test_a_state_that_nobody_knows_leaves_the_status_alone(store):
    store.sync(experiment(run(state="queued")))
    store.sync(experiment(run(state="unknown")))
    assert child(store).info.status == "SCHEDULED"
    assert parent(store).info.status == "RUNNING"


def test_a_run_that_goes_on_is_running_again_and_ends_when_it_ended(store):
    store.sync(experiment(run(state="lost", ended_ms=5_000)))
    store.sync(experiment(run(state="running")))
    assert child(store).info.status == "RUNNING"
    store.sync(experiment(run(state="done", ended_ms=8_000)))
    assert (child(store).info.status, child(store).info.end_time) == ("FINISHED", 8_000)


@pytest.mark.parametrize(
    ("states", "status"),
    [
        (["done", "failed"], "FAILED"),
        (["done", "cancelled"], "KILLED"),
        (["done", "queued"], "RUNNING"),
        (["queued", "queued"], "SCHEDULED"),
        (["failed", "running"], "RUNNING"),
        ([], "SCHEDULED"),
    ],
)
def test_the_parent_ends_as_the_worst_of_its_runs(store, states, status):
    store.sync(experiment(*(run(run_id=f"r{n}", state=state) for n, state in enumerate(states))))
    assert parent(store).info.status == status


def test_another_generation_is_another_child(store):
    store.sync(experiment(run(), run(generation=2)))
    assert sorted(r.data.tags["orch.generation"] for r in children(store)) == ["1", "2"]


def test_a_new_name_and_new_tags_are_taken_over(store):
    store.sync(experiment(run(tags={"a": "1", "z": "1"})))
    store.sync(experiment(run(tags={"a": "2", "z": "2"}, name="better")))
    assert child(store).info.run_name == child(store).data.tags["mlflow.runName"] == "better"
    assert (child(store).data.tags["a"], child(store).data.tags["z"]) == ("2", "2")


def test_source_and_user_are_those_that_were_given(store):
    tags = {"mlflow.user": "ada", "mlflow.source.name": "orch launch", "mlflow.source.type": "JOB"}
    store.sync(experiment(run(tags=tags)))
    assert {key: child(store).data.tags[key] for key in tags} == tags


def test_mlflow_variables_of_a_job_do_not_interfere(store, monkeypatch, tmp_path):
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_NAME"):
        monkeypatch.setenv(name, "stray")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/stray.db")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", f"sqlite:///{tmp_path}/stray.db")
    again = MlflowStore.embedded(store.folder)
    again.sync(experiment(run()))
    assert child(store).info.run_name == "lr=0.1 seed=0"
    assert not (tmp_path / "stray.db").exists()


# ---- metrics: once, in order, whatever happens


def test_only_new_lines_are_sent(store, folder):
    path = spool(folder, 1, ("loss", 0, 1.0))
    assert store.sync(experiment(run(spools=(path,)))).metrics_sent == 1
    spool(folder, 1, ("loss", 1, 2.0))
    assert store.sync(experiment(run(spools=(path,)))).metrics_sent == 1
    assert history(store, "loss") == [(0, 1.0), (1, 2.0)]


def test_a_resumed_attempt_that_repeats_steps_adds_only_the_new_ones(store, folder):
    first = spool(folder, 1, *(("loss", step, step / 3) for step in range(8)))
    store.sync(experiment(run(spools=(first,))))
    second = spool(folder, 2, *(("loss", step, step / 3) for step in range(5, 12)))
    assert store.sync(experiment(run(spools=(first, second)))).metrics_sent == 4
    assert history(store, "loss") == [(step, step / 3) for step in range(12)]
    assert "metrics_diverged" not in child(store).data.tags


@pytest.mark.parametrize("together", [True, False])
def test_a_repeated_value_that_differs_keeps_the_first_and_says_so(store, folder, together):
    first = spool(folder, 1, ("loss", 5, 1.0), ("nan", 5, math.nan))
    if not together:
        store.sync(experiment(run(spools=(first,))))
    second = spool(folder, 2, ("nan", 5, math.nan), ("loss", 5, 1.5), ("loss", 6, 0.5))
    store.sync(experiment(run(spools=(first, second))))
    assert history(store, "loss") == [(5, 1.0), (6, 0.5)]
    assert child(store).data.tags["metrics_diverged"] == "loss@5"


def cut(first, second, *, at, **changes):
    """Return a run whose second attempt has resumed from a checkpoint that lies `at` so many lines into the first."""
    lines = first.read_bytes().splitlines(keepends=True)
    return run(spools=(first, second), ends={"a001": len(b"".join(lines[:at]))}, **changes)


@pytest.mark.parametrize("together", [True, False])
def test_what_was_sent_and_then_made_void_is_not_sent_again_when_it_comes_again(store, folder, together):
    first = spool(folder, 1, *(("loss", step, step / 3) for step in range(8)))
    if not together:
        store.sync(experiment(run(spools=(first,))))
    before = children(store)[0].info.run_id if not together else None
    second = spool(folder, 2, *(("loss", step, step / 3) for step in range(5, 12)))
    store.sync(experiment(cut(first, second, at=5, state="done")))
    assert history(store, "loss") == [(step, step / 3) for step in range(12)]
    assert "metrics_diverged" not in child(store).data.tags
    assert before in {None, child(store).info.run_id}


@pytest.mark.parametrize("follows", [False, True])
@pytest.mark.parametrize("later", [("loss", 6, 99.0), ("other", 6, 1.0)])
def test_a_branch_that_was_abandoned_leaves_nothing_in_the_store(store, folder, follows, later):
    """A value that differs shows at once; one that does not come again, when the run is done."""
    first = spool(folder, 1, *(("loss", step, step / 3) for step in range(8)))

    def bring(one):
        if not follows:
            return store.sync(experiment(one))
        with_one = experiment(run())
        return store.follow(with_one).send(one)

    bring(run(spools=(first,)))
    abandoned = child(store).info.run_id
    second = spool(folder, 2, ("loss", 5, 5 / 3), later)
    report = bring(cut(first, second, at=5, state="done"))
    expected = [(step, step / 3) for step in range(6)] + [later[1:]] * (later[0] == "loss")
    assert history(store, "loss") == expected
    assert child(store).info.run_id != abandoned
    assert child(store).data.tags["metrics_diverged"].startswith("loss@")
    assert report.superseded == 1
    assert bring(cut(first, second, at=5, state="done")).metrics_sent == 0
    assert len(children(store, view=ViewType.ALL)) == 2


def test_an_abandoned_attempt_counts_for_nothing(store, folder):
    first = spool(folder, 1, ("loss", 0, 0.0), ("loss", 1, 1.0))
    second = spool(folder, 2, ("loss", 0, 7.0))
    third = spool(folder, 3, ("loss", 1, 1.0), ("loss", 2, 2.0))
    size = len(first.read_bytes().splitlines(keepends=True)[0])
    ends = {"a001": size, "a002": 0}
    store.sync(experiment(run(spools=(first, second, third), ends=ends)))
    assert history(store, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_a_fenced_attempt_that_still_writes_cannot_overrule_what_was_sent(store, folder):
    spools = (spool(folder, 1, ("loss", 0, 1.0)), spool(folder, 2, ("loss", 1, 2.0)))
    store.sync(experiment(run(spools=spools)))
    spool(folder, 1, ("loss", 1, 99.0))
    store.sync(experiment(run(spools=spools)))
    assert history(store, "loss") == [(0, 1.0), (1, 2.0)]
    assert child(store).data.tags["metrics_diverged"] == "loss@1"


def test_a_history_begun_anew_replaces_the_child(store, folder):
    first = spool(folder, 1, ("loss", 0, 1.0))
    store.sync(experiment(run(spools=(first,), state="failed")))
    second = spool(folder, 2, ("loss", 0, 2.0))
    report = store.sync(experiment(run(history=2, spools=(second,))))
    assert (report.created, report.superseded) == (1, 1)
    assert history(store, "loss") == [(0, 2.0)]
    assert len(children(store, ViewType.ALL)) == 2


def test_a_torn_line_waits_and_a_broken_one_is_skipped(store, folder):
    path = spool(folder, 1, ("loss", 0, 1.0), tail=b"{broken\n")
    spool(folder, 1, ("loss", 1, 2.0), tail=b'{"v":1,"kind":"metr')
    assert store.sync(experiment(run(spools=(path,)))).metrics_sent == 2
    before = content(store)
    assert store.sync(experiment(run(spools=(path,)))) == Report()
    assert content(store) == before


def test_zeros_of_an_attempt_that_still_writes_are_waited_for(store, folder):
    """A network filesystem's pages may arrive out of order; those of an attempt that has ended are a crash's."""
    path = spool(folder, 1, ("loss", 0, 1.0), tail=b"\0\0\0")
    spool(folder, 1, ("loss", 1, 2.0))
    assert store.sync(experiment(run(spools=(path,), state="running"))).metrics_sent == 1
    assert (
        store.sync(experiment(run(spools=(path, folder / "a002" / "metrics.jsonl"), state="running"))).metrics_sent == 1
    )


def test_ten_thousand_points_and_a_record_wider_than_a_batch(store, folder):
    path = spool(folder, 1, *(("loss", step, float(step)) for step in range(10_000)))
    with SpoolWriter(path) as writer:
        writer.metrics({f"class/{n}": n for n in range(2_000)}, step=1, time_ms=1)
    assert store.sync(experiment(run(spools=(path,)))).metrics_sent == 12_000
    assert history(store, "loss") == [(step, float(step)) for step in range(10_000)]
    assert sum(key.startswith("class/") for key in child(store).data.metrics) == 2_000
    assert child(store).data.tags["orch.offset.a001"] == str(path.stat().st_size)


def test_batches_of_long_names_stay_below_a_megabyte(folder):
    path = spool(folder, 1)
    with SpoolWriter(path) as writer:
        writer.metrics({f"{n:04d}" + "é" * 240: n for n in range(3_000)}, step=1, time_ms=1)
    found = list(batches([path], {}))
    assert sum(len(batch.points) for batch in found) == 3_000
    assert max(batch.size for batch in found) <= 900_000
    assert [bool(batch.offsets) for batch in found] == [False] * (len(found) - 1) + [True]


def test_what_is_not_finite_and_steps_of_any_size_are_stored(store, folder):
    path = spool(folder, 1, ("m", -7, math.nan), ("m", 2**70, math.inf), ("m", -(2**70), -math.inf), ("m", 2**62, 1.0))
    store.sync(experiment(run(spools=(path,))))
    found = dict(history(store, "m"))
    largest = sys.float_info.max
    assert math.isnan(found.pop(-7))
    assert found == {2**63 - 1: largest, -(2**63 - 1): -largest, 2**62: 1.0}


@pytest.mark.parametrize(
    "name",
    ["acc@5", "a//b", "/a", "a/", "../a", "./a", ".", "..", "", "a\n", ":x40:", "é ü", "x" * 300, "\ud800"],
)
def test_a_metric_of_any_name_arrives_and_its_name_can_be_told(store, folder, name):
    path = spool(folder, 1, (name, 3, 1.5))
    store.sync(experiment(run(spools=(path,))))
    (stored,) = child(store).data.metrics
    assert history(store, stored) == [(3, 1.5)]
    digest = stored.rpartition(":cut:")[2] if ":cut:" in stored else None
    told = child(store).data.tags[f"orch.name.{digest}"] if digest else decode(stored)
    assert told == name


def test_what_was_stored_is_not_read_again_while_the_same_process_sends(folder):
    """A spool grows for days: reading all of it every few seconds would cost the job more and more."""
    path = spool(folder, 1, *(("loss", step, float(step)) for step in range(1_000)))
    seen = Seen()
    committed = list(batches([path], {}, seen))[-1].offsets
    whole = path.read_bytes()
    path.write_bytes(b"\0" * (len(whole) - 1) + b"\n")  # nobody looks at it again
    spool(folder, 1, ("loss", 999, 999.0), ("loss", 5, 5.5), ("loss", 1_000, 1.0))
    (more,) = batches([path], committed, seen)
    assert [(point.step, point.value) for point in more.points] == [(1_000, 1.0)]
    assert more.diverged == "loss@5"


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(-(2**70), 2**70) | st.integers(0, 5), st.floats()), max_size=40
    )
)
def test_the_first_value_of_a_step_is_kept_in_whatever_order_steps_come(points):
    seen, expected = Seen(), {}
    for key, step, value in points:
        clamped = max(-(2**63 - 1), min(2**63 - 1, step))
        first = seen.first(key, step, value)
        assert repr(first) == repr(expected.get((key, clamped)))
        expected.setdefault((key, clamped), value)


def test_what_a_node_measures_contradicts_nothing(store, folder):
    path = spool(folder, 1, ("system/cpu", 5, 1.0), ("system/cpu", 5, 2.0))
    store.sync(experiment(run(spools=(path,))))
    assert history(store, "system/cpu") == [(5, 1.0)]
    assert "metrics_diverged" not in child(store).data.tags


def test_each_nodes_own_metrics_are_committed_by_themselves(store, folder):
    path = spool(folder, 1, ("loss", 0, 1.0))
    files = [path.with_name(f"system.{node}.jsonl") for node in ("n-0", "n.1")]
    for file in files:
        with SpoolWriter(file) as writer:
            writer.metrics({f"system/{file.name}/cpu": 1.0}, step=0, time_ms=1)
    tracked = experiment(run(spools=(path, *files)))
    assert store.sync(tracked).metrics_sent == 3
    assert store.sync(tracked) == Report()
    offsets = {key for key in child(store).data.tags if key.startswith("orch.offset.")}
    assert offsets == {f"orch.offset.a001{name}" for name in ("", ".system.n-0", ".system.n.1")}


# ---- params and tags


def test_a_very_long_param_is_cut_visibly_and_kept_whole(store):
    value = "".join(f"é{n} " for n in range(3_000))
    store.sync(experiment(run(params={"model": {"vocabulary": value}})))
    shown = child(store).data.params["model.vocabulary"]
    assert len(shown) == 6_000
    assert f"cut: {len(value)} characters" in shown
    assert artifact(store, "params/model.vocabulary.txt").read_text(encoding="utf-8") == value


def test_a_very_long_tag_or_note_is_cut_visibly_and_kept_whole(store):
    store.sync(experiment(run(tags={"point": "p" * 9_000})))
    assert "cut: 9000 characters" in child(store).data.tags["point"]
    assert artifact(store, "tags/point.txt").read_text() == "p" * 9_000


def test_params_are_flat_and_as_a_person_would_write_them(store):
    params = {
        "trainer": {"callbacks": [{"_target_": "X", "n": 3}], "devices": [0, 1], "logger": {}, "x": None},
        "odd key@": True,
        "text": "half \ud800 and \0",
    }
    store.sync(experiment(run(params=params)))
    assert child(store).data.params == {
        "trainer.callbacks.0._target_": "X",
        "trainer.callbacks.0.n": "3",
        "trainer.devices": "[0, 1]",
        "trainer.logger": "{}",
        "trainer.x": "None",
        "odd key:x40:": "True",
        "text": "half \\ud800 and \\x00",
    }


def test_many_params_are_logged_in_batches(store):
    store.sync(experiment(run(params={f"p{n}": n for n in range(450)})))
    assert len(child(store).data.params) == 450


def test_a_param_that_changed_keeps_its_first_value_and_is_named(store):
    store.sync(experiment(run(params={"a": 1, "b": 1, "c": 1})))
    store.sync(experiment(run(params={"a": 2, "b": 1, "c": 1})))
    store.sync(experiment(run(params={"a": 1, "b": 1, "c": 2})))
    assert child(store).data.params == {"a": "1", "b": "1", "c": "1"}
    assert child(store).data.tags["orch.params_changed"] == "a, c"


def test_what_the_run_logs_itself_cannot_overrule_its_record(store, folder):
    path = spool(folder, 1)
    with SpoolWriter(path) as writer:
        writer.params({"lr": 0.1, "seed": 5})
        writer.tags({"orch.run": "forged", "mlflow.user": "forged", "best": "yes"})
    tracked = experiment(run(params={"seed": 1}, spools=(path,)))
    store.sync(tracked)
    assert child(store).data.params == {"lr": "0.1", "seed": "1", "hparams.seed": "5"}
    assert child(store).data.tags["orch.run"] == "abc123"
    assert child(store).data.tags["mlflow.user"] == "ada"
    assert child(store).data.tags["best"] == "yes"
    before = content(store)
    store.sync(tracked)
    assert content(store) == before


# ---- artifacts


def test_a_log_is_logged_again_when_it_has_grown_and_only_then(store, folder):
    log = folder / "log\n'1'.txt"
    log.write_text("one")
    tracked = experiment(run(artifacts=(Artifact(path=log, folder="logs"),)))
    assert store.sync(tracked).artifacts_logged == 1
    assert store.sync(tracked).artifacts_logged == 0
    log.write_text("one two")
    assert store.sync(tracked).artifacts_logged == 1
    assert artifact(store, f"logs/{log.name}").read_text() == "one two"


def test_a_file_that_is_not_there_yet_is_told_and_logged_later(store, folder):
    log = folder / "log"
    tracked = experiment(run(artifacts=(Artifact(path=log),)))
    assert store.sync(tracked).artifacts_missing == 1
    log.write_text("late")
    assert store.sync(tracked).artifacts_logged == 1
    assert artifact(store, "log").read_text() == "late"


def test_a_checkpoint_is_linked_not_copied_and_replaced_as_a_whole(store, folder):
    checkpoint = folder / "best model.ckpt"
    checkpoint.write_bytes(b"weights")
    tracked = experiment(run(artifacts=(Artifact(path=checkpoint, folder="checkpoints"),)))
    store.sync(tracked)
    shown = artifact(store, "checkpoints/best model.ckpt")
    assert shown.samefile(checkpoint)
    (folder / "new").write_bytes(b"better weights")
    (folder / "new").replace(checkpoint)
    assert shown.read_bytes() == b"weights"
    store.sync(tracked)
    assert shown.read_bytes() == b"better weights"
    assert [path.name for path in shown.parent.iterdir()] == ["best model.ckpt"]


def test_a_directory_is_logged_whole_and_again_when_a_file_in_it_changes(store, folder):
    top = folder / "config"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "b.yaml").write_text("b: 1")
    tracked = experiment(run(artifacts=(Artifact(path=top, folder="job"),)))
    store.sync(tracked)
    assert artifact(store, "job/config/sub/b.yaml").read_text() == "b: 1"
    (top / "a.yaml").write_text("a: 1")
    assert store.sync(tracked).artifacts_logged == 1
    shown = store.client.download_artifacts(child(store).info.run_id, "job/config", str(folder))
    assert (Path(shown) / "a.yaml").read_text() == "a: 1"


def test_artifacts_of_the_run_itself_arrive_and_a_vanished_one_holds_up_nothing(store, folder):
    path = spool(folder, 1)
    (folder / "artifacts").mkdir()
    (folder / "artifacts" / "a.txt").write_text("hello")
    with SpoolWriter(path) as writer:
        writer.artifact(folder / "artifacts" / "a.txt", "texts")
        writer.artifact(folder / "artifacts" / "gone.txt")
        writer.artifact(folder.parent / "outside.txt", "texts")  # no run writes this: its files are copied
        writer.metrics({"loss": 1.0}, step=0)
    (folder.parent / "outside.txt").write_text("another's")
    report = store.sync(experiment(run(spools=(path,))))
    assert (report.artifacts_logged, report.artifacts_missing, report.metrics_sent) == (1, 1, 1)
    assert artifact(store, "texts/a.txt").read_text() == "hello"


@pytest.mark.parametrize("folder", ["../x", "/etc", "a/../../b"])
def test_an_artifact_cannot_leave_its_run(folder):
    with pytest.raises(RequestError, match="leaves the run"):
        Artifact(path=Path("x"), folder=folder)


def test_a_text_is_an_artifact_and_is_logged_again_when_it_changes(store):
    def tracked(text):
        return experiment(run(artifacts=(Artifact(path=Path("é.txt"), folder="launch", content=text),)))

    assert store.sync(tracked("one")).artifacts_logged == 1
    assert store.sync(tracked("one")) == Report()
    assert store.sync(tracked("two")).artifacts_logged == 1
    assert artifact(store, "launch/é.txt").read_text(encoding="utf-8") == "two"


def test_a_data_version_is_the_runs_input_once(store):
    data = Dataset(name="data/x", digest="d" * 64, source_type="dvc", source='{"rev": "v1"}', profile='{"files": 2}')
    for _ in range(2):
        store.sync(experiment(run(data=data)))
    (found,) = store.client.get_run(child(store).info.run_id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest, found.dataset.source_type) == ("data/x", "d" * 36, "dvc")
    assert (found.dataset.source, found.dataset.profile) == ('{"rev": "v1"}', '{"files": 2}')
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "training")]


def test_a_note_links_to_runs_of_its_experiment(store):
    tracked = experiment(run(), note="best: [lr=0.1](run:abc123), [gone](run:zzz)")
    store.sync(tracked)
    found = child(store).info
    link = f"#/experiments/{found.experiment_id}/runs/{found.run_id}"
    assert parent(store).data.tags["mlflow.note.content"] == f"best: [lr=0.1]({link}), [gone]()"
    assert store.sync(tracked) == Report()


def test_artifacts_may_lie_elsewhere_than_the_database_and_checkpoints_are_links_all_the_same(
    template, tmp_path, folder
):
    (tmp_path / "local disk").mkdir()
    shutil.copy(template, tmp_path / "local disk" / "mlflow.db")
    apart = MlflowStore.embedded(tmp_path / "local disk", tmp_path / "runs" / ".mlflow" / "host" / "artifacts")
    checkpoint = folder / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    apart.sync(experiment(run(artifacts=(Artifact(path=checkpoint, folder="checkpoints"),))))
    shown = artifact(apart, "checkpoints/best.ckpt")
    assert shown.samefile(checkpoint)
    assert shown.is_relative_to(tmp_path / "runs")


# ---- once, whatever interrupts it


DATA = Dataset(name="data/x", digest="d1", source_type="dvc", source="{}", profile="{}")


def full(folder):
    """An experiment that needs every kind of write."""
    checkpoint, log = folder / "last.ckpt", folder / "log"
    checkpoint.write_bytes(b"weights")
    log.write_text("log")
    spools = (
        spool(folder, 1, *(("loss", step, step / 7) for step in range(20))),
        spool(folder, 2, *(("loss", step, step / 7) for step in range(15, 30)), ("loss", 3, 0.0)),
    )
    (folder / "note.txt").write_text("note")
    with SpoolWriter(spools[1]) as writer:
        writer.params({"hidden": 3})
        writer.tags({"own": "tag"})
        writer.artifact(folder / "note.txt", "texts")
    artifacts = (Artifact(path=checkpoint, folder="checkpoints"), Artifact(path=log, folder="logs"))
    params = {"model": {"lr": 0.1}, "long": "x" * 7_000}
    given = {"params": params, "tags": {"long": "y" * 9_000}, "artifacts": artifacts, "ended_ms": 9_000}
    return [
        experiment(run(spools=spools[:1], history=9, state="queued", params=params)),
        experiment(run(spools=spools, state="done", data=DATA, **given), run(run_id="second", state="failed")),
    ]


def summary(store):
    """Return what a person sees, without MLflow's own ids and clocks."""

    def histories(r):
        found = (store.client.get_metric_history(r.info.run_id, key) for key in sorted(r.data.metrics))
        return [sorted((m.key, m.step, m.timestamp, m.value) for m in metrics) for metrics in found]

    def files(r, top=None):
        for entry in store.client.list_artifacts(r.info.run_id, top):
            yield from files(r, entry.path) if entry.is_dir else [entry.path]

    return sorted(
        (
            r.data.tags.get("orch.run", ""),
            r.info.status,
            r.info.run_name,
            r.data.params,
            {k: v for k, v in r.data.tags.items() if k != "mlflow.parentRunId"},
            histories(r),
            sorted(files(r)),
        )
        for r in everything(store)
    )


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_cut_off_at_any_write_the_next_sync_ends_the_same(template, tmp_path, folder, after):
    def fresh(name):
        (tmp_path / name).mkdir()
        shutil.copy(template, tmp_path / name / "mlflow.db")
        return MlflowStore.embedded(tmp_path / name)

    tracked = full(folder)
    whole = fresh("whole")
    for step in tracked:
        whole.sync(step)
    expected = summary(whole)
    assert [row[1] for row in expected] == ["FAILED", "FINISHED", "FAILED"]
    for n in range(1, 100):
        cut = fresh(f"cut{n}")
        client = CuttingClient(cut.client, n, after=after)
        try:
            for step in tracked:
                replace(cut, client=client).sync(step)
        except Cut:
            cut.sync(tracked[-1])
        else:
            break
        assert summary(cut) == expected, f"cut at write {n}"
    assert n > 12


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_cut_off_between_batches_no_point_is_lost_or_doubled(store, folder, after):
    path = spool(folder, 1, *(("loss", step, float(step)) for step in range(2_000)))
    tracked = experiment(run(spools=(path,)))
    store.sync(experiment(run()))
    with pytest.raises(Cut):
        replace(store, client=CuttingClient(store.client, 2, after=after)).sync(tracked)
    assert store.sync(tracked).metrics_sent == (200 if after else 1_100)
    assert history(store, "loss") == [(step, float(step)) for step in range(2_000)]


def test_the_next_sync_with_nothing_new_writes_nothing(store, folder):
    tracked = full(folder)
    for step in tracked:
        store.sync(step)
    before, modified = content(store), (store.folder / "mlflow.db").stat().st_mtime_ns
    files = sorted((path, path.stat().st_mtime_ns) for path in store.folder.rglob("*"))
    assert store.sync(tracked[-1]) == Report()
    assert MlflowStore.embedded(store.folder).sync(tracked[-1]) == Report()
    assert content(store) == before
    assert (store.folder / "mlflow.db").stat().st_mtime_ns == modified
    assert sorted((path, path.stat().st_mtime_ns) for path in store.folder.rglob("*")) == files


def test_the_number_of_calls_for_nothing_new_does_not_grow_with_the_runs(store):
    tracked = experiment(*(run(run_id=f"r{n}", state="done", ended_ms=5) for n in range(30)))
    store.sync(tracked)
    calls = []

    class Counting:
        def __getattr__(self, name):
            calls.append(name)
            return getattr(store.client, name)

    replace(store, client=Counting()).sync(tracked)
    assert calls == ["get_experiment_by_name", "search_runs"]


def test_two_children_of_one_run_become_one(store, folder):
    path = spool(folder, 1, ("loss", 0, 1.0))
    tracked = experiment(run(spools=(path,)))
    store.sync(tracked)
    first = child(store)
    store.client.create_run(first.info.experiment_id, start_time=99_999, tags=first.data.tags)
    store.sync(tracked)
    assert child(store).info.run_id == first.info.run_id


def test_a_child_that_a_person_deleted_stays_deleted_but_a_parent_comes_back(store):
    tracked = experiment(run(), run(run_id="def"))
    store.sync(tracked)
    gone = children(store)[0]
    store.client.delete_run(gone.info.run_id)
    store.client.delete_run(parent(store).info.run_id)
    assert store.sync(tracked) == Report(left_deleted=1)
    assert gone.info.run_id != child(store).info.run_id
    assert child(store).data.tags["mlflow.parentRunId"] == parent(store).info.run_id


def test_a_run_that_cannot_be_stored_does_not_hold_up_the_others(store, folder):
    bad = folder / "a001" / "metrics.jsonl"
    bad.mkdir(parents=True)
    with pytest.raises(TrackingError, match="1 of 2 runs"):
        store.sync(experiment(run(run_id="bad", spools=(bad,)), run(state="done", ended_ms=5)))
    found = {r.data.tags["orch.run"]: r.info.status for r in children(store)}
    assert found == {"bad": "RUNNING", "abc123": "FINISHED"}
    assert parent(store).info.status == "RUNNING"


def test_a_store_rebuilt_from_the_spools_holds_the_same(store, template, tmp_path, folder):
    tracked = full(folder)
    for step in tracked:
        store.sync(step)
    rebuilt = MlflowStore.embedded(tmp_path / "rebuilt")
    rebuilt.sync(tracked[-1])
    assert summary(rebuilt) == summary(store)


# ---- the store itself


def test_a_deleted_experiment_of_the_same_name_is_a_clear_error(store):
    store.sync(experiment(run()))
    store.client.delete_experiment(store.client.get_experiment_by_name("exp").experiment_id)
    with pytest.raises(TrackingError, match="'exp' is deleted") as error:
        store.sync(experiment(run()))
    assert "experiments restore --experiment-id" in error.value.fix


@pytest.mark.parametrize("tags", [{"orch.project": "there"}, {}])
def test_an_experiment_of_another_project_is_left_alone(store, tags):
    store.client.create_experiment("exp", tags=tags)
    with pytest.raises(TrackingError, match="belongs to another project"):
        store.sync(experiment(run()))


def test_a_store_that_was_moved_writes_nothing_into_its_old_place(store, tmp_path):
    store.sync(experiment(run()))
    shutil.copytree(store.folder, tmp_path / "copy")
    before = content(store)
    with pytest.raises(TrackingError, match="was moved"):
        MlflowStore.embedded(tmp_path / "copy").sync(experiment(run(state="done")))
    assert content(store) == before


def test_a_store_is_private(tmp_path):
    MlflowStore.embedded(tmp_path / "new" / "store")
    assert (tmp_path / "new" / "store").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("bytes_", [b"this is no database" * 100])
def test_a_file_that_is_no_database_is_a_clear_error_at_once(tmp_path, bytes_):
    (tmp_path / "mlflow.db").write_bytes(bytes_)
    with pytest.raises(TrackingError, match="not a database"):
        MlflowStore.embedded(tmp_path)


@pytest.mark.parametrize("name", ["what?", "50%20"])
def test_a_folder_that_no_database_address_can_name_is_refused(tmp_path, name):
    with pytest.raises(TrackingError, match="cannot keep a tracking store"):
        MlflowStore.embedded(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="cannot open the tracking store"):
        MlflowStore.embedded(tmp_path / "file")


def test_only_one_writer_at_a_time(store):
    with (store.folder / "lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(TrackingError, match="is busy"):
            replace(store, wait_seconds=0.0).sync(experiment(run()))
    assert store.sync(experiment(run())).created == 1


def test_a_first_use_by_several_processes_makes_one_store_quietly_and_reports_to_nobody(tmp_path):
    program = (
        "import sys, threading; from pathlib import Path\n"
        "from orchestrator.tracking.mlflow_store import MlflowStore\n"
        "from orchestrator.tracking import TrackedExperiment, TrackedRun\n"
        "given = dict(experiment='e', generation=1, history=1, name='', params={}, tags={}, state='done')\n"
        "run = TrackedRun(run_id=sys.argv[2], **given)\n"
        "MlflowStore.embedded(Path(sys.argv[1])).sync(TrackedExperiment(name='e', project='p', runs=[run]))\n"
        "print(*(thread.name for thread in threading.enumerate()))"
    )
    outside_tests = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST") and k != "CI"}
    argv = [sys.executable, "-c", program, str(tmp_path / "store")]
    started = [
        subprocess.Popen([*argv, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=outside_tests)
        for name in ("one", "two", "three")
    ]
    answers = [process.communicate() for process in started]
    assert answers == [(b"MainThread\n", b"")] * 3
    found = everything(MlflowStore.embedded(tmp_path / "store"), "e")
    assert sorted(r.data.tags.get("orch.run", "parent") for r in found) == ["one", "parent", "three", "two"]


# ---- names and values


@given(st.text() | st.text(alphabet=":xa0./_ 2f"))
def test_names_are_escaped_reversibly_into_what_mlflow_takes(name):
    import re
    from posixpath import normpath

    stored = encode(name)
    assert re.fullmatch(r"[/\w.\- :]+", stored)
    assert normpath(stored) == stored
    assert stored != "."
    assert not stored.startswith(("..", "/"))
    assert len(stored) <= 250
    assert cut_name(name) or decode(stored) == name


@pytest.mark.parametrize("name", ["train/loss", "val_acc", "lr-Adam", "a b", "a:b", "max_x25_y", "v1.0"])
def test_ordinary_names_stay_as_they_are(name):
    assert encode(name) == name


def test_names_that_begin_alike_and_are_cut_stay_apart():
    assert encode("x" * 400) != encode("x" * 401)


@given(st.text(min_size=300), st.integers(200, 290))
def test_a_value_that_is_cut_fits_and_says_so(value, limit):
    shown = shorten(value, limit, "whole.txt")
    assert len(shown) == limit
    assert shown.endswith("whole in artifact whole.txt]")


def test_nothing_to_flatten_is_nothing():
    assert flatten({}) == {}


# ---- the Lightning Logger


class Tiny(LightningModule):
    def __init__(self, width=1, act=torch.relu):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 1)

    def training_step(self, batch, index):
        loss = self.layer(batch[0]).square().mean()
        self.log("train/loss", loss)
        self.log_dict({"a": float(index), "odd@name": torch.tensor(math.nan)})
        return loss

    def validation_step(self, batch, index):
        self.log("val/loss", self.layer(batch[0]).square().mean())

    def on_train_end(self):
        self.logger.experiment.log_text("the end", "texts/end.txt")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def attempt(folder):
    (folder / "a001").mkdir()
    return folder / "a001"


@pytest.fixture
def writer(attempt):
    with SpoolWriter(attempt / "metrics.jsonl") as opened:
        yield opened


@pytest.fixture
def logger(writer, attempt):
    return SpoolLogger(writer, AttemptPaths(attempt))


def found(attempt, kind):
    return [record for record, _ in read(attempt / "metrics.jsonl") if isinstance(record, kind)]


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The `srun` command is available")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.")  # Lightning with torch 2.13
def test_what_a_training_logs_reaches_mlflow(store, folder, attempt, writer, logger):
    data = DataLoader(TensorDataset(torch.ones(6, 1)), batch_size=1)
    checkpoint = ModelCheckpoint(monitor="val/loss")
    trainer = Trainer(
        max_epochs=2,
        logger=logger,
        callbacks=[checkpoint],
        log_every_n_steps=1,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Tiny(), data, data)
    assert trainer.log_dir == str(attempt)
    assert Path(checkpoint.best_model_path).parent == attempt / "checkpoints"
    store.sync(experiment(run(spools=(writer.path,), params={}, state="done")))
    assert [step for step, _ in history(store, "train/loss")] == list(range(12))
    assert [step for step, _ in history(store, "val/loss")] == [5, 11]
    assert [value for _, value in history(store, "a")] == [0, 1, 2, 3, 4, 5] * 2
    assert len(history(store, "odd:x40:name")) == 12
    assert child(store).data.params["width"] == "1"
    assert child(store).data.params["act"].endswith("relu")
    assert artifact(store, "texts/end.txt").read_text() == "the end"


def test_the_writer_stays_open_for_what_comes_after_the_fit(attempt, logger):
    logger.log_metrics({"fit": 1.0}, step=3)
    logger.finalize("success")
    logger.log_metrics({"test": 1.0}, step=4)
    assert [record.step for record in found(attempt, Metrics)] == [3, 4]


def test_calls_without_a_step_do_not_hide_one_another(attempt, logger):
    for value in (1.0, 2.0):
        logger.log_metrics({"a": value})
    logger.log_metrics({"a": 3.0}, step=math.nan)
    logger.log_metrics({"a": 4.0}, step=7.0)
    assert [(record.step, record.values["a"]) for record in found(attempt, Metrics)] == [
        (0, 1.0),
        (1, 2.0),
        (2, 3.0),
        (7, 4.0),
    ]


def test_hyperparameters_of_any_kind_are_kept_as_stable_text(attempt, logger):
    logger.log_hyperparams(Namespace(net=object(), path=Path("x"), deep={"t": torch.tensor(1.5)}))
    logger.log_tags({"best": 1})
    (params,) = found(attempt, Params)
    assert params.values == {"net": "<object object>", "path": "x", "deep": {"t": "tensor(1.5000)"}}
    assert found(attempt, Tags) == [Tags(values={"best": "1"})]


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (4, 3), "white"),
        np.ones((3, 4)),
        np.full((3, 4, 3), 255, dtype=np.uint8),
        np.full((3, 4, 1), 2.0),
        torch.ones(3, 3, 4),
        torch.ones(1, 3, 4),
    ],
    ids=["pil", "grey", "bytes", "too bright", "tensor", "grey tensor"],
)
def test_images_are_saved_whatever_they_are(folder, attempt, logger, image):
    logger.experiment.log_image(image, "images/white.png")
    with Image.open(folder / "artifacts" / "images" / "white.png") as saved:
        assert saved.size == (4, 3)
        assert saved.convert("L").getextrema() == (255, 255)
    (line,) = found(attempt, ArtifactLine)
    assert line == ArtifactLine(path="../artifacts/images/white.png", folder="images")


def test_figures_and_files_are_saved_under_odd_names(folder, attempt, logger):
    figure = Figure()
    figure.add_subplot().plot([1, 2])
    logger.experiment.log_figure(figure, "a 'plot'\n.svg")
    source = folder / "é.bin"
    source.write_bytes(b"12")
    logger.experiment.log_artifact(source)
    assert "<svg" in (folder / "artifacts" / "a 'plot'\n.svg").read_text()
    assert (folder / "artifacts" / "é.bin").read_bytes() == b"12"
    assert [line.folder for line in found(attempt, ArtifactLine)] == ["", ""]
    assert sorted(path.name for path in (folder / "artifacts").iterdir()) == ["a 'plot'\n.svg", "é.bin"]


@pytest.mark.parametrize("path", ["../x", "/etc/x", "", ".", "a/../../x"])
def test_a_path_outside_the_artifacts_is_refused(folder, logger, path):
    with pytest.raises(RequestError, match="not a valid path of an artifact"):
        logger.experiment.log_text("x", path)
    assert not (folder / "artifacts").exists()


def test_a_disk_that_refuses_an_artifact_does_not_end_the_training(folder, attempt, logger, caplog):
    (folder / "artifacts").write_text("in the way")
    logger.experiment.log_text("x", "texts/a.txt")
    assert "texts/a.txt is not saved" in caplog.text
    assert not (attempt / "metrics.jsonl").exists()


def test_only_rank_0_writes(attempt, logger, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger.log_metrics({"a": 1.0}, step=0)
    logger.log_hyperparams({"a": 1.0})
    logger.experiment.log_text("x", "a.txt")
    logger.finalize("success")
    assert not (attempt / "metrics.jsonl").exists()
