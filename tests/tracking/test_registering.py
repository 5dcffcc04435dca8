"""The best run of an experiment becomes a version of a registered model, once, and predicts as it did."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from processes import ROOT, orch_argv
from states import own_state

from orchestrator import api, clusters
from orchestrator.config.lightning_names import unite
from orchestrator.errors import TrackingError
from orchestrator.layout import RunsRoot
from orchestrator.project import Project
from orchestrator.records.experiment import read_experiment
from orchestrator.records.record import RunState
from orchestrator.tracking import stores
from orchestrator.tracking.mlflow_model import Registry
from orchestrator.tracking.registry.registering import register, wanted
from orchestrator.worker.fit.example import example

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # MLflow's, of its own formats
    pytest.mark.filterwarnings("ignore::UserWarning:mlflow"),
]

NET = """
import torch
import lightning as L

class Net(L.LightningModule):
    def __init__(self, lr=0.1):
        super().__init__()
        self.lr = lr
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, index):
        return self(batch[0]).square().mean()

    def validation_step(self, batch, index):
        self.log("val/loss", self(batch[0]).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def train_dataloader(self):
        x = torch.linspace(-1, 1, 48).reshape(16, 3)
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x[:, 0]), batch_size=8)

    val_dataloader = train_dataloader
"""
EXPERIMENT = """
# @package _global_
name: nets
model: {_target_: users_net.Net, lr: 0.1}
objective: {metric: val/loss, mode: min}
trainer: {max_epochs: 2}
tracking: {register: my net}
sweep: {grid: {model.lr: [0.001, 0.3]}}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, warm_parent: None) -> Iterator[Project]:
    """A project whose experiment has been run; its code has been lost since. It uses `lightning`."""
    unite()  # this process loads the registered model
    folder = tmp_path_factory.mktemp("a user's project")
    (folder / "conf" / "experiment").mkdir(parents=True)
    (folder / "conf" / "experiment" / "nets.yaml").write_text(EXPERIMENT)
    (folder / "users_net.py").write_text(NET)
    state = {"XDG_STATE_HOME": own_state(tmp_path_factory), "XDG_CACHE_HOME": str(folder / "cache")}
    argv = orch_argv("launch", "experiment=nets")
    env = {**os.environ, "PYTHONPATH": str(ROOT), **state}
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "users_net.py").unlink()
    yield Project(folder=folder, runs=RunsRoot(folder / "runs"))
    sys.modules.pop("users_net", None)


@pytest.fixture
def store(project: Project) -> Iterator[MlflowClient]:
    uri = f"sqlite:///{project.runs.mlflow / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    yield MlflowClient(uri, uri)
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)


def best_of(project: Project):
    records = read_experiment(project.runs.experiment("nets"), clusters.observers()).records.values()
    assert {record.state for record in records} == {RunState.DONE}
    return min(records, key=lambda record: record.best_value("val/loss"))


def test_the_launch_registers_the_best_run_once_with_its_example_and_its_own_code(project, store):
    (version,) = store.search_model_versions("name = 'my net'")
    best = best_of(project)
    assert (version.tags["orch.run"], version.status) == (best.id, "READY")
    assert store.get_run(version.run_id).data.tags["orch.run"] == best.id
    model = mlflow.pytorch.load_model(f"models:/my net/{version.version}")
    attempt = project.runs.experiment("nets").run(best.id).attempt(1)
    inputs = torch.load(attempt.example)
    assert inputs.shape == (4, 3)
    weights = torch.load(attempt.state / "best.ckpt", weights_only=False)["state_dict"]
    expected = torch.nn.functional.linear(inputs, weights["layer.weight"], weights["layer.bias"])
    assert torch.equal(model(inputs), expected)
    served = mlflow.pyfunc.load_model(f"models:/my net/{version.version}")
    assert np.array_equal(served.predict(served.input_example), expected.detach().numpy())
    assert [str(spec.type) for spec in served.metadata.signature.inputs] == ["float32"]
    needed = Path(mlflow.pyfunc.get_model_dependencies(f"models:/my net/{version.version}")).read_text().split()
    assert {one.partition("==")[0] for one in needed} >= {"torch", "lightning", "pytorch-lightning"}


def test_registering_again_does_nothing_and_one_that_was_interrupted_goes_on(project, store):
    (before,) = store.search_model_versions("name = 'my net'")
    assert stores.register(project, "nets") is None
    store.delete_model_version("my net", before.version)
    assert "is version" in stores.register(project, "nets")
    (after,) = store.search_model_versions("name = 'my net'")
    assert after.source == before.source, "what was logged whole is used again"
    assert len(store.search_logged_models([store.get_run(after.run_id).info.experiment_id])) == 1


