"""The engine's checkpoints: the last is the last, the best is what the record says, and users' own live beside them.

Each is a real fit of a small model, in this process.
"""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from orchestrator.errors import ConfigError, OrchError
from orchestrator.layout import AttemptPaths
from orchestrator.records.attempts import EventWriter
from orchestrator.records.checkpoints import latest, latest_of, saved_by, to_resume
from orchestrator.spec import CheckpointOptions, Objective, Resources
from orchestrator.tracking import Metrics, SpoolWriter, read
from orchestrator.tracking.logger import SpoolLogger
from orchestrator.tracking.registry import registrar
from orchestrator.worker.context import ProcessContext
from orchestrator.worker.fit.trainer import Training, train
from orchestrator.worker.signals import InterruptedByInfrastructureError, StopSignal

BEST_BY_LOSS = {"_target_": "pytorch_lightning.callbacks.ModelCheckpoint", "monitor": "val/loss", "mode": "min"}
PEAK = [0.1, 0.9, 0.3, 0.2, 0.1]


def table(rows: int, seed: int = 1) -> TensorDataset:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x.sum(1, keepdim=True))


class Net(pl.LightningModule):
    """A regression; `scores` are logged in validation, `late` at the end of the training epoch, one an epoch."""

    def __init__(self, scores: list[float] | None = None, late: list[float] | None = None, lr: float = 0.05) -> None:
        super().__init__()
        self.scores, self.late, self.lr = scores, late, lr
        self.net = nn.Linear(4, 1)

    def loss(self, batch: Any) -> Any:
        return (self.net(batch[0]) - batch[1]).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.loss(batch))
        if self.scores:
            self.log("val/score", self.scores[self.current_epoch])

    def on_train_epoch_end(self) -> None:
        if self.late:
            self.log("late", self.late[self.current_epoch])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self.loss(batch))
        self.log("test/weight", self.net.weight.sum())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def train_dataloader(self) -> Any:
        return DataLoader(table(32), 8)

    def val_dataloader(self) -> Any:
        return DataLoader(table(16, 2), 8)

    def test_dataloader(self) -> Any:
        return DataLoader(table(16, 3), 8)


class TrainOnly(Net):
    val_dataloader = None
    validation_step = None


class OwnCheckpoint(Net):
    def configure_callbacks(self) -> Any:
        return [pl.callbacks.ModelCheckpoint(monitor="val/loss", filename="mine-{epoch}")]


class Late(Net):
    """Makes its layers in `configure_model`, as is advised for large models, or in `setup`."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.net = None

    def make(self) -> None:
        if self.net is None:
            self.net = nn.Linear(4, 1)

    def configure_model(self) -> None:
        if self.where == "configure_model":
            self.make()

    def setup(self, stage: str) -> None:
        if self.where == "setup":
            self.make()


class Sized(Net):
    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.batch_size = 1

    def train_dataloader(self) -> Any:
        return DataLoader(table(64), self.batch_size)


class Adapter(Net):
    """Keeps a part of it out of its checkpoints, and says so."""

    def __init__(self) -> None:
        super().__init__()
        self.strict_loading = False
        self.frozen = nn.Linear(4, 4)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if "frozen" not in name}


class Renamed(Net):
    """Keeps its weights under other names, and gives them back in its hook."""

    def on_save_checkpoint(self, checkpoint: Any) -> None:
        checkpoint["state_dict"] = {f"old.{name}": value for name, value in checkpoint["state_dict"].items()}

    def on_load_checkpoint(self, checkpoint: Any) -> None:
        checkpoint["state_dict"] = {name.removeprefix("old."): v for name, v in checkpoint["state_dict"].items()}


class StopsAt(pl.Callback):
    """Sends this process a signal at a training batch."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.epoch, self.batch = epoch, batch

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            signal.raise_signal(signal.SIGTERM)


