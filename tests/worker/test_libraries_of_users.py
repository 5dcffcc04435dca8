"""What users' modules do with MLflow's autologging and with sections of their configuration, in a fit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter, OrderedDict
from pathlib import Path

import mlflow
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel

from orchestrator.config.build import Section, build
from orchestrator.layout import AttemptPaths
from orchestrator.tracking import Metrics, Params, SpoolWriter, read
from orchestrator.tracking.fluent import fluent
from orchestrator.tracking.logger import SpoolLogger
from orchestrator.worker.fit.autolog import MetricsOnce


class Net(BoringModel):
    def __init__(self, cfg):
        super().__init__()
        self.save_hyperparameters()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)["loss"]
        self.log("loss", loss)
        self.log("smooth", loss, on_epoch=True)
        mlflow.log_metric("own", float(loss), step=self.global_step)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", super().validation_step(batch, batch_idx)["x"])

    def test_step(self, batch, batch_idx):
        self.log("test_loss", super().test_step(batch, batch_idx)["y"])


class Late(pl.Callback):
    def setup(self, trainer, pl_module, stage):
        mlflow.pytorch.autolog(log_models=False, checkpoint=False)


def fit(attempt: AttemptPaths) -> None:
    """Fit and test as a run does, with autologging from before the fit and again from a callback."""
    mlflow.autolog(log_models=False)
    mlflow.pytorch.autolog(log_models=False, checkpoint=False, log_every_n_step=1)
    with SpoolWriter(attempt.metrics) as writer:
        logger = SpoolLogger(writer, attempt)
        with fluent(logger.kept):
            trainer = pl.Trainer(
                max_epochs=2,
                limit_train_batches=2,
                limit_val_batches=1,
                limit_test_batches=1,
                log_every_n_steps=1,
                logger=logger,
                callbacks=[MetricsOnce(), Late()],
                enable_progress_bar=False,
                enable_checkpointing=False,
                enable_model_summary=False,
            )
            trainer.fit(model := Net(Section(size=3)))
            trainer.test(model, verbose=False)


def test_autologging_adds_parameters_and_logs_no_metric_twice(tmp_path):
    """In a process of its own: autologging stays in the import system of the process."""
    attempt = AttemptPaths(tmp_path / "exp" / "runs" / "0a1b2c" / "a001")
    attempt.path.mkdir(parents=True)
    nowhere = {"MLFLOW_TRACKING_URI": "http://server.invalid:5000", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    done = subprocess.run(
        [sys.executable, __file__, str(attempt.path)],
        env=os.environ | nowhere,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "server.invalid" not in done.stderr
    records = [record for record, _ in read(attempt.metrics)]
    logged = Counter((name, each.step) for each in records if isinstance(each, Metrics) for name in each.values)
    names = {name for name, _ in logged} - {"epoch"}
    assert names == {"loss", "smooth_step", "smooth_epoch", "val_loss", "test_loss", "own"}
    assert {logged[key] for key in logged if key[0] != "epoch"} == {1}
    assert [step for name, step in sorted(logged) if name == "loss"] == [0, 1, 2, 3]
    params = {key: value for each in records if isinstance(each, Params) for key, value in each.values.items()}
    assert params["optimizer_name"] == "SGD"
    assert [path.name for path in tmp_path.iterdir()] == ["exp"]


def test_a_checkpoint_holds_sections_as_plain_mappings(tmp_path):
    cfg = build({"_target_": f"{__name__}.Net", "cfg": {"optim": {"lr": 0.1}, "many": [{"x": 1}]}}).hparams.cfg
    assert cfg.optim.lr == 0.1
    trainer = pl.Trainer(logger=False, barebones=True)
    trainer.strategy.connect(Net(cfg))
    trainer.save_checkpoint(file := tmp_path / "a.ckpt")
    assert b"orchestrator" not in file.read_bytes()
    kept = torch.load(file, weights_only=True)["hyper_parameters"]["cfg"]
    assert (type(kept), type(kept["optim"]), kept) == (OrderedDict, OrderedDict, cfg)
    assert Net.load_from_checkpoint(file, weights_only=True).hparams.cfg["many"] == [{"x": 1}]


if __name__ == "__main__":
    fit(AttemptPaths(Path(sys.argv[1])))
