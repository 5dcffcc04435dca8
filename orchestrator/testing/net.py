"""A tiny network that really trains, on all its ranks, and whose steps wait, fail and die on request."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytorch_lightning as pl
import torch

STEPS_PER_EPOCH = 20
"""A regular checkpoint is saved at the end of each epoch."""


class Net(pl.LightningModule):
    """Logs at each step how many ranks took it. A step lasts `seconds`, or until the file `until` exists.

    At step `at`, rank `rank` does what `does` says: raise, exit (with status 3), kill (itself, with SIGKILL), or, only
    once in all attempts, hang until the file `until` exists, and then kill itself.
    """

    def __init__(
        self, *, seconds: float = 0.0, until: str | None = None, does: str = "", at: int = 2, rank: int = 1
    ) -> None:
        super().__init__()
        self._seconds, self._until = seconds, Path(until) if until else None
        self._does, self._at, self._rank = does, at, rank
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: tuple[torch.Tensor], _batch_idx: int) -> torch.Tensor:
        if self.global_step == self._at and self.global_rank == self._rank:
            self._act()
        self._wait()
        ones = self.all_gather(torch.ones(()))
        self.log("ranks", ones.sum() if torch.is_tensor(ones) else 1.0)
        loss: torch.Tensor = self.layer(batch[0]).pow(2).mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> object:
        data = torch.utils.data.TensorDataset(torch.ones(STEPS_PER_EPOCH * self.trainer.world_size, 4))
        return torch.utils.data.DataLoader(data, batch_size=1)

    def _wait(self) -> None:
        end = time.monotonic() + self._seconds
        while (left := end - time.monotonic()) > 0 and (self._until is None or not self._until.exists()):
            time.sleep(min(left, 0.1))

    def _act(self) -> None:
        match self._does:
            case "raise":
                raise ArithmeticError("this rank was to fail")
            case "exit":
                os._exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                self._hang()

    def _hang(self) -> None:
        if self._until is None or (hung := self._until.with_name(f"{self._until.name} hung")).exists():
            return
        hung.touch()
        while not self._until.exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)


class ValidatedNet(Net):
    """A Net that is validated after each epoch, on as many batches. Here those last `seconds`, and steps do not.

    Rank 1 has one batch less: ranks may have different numbers of batches, and must still stop together.
    """

    def _wait(self) -> None:
        if not self.trainer.training:
            super()._wait()

    def validation_step(self, batch: tuple[torch.Tensor], batch_idx: int) -> None:
        sys.stdout.write(f"validation batch {batch_idx}\n")
        self._wait()
        self.log("val/loss", self.layer(batch[0]).pow(2).mean(), sync_dist=True)

    def val_dataloader(self) -> object:
        data = torch.utils.data.TensorDataset(
            torch.ones((STEPS_PER_EPOCH - self.global_rank) * self.trainer.world_size, 4)
        )
        return torch.utils.data.DataLoader(data, batch_size=1)


class LoopingNet(Net):
    """A Net whose data loader has a worker that never returns its fourth sample."""

    def train_dataloader(self) -> object:
        return torch.utils.data.DataLoader(_Looping(), batch_size=1, num_workers=1)


class _Looping(torch.utils.data.Dataset[tuple[torch.Tensor]]):
    def __len__(self) -> int:
        return STEPS_PER_EPOCH

    def __getitem__(self, index: int) -> tuple[torch.Tensor]:
        while index == 3:
            time.sleep(0.01)
        return (torch.ones(4),)