def forget_models(store: MlflowClient) -> None:
    """Have a model logged again before it is registered: there is one experiment, MLflow's number 1."""
    for kept in store.search_logged_models(["1"]):
        store.delete_logged_model(kept.model_id)


def launch_again(project: Project, model: str) -> subprocess.CompletedProcess[str]:
    """Launch the experiment, of which nothing is left to do, with a name for its model."""
    (project.folder / "users_net.py").write_text(NET)
    argv = orch_argv("launch", "experiment=nets", f"tracking.register={model}")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, cwd=project.folder, env=env, capture_output=True, text=True, check=False)
    (project.folder / "users_net.py").unlink()
    assert "nothing to do" in done.stderr
    return done


def test_a_launch_that_finds_nothing_to_do_registers_what_is_asked_for_now(project, store):
    done = launch_again(project, "later")
    assert (done.returncode, "is version 1 of the registered model later" in done.stderr) == (0, True), done.stderr
    assert launch_again(project, "later").returncode == 0
    (version,) = store.search_model_versions("name='later'")
    (first,) = store.search_model_versions("name='my net'")
    assert version.tags == first.tags


def test_two_that_register_at_the_same_moment_leave_one_version(project, store):
    registration = wanted(api.read(project, "nets"))
    registry = Registry(store=stores.store_of(project, "nets"))
    child = registry.child(registration.experiment, registration.tags)
    first = registry.register(registration.name, child, registration.tags, lambda _: pytest.fail("it is logged"))
    assert (
        registry.register(registration.name, child, registration.tags, lambda _: pytest.fail("it is logged")) == first
    )
    assert len(store.search_model_versions("name = 'my net'")) == 1


def test_a_checkpoint_that_is_gone_is_a_clear_error_and_registers_nothing(project, store, tmp_path):
    registration = wanted(api.read(project, "nets"))
    lost = {**registration.job, "checkpoint": str(tmp_path / "gone.ckpt")}
    forget_models(store)

    with pytest.raises(TrackingError, match="cannot be registered") as error:
        register(replace(registration, name="another", job=lost), stores.store_of(project, "nets"))
    assert "gone.ckpt" in str(error.value.why)
    assert store.search_model_versions("name = 'another'") == []
    shutil.rmtree(tmp_path)


def test_a_launch_that_finds_nothing_to_do_and_cannot_register_fails(project, store):
    forget_models(store)
    best = best_of(project)
    checkpoint = project.runs.experiment("nets").run(best.id).path / best.last.best["checkpoint"]
    aside = checkpoint.rename(checkpoint.with_name("aside"))
    try:
        done = launch_again(project, "lost")
    finally:
        aside.rename(checkpoint)
    assert (done.returncode, "cannot be registered" in done.stderr) == (1, True), done.stderr
    assert launch_again(project, "lost").returncode == 0, "it is done by the next launch"


def test_nothing_is_wanted_before_all_runs_have_ended_or_without_a_name(project):
    state = api.read(project, "nets")

    run, record = next(iter(state.records.items()))
    running = replace(record, state=RunState.RUNNING)
    assert wanted(replace(state, records={**state.records, run: running})) is None
    header = replace(state.launches[-1].header, tracking={"kind": "embedded"})
    unnamed = replace(state.launches[-1], header=header)
    assert wanted(replace(state, launches=(unnamed,))) is None


@pytest.mark.parametrize(
    ("batch", "shape"),
    [
        ((torch.ones(9, 3), torch.ones(9)), (4, 3)),
        ([torch.ones(2, 1)], (2, 1)),
        (torch.ones(5, 2, 2), (4, 2, 2)),
        (torch.ones(9, 100_000), (2, 100_000)),
    ],
    ids=["pair", "list", "tensor", "large"],
)
def test_an_example_is_a_few_samples_of_the_input(batch, shape):
    found = example(batch)
    assert tuple(found.shape) == shape
    assert found.untyped_storage().nbytes() == found.numel() * found.element_size()


def test_an_example_of_named_tensors_keeps_the_names_and_what_is_no_input_is_refused():
    assert {name: tuple(part.shape) for name, part in example({"ids": torch.ones(9, 2), "text": "x"}).items()} == {
        "ids": (4, 2)
    }
    for batch in ("text", {}, [torch.tensor(1.0)], torch.ones(1, 10**6)):
        with pytest.raises(ValueError, match=r"tensor|MB"):
            example(batch)