class StopsInValidation(pl.Callback):
    """Sends this process a signal in an epoch's validation."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if (trainer.current_epoch, args[2]) == (self.epoch, 0) and not trainer.sanity_checking:
            signal.raise_signal(signal.SIGTERM)


def read_events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Lab:
    """Attempts of one run, one after another, in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.attempts = folder, []

    def fit(self, model: str | type, *, task: str = "fit", metric: str = "", mode: str = "max", **changes: Any) -> Any:
        """Start the next attempt; returns the data of its done event, or the signal that ended it."""
        attempt = AttemptPaths(self.folder / f"a{len(self.attempts) + 1:03d}")
        attempt.path.mkdir(parents=True)
        arguments = changes.pop("net", {})
        weights, options = changes.pop("weights", None), changes.pop("checkpoint", CheckpointOptions())
        callbacks, data = changes.pop("callbacks", {}), changes.pop("data", {})
        trainer = {
            "_target_": "pytorch_lightning.Trainer",
            "max_epochs": 5,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": callbacks,
            **changes,
        }
        name = model if isinstance(model, str) else f"{__name__}.{model.__name__}"
        node = {"_target_": name, **arguments}
        training = Training(
            config={"model": node, "data": data, "seed": 0, "task": task, "trainer": trainer},
            resources=Resources(),
            objective=Objective(metric=metric, mode=mode) if metric else None,
            folder=attempt.path,
            artifacts=self.folder / "artifacts",
            context=ProcessContext(),
            resume_from=to_resume(self.attempts),
            weights_from=weights,
            checkpoint=options,
        )
        self.attempts.append(attempt)
        stop = StopSignal()
        stop.install()
        with SpoolWriter(attempt.metrics) as spool:
            events = EventWriter(attempt.events)
            try:
                return train(training, logger=SpoolLogger(spool, attempt), events=events, stop=stop)
            except InterruptedByInfrastructureError as error:
                return str(error)

    def best(self, done: Any) -> dict[str, Any]:
        return torch.load(self.folder / done["best"]["checkpoint"], weights_only=False)

    def last(self, attempt: int = -1) -> dict[str, Any]:
        found = latest_of(self.attempts[attempt])
        assert found
        return torch.load(found, weights_only=False)


@pytest.fixture(autouse=True)
def _own_handlers():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGCONT)
    former = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "it's a run")


def place_of(done: Any) -> tuple[float, int, int]:
    return round(done["best"]["value"], 6), done["best"]["epoch"], done["best"]["step"]


# --- the last and the best ----------------------------------------------------------------------------------


def test_the_last_is_the_last_though_the_best_was_long_before(lab):
    done = lab.fit(Net, metric="val/score", net={"scores": PEAK})
    assert place_of(done) == (0.9, 1, 8)
    assert (lab.last()["epoch"], lab.last()["global_step"]) == (4, 20)
    assert (lab.best(done)["epoch"], lab.best(done)["global_step"]) == (1, 8)
    names = sorted(path.name for path in lab.attempts[0].state.iterdir())
    assert names == ["best.ckpt", "latest.json", "step-20.ckpt", "step-8.ckpt"]
    assert (lab.attempts[0].state / "best.ckpt").samefile(lab.folder / done["best"]["checkpoint"])
    assert [path.name for path in saved_by(lab.attempts[0])] == ["step-20.ckpt", "step-8.ckpt"]


def test_epochs_without_a_validation_are_saved_too_and_an_old_value_is_not_observed_again(lab):
    done = lab.fit(Net, metric="val/score", net={"scores": PEAK}, check_val_every_n_epoch=2, max_epochs=3)
    assert place_of(done) == (0.9, 1, 8)
    assert lab.last()["global_step"] == 12


@pytest.mark.parametrize("task", ["fit", "fit_test"])
def test_a_metric_of_the_training_epochs_end_is_best_where_it_was_logged(lab, task):
    done = lab.fit(Net, task=task, metric="late", mode="min", net={"late": [0.9, 0.1, 0.5]}, max_epochs=3)
    assert place_of(done) == (0.1, 1, 8)
    assert lab.best(done)["global_step"] == 8
    if task == "fit_test":
        weight = lab.best(done)["state_dict"]["net.weight"].sum()
        assert done["metrics"]["test/weight"] == pytest.approx(float(weight))


