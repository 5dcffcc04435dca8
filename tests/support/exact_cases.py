"""User code that was not written with resumption in mind: models, data and callbacks, and cases that combine them.

Only `Observer` is aware of resumption: it kills its own process where a test asks for it.
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytorch_lightning as pl
import torch
import torchmetrics
from torch import nn
from torch.nn import functional
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler, TensorDataset
from torch.utils.data import WeightedRandomSampler as Weighted

SAMPLES, VALIDATED, BATCH, SHAPE = 96, 24, 8, (1, 8, 8)


def made(samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (samples,), generator=generator)
    centres = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(99))
    return centres[y] + 1.5 * torch.randn(samples, *SHAPE, generator=generator), y


# --- data ---------------------------------------------------------------------------------------------------


class Augmented(Dataset):
    """Draws from all three global generators for each sample."""

    def __init__(self, samples: int, seed: int) -> None:
        self.x, self.y = made(samples, seed)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        x = torch.roll(self.x[index], int(torch.randint(-1, 2, ())), -1)
        x = x + 0.1 * torch.from_numpy(np.random.standard_normal(x.shape).astype("float32"))
        return (x.flip(-1) if random.random() < 0.5 else x), self.y[index]


class OwnGenerators(Augmented):
    def __init__(self, samples: int, seed: int) -> None:
        super().__init__(samples, seed)
        self.rng, self.random = np.random.default_rng(11), random.Random(4)

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x + 0.1 * self.rng.standard_normal(x.shape).astype("float32") * self.random.random(), y


class Counted(Augmented):
    """Counts the samples that it has returned."""

    given = 0

    def __getitem__(self, index: int) -> Any:
        self.given += 1
        x, y = super().__getitem__(index)
        return x * (1 + self.given / 1000), y


class Stream(IterableDataset):
    """Shuffles in a buffer, and divides its samples among workers; has no length."""

    def __init__(self, samples: int, seed: int) -> None:
        self.x, self.y = made(samples, seed)

    def __iter__(self) -> Any:
        info = torch.utils.data.get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        buffer: list[int] = []
        for index in range(first, len(self.x), step):
            buffer.append(index)
            if len(buffer) > 8:
                yield self._one(buffer.pop(random.randrange(len(buffer))))
        random.shuffle(buffer)
        yield from map(self._one, buffer)

    def _one(self, index: int) -> Any:
        return self.x[index] + 0.1 * torch.randn_like(self.x[index]), self.y[index]


class OwnSampler(Sampler):
    """Draws from NumPy's global generator."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Any:
        yield from map(int, np.random.permutation(self.samples))


class Whole(Dataset):
    """Returns whole batches, for a loader that does not batch."""

    def __init__(self, samples: int) -> None:
        self.x, self.y = made(samples, 0)

    def __len__(self) -> int:
        return len(self.x) // BATCH

    def __getitem__(self, index: int) -> Any:
        part = slice(index * BATCH, (index + 1) * BATCH)
        return self.x[part] + 0.1 * torch.randn(BATCH, *SHAPE), self.y[part]


class Iterated:
    """Returns batches, and is not a loader of torch."""

    def __init__(self, samples: int) -> None:
        self.x, self.y = made(samples, 0)

    def __len__(self) -> int:
        return len(self.x) // BATCH

    def __iter__(self) -> Any:
        yield from zip(self.x.split(BATCH), self.y.split(BATCH), strict=True)


SETS = {"augmented": Augmented, "own generators": OwnGenerators, "counted": Counted, "stream": Stream}


