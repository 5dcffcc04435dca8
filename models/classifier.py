"""The base class of all classifiers here: loss, metrics and optimizer. Architectures subclass it."""

from __future__ import annotations

import pytorch_lightning as pl
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

Batch = tuple[Tensor, Tensor]
"""Inputs, float [B, ...], and class numbers, int64 [B]."""


def _accuracy(num_classes: int) -> MulticlassAccuracy:
    return MulticlassAccuracy(num_classes=num_classes, average="micro")


class Classifier(pl.LightningModule):
    """Train `forward`, which returns logits [B, num_classes], with cross-entropy and AdamW.

    Logs the loss (nats per sample) and the accuracy (0..1). `train/*` are values of one batch on one
    process, so that a run resumed in the middle of an epoch logs what an uninterrupted run would have;
    `val/*` and `test/*` are means over the whole split and over all processes.
    """

    def __init__(self, *, num_classes: int, lr: float, weight_decay: float) -> None:
        super().__init__()
        self.lr, self.weight_decay = lr, weight_decay
        self.loss = nn.CrossEntropyLoss()
        self.train_acc = _accuracy(num_classes)
        self.val_acc = _accuracy(num_classes)
        self.test_acc = _accuracy(num_classes)

    def training_step(self, batch: Batch) -> Tensor:
        inputs, labels = batch
        logits = self(inputs)
        loss: Tensor = self.loss(logits, labels)
        self.log("train/loss", loss, on_step=True, on_epoch=False)
        self.log("train/acc", self.train_acc(logits, labels), on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: Batch) -> None:
        self._evaluate(batch, "val", self.val_acc)

    def test_step(self, batch: Batch) -> None:
        self._evaluate(batch, "test", self.test_acc)

    def _evaluate(self, batch: Batch, split: str, accuracy: Metric) -> None:
        inputs, labels = batch
        logits = self(inputs)
        accuracy(logits, labels)
        size = len(labels)
        self.log(f"{split}/loss", self.loss(logits, labels), on_epoch=True, sync_dist=True, batch_size=size)
        self.log(f"{split}/acc", accuracy, on_epoch=True)  # torchmetrics counts over all processes

    def configure_optimizers(self) -> Optimizer:
        return AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