def test_without_a_validation_the_best_is_that_of_the_training_metric(lab):
    done = lab.fit(TrainOnly, metric="train/loss", mode="min", max_epochs=3)
    assert done["best"]["step"] == lab.best(done)["global_step"] == 12
    assert done["best"]["value"] == pytest.approx(done["metrics"]["train/loss"])


def test_validations_within_an_epoch_are_observed_each(lab):
    done = lab.fit(Net, metric="val/loss", mode="min", max_epochs=1, val_check_interval=2)
    assert done["best"]["step"] == lab.best(done)["global_step"]
    assert done["best"]["value"] == pytest.approx(done["metrics"]["val/loss"])
    assert lab.last()["global_step"] == 4


def test_what_is_not_a_number_is_never_the_best(lab):
    done = lab.fit(Net, metric="val/score", net={"scores": [math.nan, 0.5, math.inf]}, max_epochs=3)
    assert place_of(done) == (0.5, 1, 8)


def test_without_an_objective_there_is_no_best(lab):
    done = lab.fit(Net, max_epochs=2)
    assert done["best"] == {}
    assert [path.name for path in saved_by(lab.attempts[0])] == ["step-4.ckpt", "step-8.ckpt"]


# --- beside the user's own ----------------------------------------------------------------------------------


def test_a_file_of_the_users_called_best_is_not_the_engines(lab):
    callbacks = {"mine": {**BEST_BY_LOSS, "filename": "best"}}
    done = lab.fit(Net, task="fit_test", metric="val/score", net={"scores": PEAK}, callbacks=callbacks, max_epochs=4)
    assert lab.best(done)["global_step"] == 8
    assert done["metrics"]["test/weight"] == pytest.approx(float(lab.best(done)["state_dict"]["net.weight"].sum()))
    users = torch.load(lab.attempts[0].checkpoints / "best.ckpt", weights_only=False)
    assert users["global_step"] == 16


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # Lightning's word on the user's callback
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
def test_the_users_last_weights_are_not_resumed_from(lab):
    mine = {"_target_": BEST_BY_LOSS["_target_"], "save_weights_only": True, "save_last": True}
    callbacks = {"mine": {**mine, "every_n_train_steps": 1}, "stop": {"_target_": f"{__name__}.StopsAt"}}
    callbacks["stop"] |= {"epoch": 2, "batch": 1}
    assert lab.fit(Net, metric="val/score", net={"scores": PEAK}, callbacks=callbacks) == "SIGTERM"
    assert (lab.attempts[0].checkpoints / "last.ckpt").exists()
    callbacks.pop("stop")
    done = lab.fit(Net, metric="val/score", net={"scores": PEAK}, callbacks=callbacks)
    assert place_of(done) == (0.9, 1, 8)
    assert done["best"]["checkpoint"] == "a001/state/step-8.ckpt"
    assert lab.last()["global_step"] == 20


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_callback_on_the_same_metric_is_no_conflict(lab, mode):
    same = {**BEST_BY_LOSS, "monitor": "val/score", "mode": mode, "save_last": True}
    callbacks = {"model_checkpoint": {**same, "filename": "epoch_{epoch:03d}", "auto_insert_metric_name": False}}
    done = lab.fit(Net, metric="val/score", mode=mode, net={"scores": PEAK}, callbacks=callbacks, max_epochs=3)
    assert lab.best(done)["epoch"] == (1 if mode == "max" else 0)
    assert (lab.attempts[0].checkpoints / f"epoch_00{1 if mode == 'max' else 0}.ckpt").exists()


def test_checkpoints_that_a_model_configures_do_not_take_the_place_of_the_engines(lab):
    done = lab.fit(OwnCheckpoint, task="fit_test", metric="val/score", net={"scores": PEAK}, max_epochs=3)
    assert place_of(done) == (0.9, 1, 8)
    assert done["metrics"]["test/weight"] == pytest.approx(float(lab.best(done)["state_dict"]["net.weight"].sum()))
    assert list(lab.attempts[0].checkpoints.glob("mine-*.ckpt"))


