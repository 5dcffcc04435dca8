"""Lightning's private names that exact resumption needs, held against the installed version."""

from __future__ import annotations

import dataclasses
import inspect
import re
from importlib import metadata
from pathlib import Path

import pytest
import pytorch_lightning as pl
from pytorch_lightning.loops.evaluation_loop import _EvaluationLoop as EvaluationLoop
from pytorch_lightning.loops.fetchers import _DataFetcher as DataFetcher
from pytorch_lightning.loops.fetchers import _PrefetchDataFetcher as PrefetchDataFetcher
from pytorch_lightning.loops.fit_loop import _FitLoop as FitLoop
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop as TrainingEpochLoop
from pytorch_lightning.strategies import Strategy
from pytorch_lightning.trainer.connectors.logger_connector.result import _Metadata as Metadata
from pytorch_lightning.trainer.connectors.logger_connector.result import _ResultMetric as ResultMetric
from pytorch_lightning.trainer.connectors.logger_connector.result import _Sync as Sync

from orchestrator.launch.exactness import version_obstacle
from orchestrator.worker.fit.exact import lightning

VERSION = metadata.version("pytorch-lightning")


@pytest.fixture(scope="module")
def trainer():
    return pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", devices=1)


def test_the_installed_version_is_a_tested_one_and_an_unknown_one_is_named():
    assert not version_obstacle(VERSION)
    for unknown in ("2.99.0", "3.0.0rc1", "2.5.6"):
        assert f"not resumed exactly with Lightning {unknown}" in version_obstacle(unknown)


def test_loops_have_the_names(trainer):
    fit = trainer.fit_loop
    epoch, val, connector = fit.epoch_loop, fit.epoch_loop.val_loop, trainer._logger_connector
    for loop in (fit, epoch, val):
        for name in ("_restarting", "_resuming_from_checkpoint", "reset_restart_stage", "restarting"):
            assert hasattr(loop, name), name
    for name in ("_combined_loader", "_last_train_dl_reload_epoch", "_can_stop_early", "max_epochs", "max_steps"):
        assert hasattr(fit, name), name
    for name in ("_results", "_batches_that_stepped", "max_steps"):
        assert hasattr(epoch, name), name
    for name in ("_seen_batches_per_dataloader", "_last_val_dl_reload_epoch"):
        assert hasattr(val, name), name
    for count in (epoch.batch_progress, val.batch_progress):
        for part in (count.current, count.total):
            assert set(vars(part)) == {"ready", "started", "processed", "completed"}
        assert hasattr(count, "is_last_batch")
    assert {name for name in lightning.CONNECTOR if not hasattr(connector, name)} == set()
    assert "num_sanity_val_steps" in vars(trainer)


def test_hooks_are_called_as_they_are_wrapped():
    called = {
        FitLoop.setup_data: ["self"],
        EvaluationLoop.setup_data: ["self"],
        FitLoop.on_advance_start: ["self"],
        FitLoop.on_advance_end: ["self"],
        TrainingEpochLoop.advance: ["self", "data_fetcher"],
        Strategy.process_dataloader: ["self", "dataloader"],
    }
    assert {one: list(inspect.signature(one).parameters) for one in called} == called
    assert "self.advance(data_fetcher)" in inspect.getsource(TrainingEpochLoop.run)
    body = inspect.getsource(FitLoop.run)
    assert re.search(r"on_advance_start\(\)\s+self\.advance\(\)\s+self\.on_advance_end\(\)", body)
    assert body.index("self.setup_data()") < body.index("self.skip")
    assert "data_fetcher.fetched += self.batch_progress.current.ready" in inspect.getsource(TrainingEpochLoop)
    assert {"fetched", "length", "done"} <= set(vars(DataFetcher()))
    assert issubclass(PrefetchDataFetcher, DataFetcher)


def test_logged_values_have_the_fields():
    assert [field.name for field in dataclasses.fields(Metadata)] == [*lightning.METADATA, "_sync"]
    assert {"fn", "_should", "rank_zero_only", "_op"} <= {field.name for field in dataclasses.fields(Sync)}
    metric = ResultMetric(Metadata(fx="training_step", name="loss"), is_tensor=True)
    assert {name for name in lightning.RESULT if not hasattr(metric, name)} == set()
    assert set(metric._defaults) == {"value", "cumulated_batch_size"}


def test_private_names_are_in_one_file():
    """The other files of the room name none of Lightning's: theirs begin with their own `self`."""
    room = Path(lightning.__file__).parent
    found = {
        path.name: re.findall(r"(?:trainer|loop|fit|fetcher|loader)\._[a-z]\w*", path.read_text())
        for path in room.glob("*.py")
        if path.name not in {"lightning.py", "older.py"}
    }
    assert {name: names for name, names in found.items() if any("self." not in one for one in names)} == {}