class Data(pl.LightningDataModule):
    def __init__(self, kind: str = "table", order: str = "shuffled", validation: str = "table", **loader: Any) -> None:
        super().__init__()
        self.kind, self.order, self.validation, self.arguments = kind, order, validation, loader

    def train_dataloader(self) -> Any:
        if self.kind == "iterated":
            return Iterated(SAMPLES)
        if self.kind == "whole":
            return DataLoader(Whole(SAMPLES), batch_size=None, shuffle=True, **self.arguments)
        if self.kind == "two":
            return {"a": self.loader("table", SAMPLES), "b": self.loader("augmented", SAMPLES // 3)}
        return self.loader(self.kind, SAMPLES)

    def loader(self, kind: str, samples: int) -> Any:
        data = SETS[kind](samples, 0) if kind in SETS else TensorDataset(*made(samples, 0))
        if kind == "stream":
            return DataLoader(data, BATCH, **self.arguments)
        if self.order == "weighted":
            sampler = Weighted(torch.linspace(0.1, 1, samples), samples)
            return DataLoader(data, BATCH, sampler=sampler, **self.arguments)
        if self.order == "own":
            return DataLoader(data, batch_sampler=BatchSampler(OwnSampler(samples), BATCH, False), **self.arguments)
        return DataLoader(data, BATCH, shuffle=True, **self.arguments)

    def val_dataloader(self) -> Any:
        if self.validation == "augmented":
            return DataLoader(Augmented(VALIDATED, 1), BATCH, **self.arguments)
        return DataLoader(TensorDataset(*made(VALIDATED, 1)), BATCH)

    def test_dataloader(self) -> Any:
        return self.val_dataloader()


# --- models -------------------------------------------------------------------------------------------------


class Net(pl.LightningModule):
    """Has dropout, may mix batches, and logs means and maxima of the epoch."""

    def __init__(
        self, scheduler: str = "", *, convolves: bool = False, draws: bool = False, metrics: bool = False
    ) -> None:
        super().__init__()
        self.scheduler, self.draws, self.metrics = scheduler, draws, metrics
        if convolves:
            head = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten()]
            self.net = nn.Sequential(*head, nn.Linear(4 * 36, 4))
        else:
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 4))
        if metrics:
            accuracy = torchmetrics.Accuracy("multiclass", num_classes=4)
            self.accuracy, self.auroc = accuracy, torchmetrics.AUROC("multiclass", num_classes=4)
            parts = [accuracy.clone(), torchmetrics.Precision("multiclass", num_classes=4)]
            self.several = torchmetrics.MetricCollection([*parts, torchmetrics.Recall("multiclass", num_classes=4)])
            self.validated = accuracy.clone()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.draws and self.trainer.training:
            return batch[0] + 0.2 * torch.randn_like(batch[0]), batch[1]
        return batch

    def loss(self, batch: Any) -> Any:
        if isinstance(batch, dict):
            return self.loss(batch["a"]) + 0.5 * self.loss(batch["b"])
        logits = self.net(batch[0])
        if self.training and self.metrics:
            for metric in (self.accuracy, self.auroc, self.several):
                metric(logits, batch[1])
        return functional.cross_entropy(logits, batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        if random.random() < 0.3 or np.random.rand() < 0.3:
            loss = loss * 1.5
        several = {"on_step": False, "on_epoch": True, "batch_size": BATCH}
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=self.trainer.world_size > 1, batch_size=BATCH)
        self.log("greatest", loss, reduce_fx="max", sync_dist=self.trainer.world_size > 1, **several)
        if batch_idx < 6:
            self.log("first half", loss, **several)
        if self.metrics:
            self.log("accuracy", self.accuracy, **several)
            self.log("auroc", self.auroc, **several)
            self.log_dict(self.several, **several)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x = batch[0]
        if self.draws:
            x = x + 0.1 * torch.randn_like(x) + 0.01 * np.random.rand() + 0.01 * random.random()
        logits = self.net(x)
        if self.metrics:
            self.validated(logits, batch[1])
            self.log("validated", self.validated)
        loss = functional.cross_entropy(logits, batch[1])
        self.log("val_loss", loss, sync_dist=self.trainer.world_size > 1)
        self.log("val_step", loss, on_step=True, on_epoch=True, sync_dist=self.trainer.world_size > 1)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.005)
        schedulers = torch.optim.lr_scheduler
        if self.scheduler == "onecycle":
            steps = int(self.trainer.estimated_stepping_batches)
            scheduler: Any = schedulers.OneCycleLR(optimizer, 0.05, total_steps=steps)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]
        if self.scheduler == "cosine":
            return [optimizer], [schedulers.CosineAnnealingLR(optimizer, 4)]
        if self.scheduler:  # plateau, by epoch or by step
            interval, frequency = self.scheduler.split()[1:]
            scheduler = schedulers.ReduceLROnPlateau(optimizer, factor=0.7, patience=0, threshold=0.05)
            more = {"monitor": "val_loss", "interval": interval, "frequency": int(frequency)}
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **more}}
        return optimizer


