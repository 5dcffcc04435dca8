"""The UCI hand-written digits (data/digits, a DVC data version) as a LightningDataModule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset

Batch = tuple[Tensor, ...]
"""Images, float32 [B, 1, 8, 8] in 0..1, and class numbers, int64 [B] in 0..9."""

Indices = npt.NDArray[np.intp]

MAX_INTENSITY = 16  # each pixel counts the set pixels of a 4x4 block of the scanned bitmap
HELD_OUT = 0.2  # the share of each class for validation, and the same again for testing


def _load(data_dir: Path, name: str, shape: tuple[int | None, ...]) -> npt.NDArray[np.uint8]:
    """Read a uint8 array; None in `shape` stands for any length. Raises FileNotFoundError or ValueError."""
    path = data_dir / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: the digits are images.npy and labels.npy in one folder. "
            "Fetch them with `dvc pull data/digits.dvc`, or make them with `python data/make_digits.py`"
        )
    array: npt.NDArray[np.uint8] = np.load(path, allow_pickle=False)
    fits = len(array.shape) == len(shape) and all(
        want in (None, have) for want, have in zip(shape, array.shape, strict=True)
    )
    if array.dtype != np.uint8 or not fits:
        raise ValueError(f"{path} holds {array.dtype} {list(array.shape)}, not uint8 {list(shape)}")
    return array


def split_indices(labels: npt.NDArray[np.uint8], seed: int) -> dict[str, Indices]:
    """Return sorted, disjoint indices of `train`, `val` and `test`, with the same share of every class.

    `HELD_OUT` of each class, rounded, goes to validation and again to testing: 1,079, 359 and 359 of the
    digits, whatever the seed. The order within `labels` decides, so the split holds for these bytes only.
    """
    # The legacy generator: numpy guarantees its stream forever, and that of default_rng for no release.
    random = np.random.RandomState(seed)
    parts: dict[str, list[Indices]] = {"train": [], "val": [], "test": []}
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        held = round(HELD_OUT * len(members))
        parts["val"].append(members[:held])
        parts["test"].append(members[held : 2 * held])
        parts["train"].append(members[2 * held :])
    return {name: np.sort(np.concatenate(found)) for name, found in parts.items()}


def shift_images(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image of [B, C, H, W] by -1, 0 or 1 pixel along both axes, filling with zeros."""
    batch, channels, height, width = images.shape
    offsets = torch.randint(0, 3, (2, batch), generator=generator).to(images.device)
    rows = offsets[0, :, None] + torch.arange(height, device=images.device)
    columns = offsets[1, :, None] + torch.arange(width, device=images.device)
    padded = functional.pad(images, (1, 1, 1, 1))
    index = torch.arange(batch, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return padded[index, channel, rows[:, None, :, None], columns[:, None, None, :]]


class DigitsDataModule(pl.LightningDataModule):
    """1,797 images of hand-written digits, 8x8, in fixed stratified splits of 60, 20 and 20 percent.

    Reads `images.npy` (uint8 [N, 8, 8], 0..16) and `labels.npy` (uint8 [N], 0..9) from `data_dir` and never
    downloads. Batches are (float32 [B, 1, 8, 8] in 0..1, int64 [B]). `augment` shifts training images by up
    to one pixel, which cuts strokes off in images this small: it regularises long training, and slows short
    training down. `split_seed` chooses the splits; only results with the same splits may be compared.
    """

    def __init__(
        self,
        data_dir: str,
        batch_size: int = 64,
        augment: bool = False,
        num_workers: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__()
        self.data_dir = Path(data_dir)
        self.batch_size = batch_size
        self.augment = augment
        self.num_workers = num_workers
        self.split_seed = split_seed
        self.splits: dict[str, Dataset[Batch]] = {}

    def setup(self, stage: str) -> None:  # noqa: ARG002 - all stages share the same data
        if self.splits:
            return
        images = _load(self.data_dir, "images.npy", (None, 8, 8))
        labels = _load(self.data_dir, "labels.npy", (len(images),))
        inputs = torch.from_numpy(images).unsqueeze(1).float() / MAX_INTENSITY
        targets = torch.from_numpy(labels).long()
        self.splits = {
            name: TensorDataset(inputs[index], targets[index])
            for name, index in split_indices(labels, self.split_seed).items()
        }

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader("val", shuffle=False)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader("test", shuffle=False)

    def _loader(self, split: str, *, shuffle: bool) -> DataLoader[Batch]:
        return DataLoader(
            self.splits[split],
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:  # noqa: ARG002 - a hook
        trainer = self.trainer
        if not self.augment or trainer is None or not trainer.training:
            return batch
        images, labels = batch
        # Drawn from the step, not from the global generator: a resumed run shifts as an uninterrupted one.
        seed = np.random.SeedSequence([self.split_seed, trainer.global_step, trainer.global_rank])
        generator = torch.Generator().manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))
        return shift_images(images, generator), labels
