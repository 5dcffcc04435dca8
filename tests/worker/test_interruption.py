"""A signal, whenever it comes during a fit: the run ends at a safe boundary, and the next attempt adds what is missing.

In one process, without a cluster; tests/slurm/test_signals.py tells of real ones, and of several ranks.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from orchestrator import tracking
from orchestrator.layout import AttemptPaths
from orchestrator.records.attempts import EventWriter
from orchestrator.records.checkpoints import to_resume
from orchestrator.spec import Resources
from orchestrator.tracking.logger import SpoolLogger
from orchestrator.worker.context import ProcessContext
from orchestrator.worker.fit import progress as watching
from orchestrator.worker.fit.trainer import Training, train
from orchestrator.worker.signals import InterruptedByInfrastructureError, StopSignal

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]
BATCHES_PER_EPOCH, EPOCHS, VALIDATION_BATCHES = 4, 3, 3


@dataclass
class Alarm:
    """Sends SIGTERM to this process when a moment comes for the n-th time, or lets it die."""

    moment: str = ""
    time: int = 0
    dies: bool = False
    seen: list[str] = field(default_factory=list)

    def __call__(self, moment: str) -> None:
        self.seen.append(moment)
        if moment == self.moment and self.seen.count(moment) == self.time:
            if self.dies:
                raise MemoryError
            os.kill(os.getpid(), signal.SIGTERM)


ALARM = Alarm()


class Counted(pl.LightningModule):
    """Logs at each step, validation batch, validation and epoch, and tells the alarm of each moment."""

    def __init__(self) -> None:
        super().__init__()
        ALARM("building")
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        ALARM("step")
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.trainer.sanity_checking:
            ALARM("sanity check")
            return
        ALARM("validation batch")
        self.log("val/loss", self.layer(batch[0]).pow(2).mean() + batch_idx)

    def on_validation_epoch_end(self) -> None:
        ALARM("validation's end" if not self.trainer.sanity_checking else "sanity check's end")

    def on_train_epoch_end(self) -> None:
        ALARM("epoch's end")
        self.log("epochs", float(self.current_epoch + 1))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        ALARM("test batch")
        self.log("test/loss", self.layer(batch[0]).pow(2).mean())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ALARM("writing a checkpoint")

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> Any:
        return loader(BATCHES_PER_EPOCH)

    def val_dataloader(self) -> Any:
        return loader(VALIDATION_BATCHES)

    def test_dataloader(self) -> Any:
        return loader(VALIDATION_BATCHES)


class Scheduled(Counted):
    """Halves its learning rate at each step of a plateau scheduler, and logs it."""

    def __init__(self, **scheduler: Any) -> None:
        super().__init__()
        self.scheduler = scheduler

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("lr", self.optimizers().param_groups[0]["lr"])
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max", 0.5, 0, threshold=1e9, min_lr=0, eps=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, **self.scheduler}}


def loader(batches: int) -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(batches, 2)), batch_size=1)


@dataclass
class Story:
    """Attempts of one run, in one process after another in truth, and here in this one."""

    folder: Path
    trainer: dict[str, Any]
    model: dict[str, Any] = field(default_factory=lambda: {"_target_": f"{__name__}.Counted"})
    attempts: int = 0

    def attempt(self, moment: str = "", time: int = 1, *, dies: bool = False) -> str | None:
        """Start an attempt from the last one's checkpoint; returns the signal that ended it, None if it is done."""
        ALARM.moment, ALARM.time, ALARM.dies = moment, time, dies
        ALARM.seen.clear()
        earlier = [AttemptPaths(path) for path in self.folder.glob("a[0-9]*")]
        self.attempts += 1
        self.path.mkdir(parents=True)
        trainer = {
            "_target_": "pytorch_lightning.Trainer",
            "max_epochs": EPOCHS,
            "log_every_n_steps": 1,
            "callbacks": {},
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **self.trainer,
        }
        config = {
            "model": self.model,
            "data": {},
            "seed": 0,
            "task": "fit_test",
            "trainer": trainer,
        }
        work = Training(
            config=config,
            resources=Resources(),
            objective=None,
            folder=self.path,
            artifacts=self.folder / "artifacts",
            context=ProcessContext(),
            resume_from=to_resume(earlier),
        )
        stop = StopSignal()
        stop.install()
        with tracking.SpoolWriter(self.path / "metrics.jsonl") as spool:
            events = EventWriter(self.path / "events.jsonl")
            try:
                train(work, logger=SpoolLogger(spool, AttemptPaths(self.path)), events=events, stop=stop)
            except InterruptedByInfrastructureError as error:
                return str(error)
        return None

    @property
    def path(self) -> Path:
        return self.folder / f"a{self.attempts:03d}"

    def logged(self) -> list[tuple[str, int, float]]:
        """Return everything that was logged: metric, step, value, in order."""
        found = []
        for path in sorted(self.folder.glob("*/metrics.jsonl")):
            records = [record for record, _ in tracking.read(path) if isinstance(record, tracking.Metrics)]
            found += [(name, one.step, value) for one in records for name, value in one.values.items()]
        return sorted((name, step, round(value, 6)) for name, step, value in found if name != "epoch")


@pytest.fixture(autouse=True)
def _own_handlers():
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGCONT)
    former = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


PLANS: dict[str, dict[str, Any]] = {
    "validates after each epoch": {},
    "validates twice in an epoch": {"val_check_interval": 2},
    "validates after every other epoch": {"check_val_every_n_epoch": 2},
    "never validates": {"limit_val_batches": 0},
    "ends within an epoch": {"max_steps": 10},
    "ends within an epoch and never validates": {"max_steps": 10, "limit_val_batches": 0},
    "accumulates gradients": {"accumulate_grad_batches": 2},
    "validates within an accumulation": {"accumulate_grad_batches": 4, "val_check_interval": 2},
    "validates within the last, shorter accumulation": {"accumulate_grad_batches": 3, "val_check_interval": 1},
}