def test_weights_that_are_averaged_at_the_end_are_in_the_last_checkpoint(lab):
    swa = {"_target_": "pytorch_lightning.callbacks.StochasticWeightAveraging", "swa_lrs": 0.01, "swa_epoch_start": 2}
    plain = Lab(lab.folder.with_name("plain"))
    lab.fit(Net, metric="val/loss", mode="min", callbacks={"swa": swa})
    plain.fit(Net, metric="val/loss", mode="min")
    paths = sorted(path.name for path in lab.attempts[0].state.glob("step-20*.ckpt"))
    assert paths == ["step-20-1.ckpt", "step-20.ckpt"]  # the best is of the weights that were validated
    weights = [
        torch.load(lab.attempts[0].state / path, weights_only=False)["state_dict"]["net.weight"] for path in paths
    ]
    assert not torch.equal(*weights)
    assert torch.equal(lab.last()["state_dict"]["net.weight"], weights[0])


EMA = {"_target_": "pytorch_lightning.callbacks.EMAWeightAveraging", "decay": 0.9}


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_stop_within_a_validation_saves_the_weights_and_not_what_stands_in_for_them(lab, epoch):
    """Averages take the weights' place until the validation ends."""
    undisturbed = Lab(lab.folder.with_name("undisturbed"))
    expected = undisturbed.fit(Net, metric="val/loss", mode="min", callbacks={"ema": EMA})
    stops = {"_target_": f"{__name__}.StopsInValidation", "epoch": epoch}
    assert lab.fit(Net, metric="val/loss", mode="min", callbacks={"ema": EMA, "stops": stops}) == "SIGTERM"
    done = lab.fit(Net, metric="val/loss", mode="min", callbacks={"ema": EMA})
    assert done["metrics"] == pytest.approx(expected["metrics"])
    for key in ("current_model_state", "state_dict"):
        assert torch.equal(lab.last()[key]["net.weight"], undisturbed.last()[key]["net.weight"])


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
def test_what_finders_have_found_holds_after_a_stop(lab, caplog):
    finders = {
        "batch": {"_target_": "pytorch_lightning.callbacks.BatchSizeFinder", "max_trials": 3, "steps_per_trial": 2},
        "lr": {"_target_": "pytorch_lightning.callbacks.LearningRateFinder", "num_training_steps": 20},
    }
    undisturbed = Lab(lab.folder.with_name("undisturbed"))
    expected = undisturbed.fit(Sized, callbacks=finders)
    stops = {"_target_": f"{__name__}.StopsInValidation", "epoch": 1}
    assert lab.fit(Sized, callbacks={**finders, "stops": stops}) == "SIGTERM"
    caplog.clear()
    done = lab.fit(Sized, callbacks=finders)
    assert "batch size" not in caplog.text
    assert done["metrics"] == pytest.approx(expected["metrics"])
    found = undisturbed.last()["orch_found"]
    assert found == lab.last()["orch_found"]
    assert found["batch_size"] == 8
    assert lab.last()["optimizer_states"][0]["param_groups"][0]["lr"] == found["lr"] != 0.05
    assert lab.last()["global_step"] == 5 * 64 // 8


# --- exactness ------------------------------------------------------------------------------------------------