class Outputs(Net):
    """Lightning 2's recipe to replace `training_epoch_end`: a list that is emptied at the epoch's end."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.outputs: list[Any] = []
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.outputs.append(loss.detach())
        self.steps += 1
        return loss * (1 + 0.001 * self.steps)

    def on_train_epoch_end(self) -> None:
        self.log("median", torch.stack(self.outputs).median())
        self.outputs.clear()


class Manual(Net):
    """Two optimizers, of which one steps at every other batch."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        first, second = self.optimizers()
        for optimizer in (first, second):
            optimizer.zero_grad()
        self.manual_backward(loss)
        first.step()
        if batch_idx % 2:
            second.step()

    def configure_optimizers(self) -> Any:
        parts = list(self.net.parameters())
        return torch.optim.Adam(parts[:2], lr=0.005), torch.optim.SGD(parts[2:], lr=0.05)


class Counting(pl.Callback):
    """Keeps a counter, has no `state_dict`, and sets the learning rate by it."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.count += 1
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = 0.005 * (1 - self.count / 200)


# --- observing and killing ------------------------------------------------------------------------------------


class Kill:
    """Kills this process's group when a place is passed for the n-th time; counts the places that are passed."""

    place, time, number = "", 0, signal.SIGKILL
    passed: ClassVar[Counter[str]] = Counter()
    file = Path(os.devnull)

    @classmethod
    def at(cls, place: str) -> None:
        cls.passed[place] += 1
        if (place, cls.passed[place]) == (cls.place, cls.time):
            with cls.file.open("a") as file:
                file.write(f"{cls.number} {place}\n")
            os.killpg(0, cls.number)


class Observer(pl.Callback):
    def on_train_epoch_start(self, *_: Any) -> None:
        Kill.at("epoch's start")

    def on_train_batch_start(self, *_: Any) -> None:
        Kill.at("batch's start")

    def on_before_optimizer_step(self, *_: Any) -> None:
        Kill.at("before a step")

    def on_train_batch_end(self, *_: Any) -> None:
        Kill.at("batch's end")

    def on_validation_start(self, trainer: Any, *_: Any) -> None:
        self.validating(trainer, "validation's start")

    def on_validation_batch_end(self, trainer: Any, *_: Any) -> None:
        self.validating(trainer, "validation batch")

    def on_validation_end(self, trainer: Any, *_: Any) -> None:
        self.validating(trainer, "validation's end")

    def validating(self, trainer: Any, place: str) -> None:
        if not trainer.sanity_checking:
            Kill.at(place)

    def on_train_epoch_end(self, *_: Any) -> None:
        Kill.at("epoch's end")

    def on_test_batch_end(self, *_: Any) -> None:
        Kill.at("test batch")


# --- cases ----------------------------------------------------------------------------------------------------

