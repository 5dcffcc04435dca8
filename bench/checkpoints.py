"""How long the training waits for a checkpoint, and what exact resumption costs a batch.

The peers are Lightning's own checkpoint of the same state, and a plain Trainer's fit of the same model.
"""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities.cloud_io import _atomic_save
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bench.measure import Row, Seconds, in_turns, timed
from bench.sandbox import Sandbox
from orchestrator.layout import AttemptPaths
from orchestrator.records.attempts import EventWriter
from orchestrator.records.checkpoints import Checkpoint
from orchestrator.spec import CheckpointOptions, Resources
from orchestrator.tracking import SpoolWriter
from orchestrator.tracking.logger import SpoolLogger
from orchestrator.worker.context import ProcessContext
from orchestrator.worker.fit.trainer import Training, train
from orchestrator.worker.fit.writer import AtomicCheckpointIO, CheckpointWriter
from orchestrator.worker.signals import StopSignal

_SIZES_MB = (100, 1_000)
_TENSORS = 60
_ROUNDS = 4
_BATCHES = 3_000
_STEP_SECONDS = 0.01
_AT_MOST = {100: 0.25, 1_000: 0.25}


def rows(box: Sandbox) -> list[Row]:
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    return [*(_waited(box.folder, size) for size in _SIZES_MB), _batch(box.folder)]


def _waited(folder: Path, megabytes: int) -> Row:
    each = megabytes * 1_000_000 // 4 // _TENSORS
    state = {f"weight{number}": torch.randn(each) for number in range(_TENSORS)}
    attempt = AttemptPaths(folder / f"a{megabytes}")
    attempt.state.mkdir(parents=True)
    writer = CheckpointWriter(attempt, AtomicCheckpointIO(), keep=1, asynchronous=True)
    steps = iter(range(10**6))

    def ours() -> Seconds:
        step = next(steps)
        found = Checkpoint(path=attempt.state / f"step-{step}.ckpt", step=step)
        took = timed(lambda: writer.write(state, found, latest=True, best=False, now=False))
        writer.wait()
        return took

    found = in_turns(
        f"checkpoint {megabytes} MB",
        _ROUNDS,
        {"ours": ours, "lightning": lambda: timed(lambda: _atomic_save(state, folder / "lightning.ckpt"))},
    )
    return Row(
        what=f"a checkpoint of {megabytes} MB: the training waits",
        measured=found["ours"],
        peer="Lightning's own",
        peer_measured=found["lightning"],
        at_most=_AT_MOST[megabytes],
    )


def _batch(folder: Path) -> Row:
    attempts = iter(range(1, 100))

    def ours() -> Seconds:
        attempt = AttemptPaths(folder / f"a{next(attempts):03d}")
        attempt.path.mkdir()
        training = Training(
            config={
                "model": {"_target_": f"{__name__}.Small"},
                "data": {},
                "seed": 0,
                "task": "fit",
                "trainer": {"_target_": "pytorch_lightning.Trainer", **_options()},
            },
            resources=Resources(),
            objective=None,
            folder=attempt.path,
            artifacts=folder / "artifacts",
            resume_from=None,
            context=ProcessContext(),
            checkpoint=CheckpointOptions(),
        )
        with SpoolWriter(attempt.metrics) as spool:
            logger = SpoolLogger(spool, attempt)
            train(training, logger=logger, events=EventWriter(attempt.events), stop=StopSignal())
        return Small.seconds

    def plain() -> Seconds:
        Trainer(**_options(), logger=False, enable_checkpointing=False, accelerator="cpu").fit(Small())
        return Small.seconds

    found = in_turns("a batch", _ROUNDS, {"ours": ours, "plain": plain})
    more = [one - other for one, other in zip(found["ours"], found["plain"], strict=True)]
    return Row(
        what="a batch: what the engine adds to a plain Trainer",
        measured=more,
        peer="a step of 10 ms",
        peer_measured=[timed(_ten_milliseconds()) for _ in more],
        at_most=0.01,
    )


def _options() -> dict[str, Any]:
    return {"max_epochs": 1, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 50}


def _ten_milliseconds() -> Any:
    """Return work that takes as long, by this machine's own measure."""
    matrix = torch.randn(128, 128)
    once = min(timed(lambda: torch.mm(matrix, matrix)) for _ in range(20))
    return lambda: [torch.mm(matrix, matrix) for _ in range(round(_STEP_SECONDS / once))]


class Small(LightningModule):
    """A model so small that what surrounds a batch is all of its time; it takes the seconds per batch of its epoch."""

    seconds = 0.0

    def __init__(self) -> None:
        super().__init__()
        self._net = nn.Linear(4, 1)

    def on_train_epoch_start(self) -> None:
        self._began = time.perf_counter()

    def on_train_epoch_end(self) -> None:
        Small.seconds = (time.perf_counter() - self._began) / _BATCHES

    def training_step(self, batch: list[Tensor]) -> Tensor:
        loss: Tensor = self._net(batch[0]).square().mean()
        self.log("train/loss", loss.detach())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(torch.ones(_BATCHES * 8, 4)), 8, shuffle=True)