@pytest.fixture(scope="module", params=PLANS)
def plan(request, tmp_path_factory):
    """Give a trainer's arguments, and what a run that nobody disturbs logs with them."""
    undisturbed = Story(tmp_path_factory.mktemp("undisturbed"), PLANS[request.param])
    assert undisturbed.attempt() is None
    return PLANS[request.param], undisturbed.logged(), list(ALARM.seen)


MOMENTS = [
    ("building", 1), ("sanity check", 2), ("sanity check's end", 1), ("step", 1), ("step", 3), ("step", 4), ("step", 5),
    ("step", 12), ("validation batch", 1), ("validation batch", 2), ("validation batch", 3), ("validation batch", 5),
    ("validation's end", 1), ("epoch's end", 1), ("epoch's end", 3), ("writing a checkpoint", 1), ("test batch", 2),
]  # fmt: skip


def test_nothing_is_lost_or_logged_twice_whenever_the_signal_comes(plan, tmp_path):
    trainer, expected, seen = plan
    moments = [(moment, time) for moment, time in MOMENTS if seen.count(moment) >= time]
    assert len(moments) >= 8
    for number, (moment, time) in enumerate(moments):
        story = Story(tmp_path / str(number), trainer)
        ended = [story.attempt(moment, time)]
        if ended[0] is not None:  # the last moments of a run may be too late to stop it
            ended.append(story.attempt())
        assert ended in ([None], ["SIGTERM", None]), f"{moment} {time}"
        assert story.logged() == expected, f"{moment} {time}"


def test_a_run_that_died_goes_on_from_its_last_regular_checkpoint(plan, tmp_path):
    trainer, expected, _ = plan
    for time in (5, 7, 9):
        story = Story(tmp_path / str(time), trainer)
        with pytest.raises(MemoryError):
            story.attempt("step", time, dies=True)
        assert story.attempt() is None
        assert set(story.logged()) == set(expected), f"step {time}"  # what is done again gives the same again


@pytest.mark.parametrize(
    ("trainer", "scheduler"),
    [
        ({}, {"interval": "epoch", "monitor": "val/loss"}),
        ({"max_steps": 10, "limit_val_batches": 0}, {"interval": "epoch", "monitor": "epochs"}),
        ({"val_check_interval": 2}, {"interval": "step", "monitor": "val/loss", "frequency": 2}),
        ({"accumulate_grad_batches": 2}, {"interval": "step", "monitor": "loss"}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if "interval" in value else None,
)
def test_a_plateau_scheduler_loses_no_step_whenever_the_run_is_stopped(trainer, scheduler, tmp_path):
    """Lightning leaves out the one that follows the checkpoint; per step it raised, for want of the metric."""
    model = {"_target_": f"{__name__}.Scheduled", **scheduler}
    undisturbed = Story(tmp_path / "undisturbed", trainer, model)
    assert undisturbed.attempt() is None
    expected = undisturbed.logged()
    assert len({value for name, _, value in expected if name == "lr"}) > 1
    for moment, time in (("step", 3), ("step", 4), ("step", 6), ("epoch's end", 1)):
        story = Story(tmp_path / f"{moment} {time}", trainer, model)
        assert (story.attempt(moment, time), story.attempt()) == ("SIGTERM", None)
        assert story.logged() == expected, f"{moment} {time}"
    for time in (7, 9):
        story = Story(tmp_path / f"dies {time}", trainer, model)
        with pytest.raises(MemoryError):
            story.attempt("step", time, dies=True)
        assert story.attempt() is None
        assert set(story.logged()) == set(expected), f"step {time}"


def test_the_reports_of_a_long_fit_are_few_and_never_older_than_a_thousandth_of_it(monkeypatch):
    """Whoever looks at a run reads all of them: ten hours at one a second would be megabytes."""
    now = [0.0]
    monkeypatch.setattr(watching, "time", SimpleNamespace(monotonic=lambda: now[0]))
    written = []
    events = SimpleNamespace(write=lambda kind, **_: written.append(now[0]))
    trainer = SimpleNamespace(
        is_global_zero=True,
        max_epochs=1,
        max_steps=-1,
        num_training_batches=10**6,
        current_epoch=0,
        global_step=1,
        callback_metrics={},
    )
    progress = watching.Progress(events, None)
    while now[0] < 36_000:
        now[0] += 0.7
        progress.on_train_batch_end(trainer, None, None, None, 0)
    assert len(written) < 6_000
    assert all(later - earlier <= max(2.0, later * 1e-3 + 1) for earlier, later in pairwise(written))
    assert sum(moment < 600 for moment in written) > 400


def test_nothing_is_pruned_before_lightning_would_end_the_fit():
    """`min_epochs` holds: what goes on is not called pruned."""
    trainer = SimpleNamespace(
        is_global_zero=True,
        callback_metrics={"loss": 1.0},
        min_epochs=3,
        min_steps=None,
        current_epoch=0,
        global_step=5,
        should_stop=False,
        strategy=SimpleNamespace(broadcast=bool),
    )
    prune = watching.Prune(lambda *_: True)
    for epoch in range(4):
        trainer.current_epoch = epoch
        prune.observe(trainer, 1.0)
        if trainer.should_stop:
            break
    assert (prune.pruned, trainer.current_epoch) == (3, 2)
