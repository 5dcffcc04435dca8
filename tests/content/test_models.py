"""The models: shapes, what they log, and that they need nothing but a Trainer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional

from orchestrator.datasets.synthetic import SyntheticDataModule
from orchestrator.models.classifier import Classifier
from orchestrator.models.convnet import ConvNet
from orchestrator.models.mlp import MLP
from orchestrator.system.processes import run

ROOT = Path(__file__).resolve().parents[2]
MODELS = [MLP, ConvNet]

pytestmark = [
    # Lightning's advice for large data sets: right there, noise here.
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    # Lightning 2.6 asks torch 2.13 in a way that torch has deprecated.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),
]


def trainer(**options) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **quiet, **options)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch", [2, 5])
def test_images_become_one_logit_per_class(model: type[Classifier], batch: int):
    assert model()(torch.rand(batch, 1, 8, 8)).shape == (batch, 10)
    assert model(num_classes=3)(torch.rand(batch, 1, 8, 8)).shape == (batch, 3)


def test_the_mlp_takes_any_shape_with_its_number_of_features():
    model = MLP(in_features=12).eval()
    features = torch.rand(4, 12)
    assert torch.equal(model(features), model(features.reshape(4, 3, 2, 2)))


@pytest.mark.parametrize(("depth", "layers"), [(0, 1), (1, 2), (3, 4)])
def test_depth_counts_hidden_layers(depth: int, layers: int):
    model = MLP(depth=depth, width=16)
    sizes = [m.out_features for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert sizes == [16] * (layers - 1) + [10]


@pytest.mark.parametrize("size", [2, 8, 13])
def test_the_convnet_takes_images_of_any_size_and_any_channels(size: int):
    assert ConvNet(in_channels=3)(torch.rand(2, 3, size, size)).shape == (2, 10)


@pytest.mark.parametrize("model", MODELS)
def test_dropout_is_for_training_only(model: type[Classifier]):
    net = model(dropout=0.5)
    images = torch.rand(8, 1, 8, 8)
    assert not torch.equal(net.train()(images), net(images))
    assert torch.equal(net.eval()(images), net(images))


@pytest.mark.parametrize("model", MODELS)
def test_the_optimizer_takes_the_given_rate_and_decay(model: type[Classifier]):
    net = model(lr=0.02, weight_decay=0.3)
    (group,) = net.configure_optimizers().param_groups
    assert (group["lr"], group["weight_decay"]) == (0.02, 0.3)
    assert len(group["params"]) == len(list(net.parameters()))


@pytest.mark.parametrize("model", MODELS)
def test_a_bare_trainer_runs_every_stage(model: type[Classifier], tmp_path: Path):
    once = trainer(fast_dev_run=True, default_root_dir=tmp_path)
    net, data = model(), SyntheticDataModule(samples=64)
    once.fit(net, data)
    assert set(once.callback_metrics) == {"train/loss", "train/acc", "val/loss", "val/acc"}
    once.test(net, data, verbose=False)
    assert set(once.callback_metrics) == {"test/loss", "test/acc"}
    assert list(tmp_path.iterdir()) == []


def test_validation_metrics_are_means_over_all_samples_of_unequal_batches():
    data, net = SyntheticDataModule(samples=200, batch_size=32), MLP()  # 50 to validate: 32 + 18
    (logged,) = trainer().validate(net, data, verbose=False)
    inputs, labels = (torch.cat(parts) for parts in zip(*data.val_dataloader(), strict=True))
    with torch.no_grad():
        logits = net.eval()(inputs)
    assert logged["val/loss"] == pytest.approx(float(functional.cross_entropy(logits, labels)), rel=1e-5)
    assert logged["val/acc"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()), rel=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_the_same_seed_trains_the_same_weights(model: type[Classifier]):
    def weights() -> dict[str, torch.Tensor]:
        pl.seed_everything(7, verbose=False)
        net = model(dropout=0.2)
        trainer(max_steps=5, limit_val_batches=0).fit(net, SyntheticDataModule(samples=100))
        return net.state_dict()

    first, again = weights(), weights()
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(("model", "options"), [(MLP, {"depth": 1, "width": 8}), (ConvNet, {"width": 4})])
def test_a_checkpoint_knows_how_to_build_its_model(model: type[Classifier], options: dict, tmp_path: Path):
    path = tmp_path / "the model's last.ckpt"
    short = trainer(max_steps=1, limit_val_batches=0)
    net = model(lr=0.005, **options)
    short.fit(net, SyntheticDataModule(samples=32))
    short.save_checkpoint(path)
    loaded = model.load_from_checkpoint(path)
    assert dict(loaded.hparams) == dict(net.hparams)
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded.eval()(images), net.eval()(images))


TWO_PROCESSES = """
import json
import pytorch_lightning as pl
from orchestrator.datasets.synthetic import SyntheticDataModule
from orchestrator.models.mlp import MLP

pl.seed_everything(0, verbose=False)
trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", logger=False,
                     enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
(logged,) = trainer.validate(MLP(), SyntheticDataModule(samples=400), verbose=False)
print(json.dumps(logged))
"""


def test_two_processes_report_the_same_validation_as_one():
    pl.seed_everything(0, verbose=False)
    (alone,) = trainer().validate(MLP(), SyntheticDataModule(samples=400), verbose=False)
    printed = run([sys.executable, "-c", TWO_PROCESSES], env={"PYTHONPATH": str(ROOT)}).decode()
    together = json.loads(printed.splitlines()[-1])
    assert together == pytest.approx(alone, rel=1e-5)