class Keeps(pl.Callback):
    """Saves the weights by itself, in the midst of an epoch, and not for the run to resume from."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "mine.ckpt")


def test_only_what_is_saved_at_a_seam_holds_what_a_run_resumes_exactly_from(lab):
    lab.fit(Net, max_epochs=1, callbacks={"keeps": {"_target_": f"{__name__}.Keeps"}})
    assert set(lab.last()["orch_exact"]) == {"version", "moment", "ranks"}
    [exact] = [event for event in read_events(lab.attempts[0].events) if event["kind"] == "exact"]
    assert exact["inexact"] == []
    assert "orch_exact" not in torch.load(lab.attempts[0].path / "mine.ckpt", weights_only=False)
    torch.load(latest_of(lab.attempts[0]), weights_only=True)  # by those who do not trust it, too
    [event] = [event for event in read_events(lab.attempts[0].events) if event["kind"] == "training"]
    assert (event["resumed"], event["exactness"]) == (False, 1)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.parametrize("stop", [{"_target_": "StopsAt", "epoch": 2, "batch": 1}, {"_target_": "StopsInValidation"}])
def test_with_a_lightning_that_is_not_known_a_run_is_resumed_as_lightning_can(lab, monkeypatch, stop):
    monkeypatch.setattr("orchestrator.launch.exactness.TESTED", ())
    stops = {"epoch": 2, **stop, "_target_": f"{__name__}.{stop['_target_']}"}
    assert lab.fit(Net, metric="val/score", net={"scores": PEAK}, callbacks={"stops": stops}) == "SIGTERM"
    done = lab.fit(Net, metric="val/score", net={"scores": PEAK})
    assert place_of(done) == (0.9, 1, 8)
    assert lab.last()["global_step"] == 20
    assert "orch_exact" not in lab.last()
    [event] = [event for event in read_events(lab.attempts[1].events) if event["kind"] == "training"]
    assert (event["resumed"], event["exactness"]) == (True, 0)


class Shuffled(Net):
    """Data whose order is drawn anew by each process, as by `os.listdir` or a set of texts."""

    order: ClassVar[list[int]] = [0, 1]

    def train_dataloader(self) -> Any:
        halves = table(64).tensors[0].chunk(2)
        x = torch.cat([halves[number] for number in self.order])
        return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), 8, shuffle=True)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
@pytest.mark.parametrize("exact", ["warn", "refuse", "off"])
def test_other_data_than_before_is_noticed(lab, monkeypatch, exact):
    stops = {"_target_": f"{__name__}.StopsAt", "epoch": 1, "batch": 1}
    assert lab.fit(Shuffled, max_epochs=3, callbacks={"stops": stops}) == "SIGTERM"
    monkeypatch.setattr(Shuffled, "order", [1, 0])
    options = CheckpointOptions(exact=exact)
    if exact == "refuse":
        with pytest.raises(OrchError, match="cannot resume") as refused:
            lab.fit(Shuffled, max_epochs=3, checkpoint=options)
        assert "gives other data than before" in refused.value.why
        return
    lab.fit(Shuffled, max_epochs=3, checkpoint=options)
    found = [event["inexact"] for event in read_events(lab.attempts[1].events) if event["kind"] == "exact"]
    assert ("other data" in str(found)) == (exact == "warn"), found


def test_a_loader_with_a_state_of_its_own_is_named(lab):
    lab.fit(Listed, max_epochs=1)
    [event] = [event for event in read_events(lab.attempts[0].events) if event["kind"] == "exact"]
    assert event["inexact"] == ["training loader 0 (Batches) is read again, and has to give the same"]


class Batches:
    def __iter__(self) -> Any:
        return iter(DataLoader(table(32), 8))

    def __len__(self) -> int:
        return 4


class Listed(Net):
    def train_dataloader(self) -> Any:
        return Batches()


# --- callbacks as templates write them ----------------------------------------------------------------------


def test_a_progress_bar_among_the_callbacks_shows_and_one_that_is_null_is_left_out(lab, capfd):
    lightning = "lightning.pytorch.callbacks"
    callbacks = {
        "model_checkpoint": {
            "_target_": f"{lightning}.ModelCheckpoint",
            "dirpath": None,
            "filename": "epoch_{epoch:03d}",
        },
        "early_stopping": None,
        "model_summary": {"_target_": f"{lightning}.ModelSummary", "max_depth": -1},
        "progress_bar": {"_target_": f"{lightning}.TQDMProgressBar", "refresh_rate": 2},
    }
    lab.fit(Net, callbacks=callbacks, max_epochs=1, enable_progress_bar=False)
    assert "Epoch 0: 100%" in capfd.readouterr().out
    assert lab.last()["epoch"] == 0


# --- Lightning by its other name ----------------------------------------------------------------------------

CLASSIFIER = """
import {pytorch} as L
import torch
from torch import nn