_CALLBACKS = "pytorch_lightning.callbacks"
EMA = {"ema": {"_target_": f"{_CALLBACKS}.EMAWeightAveraging", "decay": 0.9}}
EARLY = {"early": {"_target_": f"{_CALLBACKS}.EarlyStopping", "monitor": "val_loss", "patience": 1, "min_delta": 0.01}}
SWA = {"swa": {"_target_": f"{_CALLBACKS}.StochasticWeightAveraging", "swa_lrs": 0.002, "swa_epoch_start": 1}}
WORKERS = {"num_workers": 2}
PERSISTENT = {"num_workers": 2, "persistent_workers": True}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "workers": {"data": WORKERS},
    "persistent workers": {"data": PERSISTENT},
    "augmentation": {"model": {"convolves": True}, "data": {"kind": "augmented"}},
    "augmentation, persistent workers": {"model": {"convolves": True}, "data": {"kind": "augmented", **PERSISTENT}},
    "augmented validation": {
        "data": {"validation": "augmented", **PERSISTENT},
        "trainer": {"val_check_interval": 0.5},
    },
    "onecycle": {"model": {"scheduler": "onecycle"}},
    "plateau": {"model": {"scheduler": "plateau epoch 1"}},
    "plateau by step": {"model": {"scheduler": "plateau step 3"}, "trainer": {"val_check_interval": 3}},
    "averages": {"callbacks": EMA, "trainer": {"val_check_interval": 0.5}},
    "early stopping": {"callbacks": EARLY, "trainer": {"max_epochs": 6, "min_epochs": 2}},
    "metrics": {"model": {"metrics": True}},
    "metrics, validated within": {"model": {"metrics": True, "draws": True}, "trainer": {"val_check_interval": 0.25}},
    "manual optimization": {"model": {"_target_": "Manual"}},
    "weighted": {"data": {"order": "weighted"}},
    "weighted, workers": {"data": {"order": "weighted", **WORKERS}},
    "own sampler": {"data": {"order": "own"}},
    "own sampler, workers": {"data": {"order": "own", **WORKERS}},
    "own generators": {"data": {"kind": "own generators"}},
    "own generators, persistent workers": {"data": {"kind": "own generators", **PERSISTENT}},
    "counted": {"data": {"kind": "counted"}},
    "outputs": {"model": {"_target_": "Outputs"}, "trainer": {"val_check_interval": 0.5}},
    "counter": {"callbacks": {"counting": {"_target_": "exact_cases.Counting"}}},
    "accumulation": {"trainer": {"accumulate_grad_batches": 5}},
    "accumulation, validated within": {"trainer": {"accumulate_grad_batches": 4, "val_check_interval": 3}},
    "stream": {"data": {"kind": "stream"}},
    "stream, workers": {"data": {"kind": "stream", **PERSISTENT}, "model": {"scheduler": "cosine"}},
    "two loaders": {"data": {"kind": "two", **WORKERS}},
    "no batching": {"data": {"kind": "whole"}},
    "iterated": {"data": {"kind": "iterated"}},
    "steps": {"trainer": {"max_steps": 30, "val_check_interval": 5, "check_val_every_n_epoch": None}},
    "steps, ended by a validation": {"trainer": {"max_steps": 24}, "model": {"draws": True}},
    "reloaded": {"trainer": {"reload_dataloaders_every_n_epochs": 1}},
    "clipped": {"trainer": {"gradient_clip_val": 0.5, "precision": "bf16-mixed"}},
    "tested": {"task": "fit_test", "callbacks": EMA},
    "two ranks": {"world": 2},
    "two ranks, workers": {"world": 2, "data": WORKERS},
    "two ranks, augmentation, metrics": {
        "world": 2,
        "model": {"convolves": True, "metrics": True},
        "data": {"kind": "augmented"},
    },
    "two ranks, weighted": {"world": 2, "data": {"order": "weighted"}},
    "two ranks, accumulation": {"world": 2, "trainer": {"accumulate_grad_batches": 4, "val_check_interval": 3}},
    "three ranks": {"world": 3, "bucket_cap_mb": 0.002},
    "three ranks, normalised, metrics": {
        "world": 3,
        "bucket_cap_mb": 0.002,
        "model": {"convolves": True, "metrics": True},
        "trainer": {"val_check_interval": 2},
    },
    "four ranks": {"world": 4, "bucket_cap_mb": 0.002},
    "all at once": {
        "model": {"convolves": True, "metrics": True, "draws": True, "scheduler": "plateau epoch 1"},
        "data": {"kind": "augmented", **PERSISTENT},
        "callbacks": {**EMA, **EARLY},
        "trainer": {"val_check_interval": 0.5, "max_epochs": 4},
    },
}
"""Each is changes to a run of twelve batches an epoch, three epochs, a validation after each."""


def config(case: str) -> dict[str, Any]:
    """Return the config of a case's run."""
    changes = CASES[case]
    model = dict(changes.get("model", {}))
    ddp = {"_target_": "pytorch_lightning.strategies.DDPStrategy", "bucket_cap_mb": changes.get("bucket_cap_mb", 25)}
    ranks = {"strategy": ddp} if changes.get("world") else {}
    return {
        "model": {**model, "_target_": f"exact_cases.{model.get('_target_', 'Net')}"},
        "data": {"_target_": "exact_cases.Data", **changes.get("data", {})},
        "seed": 3,
        "task": changes.get("task", "fit"),
        "trainer": {
            "_target_": "pytorch_lightning.Trainer",
            "max_epochs": 3,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": {**changes.get("callbacks", {}), "observer": {"_target_": "exact_cases.Observer"}},
            **ranks,
            **changes.get("trainer", {}),
        },
    }