class Classifier(L.LightningModule):
    def __init__(self, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Linear(4, 2)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
"""


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
def test_modules_and_trainers_of_either_distribution_mix_and_resume_each_other(lab, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, pytorch in (("written_for_one", "pytorch_lightning"), ("written_for_the_other", "lightning")):
        (tmp_path / f"{name}.py").write_text(CLASSIFIER.format(pytorch=pytorch))
    synthetic = "orchestrator.datasets.synthetic.SyntheticDataModule"
    data = {"_target_": synthetic, "samples": 32, "shape": [4], "num_classes": 2, "batch_size": 8}
    stop = {"_target_": f"{__name__}.StopsInValidation", "epoch": 1}
    early = {"monitor": "val/loss", "patience": 9}
    shared = {"data": data, "metric": "val/loss", "mode": "min"}
    callbacks = {"stop": stop, "early": {"_target_": "pytorch_lightning.callbacks.EarlyStopping", **early}}
    assert lab.fit("written_for_one.Classifier", callbacks=callbacks, **shared) == "SIGTERM"
    callbacks = {"early": {"_target_": "lightning.pytorch.callbacks.EarlyStopping", **early}}
    trainer = {"_target_": "lightning.Trainer", "max_epochs": 3}
    done = lab.fit("written_for_the_other.Classifier", callbacks=callbacks, **shared, **trainer)
    first, last = lab.last(0), lab.last()
    assert (first["epoch"], last["epoch"], last["global_step"]) == (1, 2, 12)
    assert first["callbacks"].keys() == last["callbacks"].keys()
    assert done["best"]["metric"] == "val/loss"


# --- what is read -------------------------------------------------------------------------------------------


DAMAGED = ("", "{", "[]", '{"file": 3}', '{"file": "../../../step-9.ckpt"}', '{"file": "best.ckpt"}', '{"file": "."}')


@pytest.mark.parametrize("pointer", [None, *DAMAGED, '{"file": "step-5.ckpt"}'])
def test_a_run_resumes_from_its_newest_checkpoint_where_none_is_named_that_is_there(pointer, tmp_path):
    """As after damage, or on a node that still sees the pointer of a moment ago, whose file was removed since."""
    attempt = AttemptPaths(tmp_path / "x" / "y" / "a001")
    attempt.state.mkdir(parents=True)
    if pointer is not None:
        attempt.latest.write_text(pointer)
    (tmp_path / "step-9.ckpt").touch()
    assert latest_of(attempt) is None
    for name in ("best.ckpt", "step-6.ckpt", "step-10.ckpt", "step-10-1.ckpt", "step-11.ckpt.tmp", ".step-12.ckpt"):
        (attempt.state / name).touch()
    assert latest_of(attempt) == latest([attempt]) == attempt.state / "step-10-1.ckpt"
    attempt.latest.write_text('{"file": "step-6.ckpt"}')
    assert latest_of(attempt) == attempt.state / "step-6.ckpt"


def test_attempts_of_version_0_1_are_read_but_not_a_users_last_in_newer_ones(tmp_path):
    old, new = AttemptPaths(tmp_path / "a001"), AttemptPaths(tmp_path / "a002")
    for attempt in (old, new):
        attempt.checkpoints.mkdir(parents=True)
        (attempt.checkpoints / "last.ckpt").touch()
    new.state.mkdir()
    assert latest([old, new]) == old.checkpoints / "last.ckpt"


# --- init_from ----------------------------------------------------------------------------------------------


def trained(lab: Lab, model: type, **arguments: Any) -> tuple[Path, float]:
    """Return the last checkpoint of a trained model, and its loss on the test data."""
    lab.fit(model, net=arguments)
    found = latest_of(lab.attempts[-1])
    assert found
    module = model(**arguments)
    for hook in (module.configure_model, lambda: module.setup("test")):
        hook()
    saved = torch.load(found, weights_only=False)
    module.on_load_checkpoint(saved)
    module.load_state_dict(saved["state_dict"], strict=False)
    return found, loss_of(module)


def loss_of(module: Net) -> float:
    with torch.no_grad():
        return float(torch.stack([module.loss(batch) for batch in module.test_dataloader()]).mean())


@pytest.mark.parametrize(
    ("model", "arguments"),
    [(Net, {}), (Late, {"where": "configure_model"}), (Late, {"where": "setup"}), (Renamed, {}), (Adapter, {})],
    ids=["plain", "configure_model", "setup", "renamed", "adapter"],
)
def test_weights_are_loaded_as_lightning_loads_them_by_a_run_and_for_the_registry(lab, model, arguments):
    path, loss = trained(lab, model, **arguments)
    again = Lab(lab.folder.with_name("again"))
    done = again.fit(model, task="test", net=arguments, weights=path)
    assert done["metrics"]["test/loss"] == pytest.approx(loss, rel=1e-5)
    registered = registrar._loaded({"_target_": f"{__name__}.{model.__name__}", **arguments}, str(path))
    assert loss_of(registered) == pytest.approx(loss, rel=1e-5)
    tuned = Lab(lab.folder.with_name("tuned"))
    done = tuned.fit(model, task="fit_test", net=arguments, weights=path, max_epochs=1, limit_train_batches=1)
    assert done["metrics"]["test/loss"] == pytest.approx(loss, rel=0.5)  # and not that of random weights: above 1


def test_the_test_after_a_fit_has_the_trained_weights_and_not_the_initial_ones_again(lab):
    path, _ = trained(lab, Net)
    tuned = Lab(lab.folder.with_name("tuned"))
    done = tuned.fit(Net, task="fit_test", weights=path, max_epochs=2)
    weight = float(tuned.last()["state_dict"]["net.weight"].sum())
    assert weight != float(torch.load(path, weights_only=False)["state_dict"]["net.weight"].sum())
    assert done["metrics"]["test/weight"] == pytest.approx(weight, abs=1e-6)


def test_weights_that_do_not_fit_are_refused(lab):
    path, _ = trained(lab, Net)
    saved = torch.load(path, weights_only=False)
    torch.save({"state_dict": {f"other.{k}": v for k, v in saved["state_dict"].items()}}, lab.folder / "other.ckpt")
    for model in (Net, Adapter):
        with pytest.raises(OrchError, match=r"do not fit|no weight of the model"):
            Lab(lab.folder.with_name(model.__name__)).fit(model, task="test", weights=lab.folder / "other.ckpt")


# --- what else is built for a fit -----------------------------------------------------------------------------


class OwnLogger(pl.loggers.Logger):
    """A logger that takes no folder, and counts what it is given."""

    name, version = "own", "0"
    given: ClassVar[list[str]] = []

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.given.extend(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


def test_loggers_of_the_users_own_stand_beside_the_runs(lab, tmp_path):
    csv = {"_target_": "pytorch_lightning.loggers.CSVLogger"}
    elsewhere = {**csv, "save_dir": str(tmp_path / "elsewhere"), "name": "n", "version": "v"}
    own = {"_target_": f"{__name__}.OwnLogger"}
    mine = {"_target_": "pytorch_lightning.callbacks.ModelCheckpoint", "filename": "mine"}
    loggers = {"csv": csv, "elsewhere": elsewhere, "own": own, "off": None}
    OwnLogger.given.clear()
    lab.fit(Net, metric="val/score", net={"scores": PEAK}, max_epochs=2, logger=loggers, callbacks={"mine": mine})
    attempt = lab.attempts[-1]
    (table,) = attempt.logger("csv").rglob("metrics.csv")
    assert "val/score" in table.read_text().splitlines()[0]
    assert "val/score" in (tmp_path / "elsewhere" / "n" / "v" / "metrics.csv").read_text()
    assert "val/score" in OwnLogger.given
    assert {name for record, _ in read(attempt.metrics) if isinstance(record, Metrics) for name in record.values} >= {
        "val/score",
        "best/val/score",
    }
    assert [path.name for path in attempt.path.glob("loggers/*")] == ["csv"]
    assert [path.name for path in attempt.checkpoints.iterdir()] == ["mine.ckpt"]


def bare() -> nn.Module:
    return nn.Linear(2, 2)


def test_a_function_that_returns_no_lightning_module_is_named(lab):
    with pytest.raises(ConfigError, match=r"\.bare returned torch\.nn\.modules\.linear\.Linear") as refused:
        lab.fit(f"{__name__}.bare")
    assert "LightningModule" in refused.value.fix
