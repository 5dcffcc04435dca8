"""The data modules: fixed splits, the digits' data version, augmentation, and made-up data of any size."""

from __future__ import annotations

import hashlib
import itertools
import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from torch.utils.data import DataLoader, Subset

from orchestrator.datasets.digits import DigitsDataModule, shift_images, split_indices
from orchestrator.datasets.synthetic import SyntheticDataModule
from orchestrator.models.convnet import ConvNet
from orchestrator.models.mlp import MLP
from orchestrator.system.processes import run

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "data" / "remote" / "files" / "md5"
SPLITS = ("train", "val", "test")

pytestmark = [
    # Lightning's advice for large data sets: right there, noise here.
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    # Lightning 2.6 asks torch 2.13 in a way that torch has deprecated.
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),
]


def tracked() -> dict[str, object]:
    """Return what Git knows of the digits: the only entry of data/digits.dvc."""
    (out,) = yaml.safe_load((ROOT / "data" / "digits.dvc").read_text())["outs"]
    return out


def stored(md5: str) -> bytes:
    return (STORE / md5[:2] / md5[2:]).read_bytes()


def listing() -> dict[str, str]:
    return {entry["relpath"]: entry["md5"] for entry in json.loads(stored(str(tracked()["md5"])))}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as a run sees them, in a folder with an unkind name."""
    folder = tmp_path_factory.mktemp("the digits' $view é\n")
    for name, md5 in listing().items():
        (folder / name).write_bytes(stored(md5))
    return folder


@pytest.fixture(scope="module")
def labels(digits: Path) -> np.ndarray:
    return np.load(digits / "labels.npy")


def trainer(**options) -> pl.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(accelerator="cpu", devices=1, enable_model_summary=False, **quiet, **options)


def everything(loader) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = zip(*loader, strict=True)
    return torch.cat(inputs), torch.cat(targets)


class Recorder(MLP):
    """Keeps every batch as the model saw it; `draws` numbers a step disturb the global generator."""

    def __init__(self, draws: int = 0) -> None:
        super().__init__()
        self.draws = draws
        self.seen: dict[str, list[torch.Tensor]] = {name: [] for name in SPLITS}

    def training_step(self, batch):
        torch.rand(self.draws)
        self.seen["train"].append(batch[0])
        return super().training_step(batch)

    def validation_step(self, batch):
        self.seen["val"].append(batch[0])

    def test_step(self, batch):
        self.seen["test"].append(batch[0])


class SameBatch(DigitsDataModule):
    """Trains on the same 64 images three times an epoch."""

    def train_dataloader(self):
        return DataLoader(Subset(self.splits["train"], list(range(64)) * 3), batch_size=64)


def recorded(data: DigitsDataModule, **options) -> dict[str, list[torch.Tensor]]:
    pl.seed_everything(1, verbose=False)
    model = Recorder(**options)
    once = trainer(max_epochs=1, num_sanity_val_steps=0)
    once.fit(model, data)
    once.test(model, data, verbose=False)
    return model.seen


def pixels(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


# --- the digits' data version


def test_the_bundled_remote_holds_the_tracked_bytes():
    out = tracked()
    assert hashlib.md5(stored(str(out["md5"]))).hexdigest() + ".dir" == out["md5"]
    contents = {name: stored(md5) for name, md5 in listing().items()}
    assert {name: hashlib.md5(data).hexdigest() for name, data in contents.items()} == listing()
    assert sorted(contents) == ["README.md", "images.npy", "labels.npy"]
    assert (len(contents), sum(map(len, contents.values()))) == (out["nfiles"], out["size"])


def test_a_fresh_clone_pulls_the_digits_without_a_network(tmp_path: Path, digits: Path):
    clone = tmp_path / "a clone's folder"
    clone.mkdir()
    run(["git", "init", "--quiet", str(clone)])
    ignored = shutil.ignore_patterns("cache", "tmp", "config.local", "digits")
    for folder in (".dvc", "data"):
        shutil.copytree(ROOT / folder, clone / folder, ignore=ignored)
    shutil.copy(ROOT / ".dvcignore", clone)
    home = tmp_path / "home"
    alone = {"HOME": str(home), "DVC_SITE_CACHE_DIR": str(home), "DVC_GLOBAL_CONFIG_DIR": str(home)}
    alone |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:1")
    run([sys.executable, "-m", "dvc", "pull", "--quiet"], cwd=clone, env=alone)
    for name in listing():
        assert (clone / "data" / "digits" / name).read_bytes() == (digits / name).read_bytes()
    untracked = run(["git", "status", "--short", "--untracked-files=all"], cwd=clone).decode()
    assert ".dvc/config" in untracked
    assert "data/digits/" not in untracked
    assert ".dvc/cache" not in untracked


def test_the_script_in_the_repository_makes_exactly_these_bytes(tmp_path: Path):
    runpy.run_path(str(ROOT / "data" / "make_digits.py"))["make"](tmp_path / "digits")
    made = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in (tmp_path / "digits").iterdir()}
    assert made == listing()


# --- the digits' splits


def test_splits_have_the_documented_sizes_and_share_no_sample(labels: np.ndarray):
    for seed in range(3):
        parts = split_indices(labels, seed)
        assert [len(parts[name]) for name in SPLITS] == [1079, 359, 359]
        assert sorted(np.concatenate(list(parts.values()))) == list(range(1797))


def test_every_class_is_split_alike(labels: np.ndarray):
    whole = np.bincount(labels)
    parts = split_indices(labels, 0)
    for name in ("val", "test"):
        held = np.bincount(labels[parts[name]])
        assert np.abs(held - 0.2 * whole).max() <= 0.5


def test_a_split_is_the_same_in_every_process_and_release(labels: np.ndarray):
    digests = {}
    for seed in (0, 1):
        parts = split_indices(labels, seed)
        text = json.dumps({name: parts[name].tolist() for name in SPLITS})
        digests[seed] = hashlib.sha256(text.encode()).hexdigest()[:16]
    # Golden: results are only comparable while these stand.
    assert digests == {0: "51f5366882461810", 1: "f6b9570d0a484768"}


def test_batches_are_scaled_images_with_class_numbers(digits: Path):
    data = DigitsDataModule(data_dir=str(digits), batch_size=100)
    data.setup("fit")
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    for loader, size in zip(loaders, (1079, 359, 359), strict=True):
        images, targets = everything(loader)
        assert (images.shape, images.dtype) == ((size, 1, 8, 8), torch.float32)
        assert (float(images.min()), float(images.max())) == (0.0, 1.0)
        assert targets.dtype == torch.int64
        assert sorted(set(targets.tolist())) == list(range(10))
    assert len(next(iter(loaders[0]))[1]) == 100


def test_images_keep_their_labels(digits: Path, labels: np.ndarray):
    images = np.load(digits / "images.npy").astype(np.float32) / 16
    truth = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    data = DigitsDataModule(data_dir=str(digits))
    data.setup("fit")
    found, targets = everything(data.train_dataloader())
    assert [truth[image] for image in pixels(found)] == targets.tolist()


@pytest.mark.parametrize("missing", ["images.npy", "labels.npy"])
def test_a_missing_file_is_named_with_its_remedy(tmp_path: Path, digits: Path, missing: str):
    for name in listing():
        if name != missing:
            shutil.copy(digits / name, tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        DigitsDataModule(data_dir=str(tmp_path)).setup("fit")
    assert str(tmp_path / missing) in str(caught.value)
    assert "dvc pull" in str(caught.value)
    assert not (tmp_path / missing).exists()


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("images.npy", np.zeros((1797, 64), np.uint8), "uint8 [1797, 64]"),
        ("images.npy", np.zeros((1797, 8, 8), np.float64), "float64 [1797, 8, 8]"),
        ("labels.npy", np.zeros(5, np.uint8), "uint8 [5], not uint8 [1797]"),
    ],
)
def test_arrays_of_another_shape_are_refused(tmp_path: Path, digits: Path, name: str, array, said: str):
    shutil.copytree(digits, tmp_path / "digits")
    np.save(tmp_path / "digits" / name, array)
    with pytest.raises(ValueError, match=name) as caught:
        DigitsDataModule(data_dir=str(tmp_path / "digits")).setup("fit")
    assert said in str(caught.value)


# --- augmentation


def test_a_shift_moves_by_at_most_a_pixel_in_all_nine_ways_and_fills_with_zeros():
    images = torch.zeros(500, 2, 8, 8)
    images[:, :, 3, 4] = 1.0
    images[:, :, 0, 0] = 2.0
    shifted = shift_images(images, torch.Generator().manual_seed(0))
    assert shifted.shape == images.shape
    assert torch.equal(shifted[:, 0], shifted[:, 1])
    middle, corner = ((shifted[:, 0] == value).nonzero()[:, 1:].tolist() for value in (1.0, 2.0))
    assert len(middle) == 500
    assert set(map(tuple, middle)) == set(itertools.product((2, 3, 4), (3, 4, 5)))
    assert set(map(tuple, corner)) == set(itertools.product((0, 1), (0, 1)))


def test_augmentation_changes_training_batches_only(digits: Path):
    plain, moved = (recorded(DigitsDataModule(data_dir=str(digits), augment=on)) for on in (False, True))
    for name in ("val", "test"):
        assert torch.equal(torch.cat(plain[name]), torch.cat(moved[name]))
    originals = set(pixels(torch.cat(plain["train"])))
    unmoved = originals & set(pixels(torch.cat(moved["train"])))
    assert len(unmoved) < len(originals) / 4  # one in nine stays where it is


def test_augmentation_depends_on_the_step_and_not_on_the_global_generator(digits: Path):
    """So a run that is resumed in the middle of an epoch shifts as the undisturbed run did."""
    data = SameBatch(data_dir=str(digits), augment=True)
    first, second, third = recorded(data)["train"]
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    again = recorded(data, draws=7)["train"]
    assert torch.equal(torch.cat(again), torch.cat([first, second, third]))


# --- what the models reach


def test_ten_epochs_of_the_convnet_reach_097_on_the_digits(digits: Path):
    pl.seed_everything(0, verbose=False)
    fit = trainer(max_epochs=10, num_sanity_val_steps=0)
    data = DigitsDataModule(data_dir=str(digits))
    model = ConvNet(lr=3e-3)
    fit.fit(model, data)
    assert fit.callback_metrics["val/acc"] >= 0.97
    (tested,) = fit.test(model, data, verbose=False)
    assert tested["test/acc"] >= 0.96


# --- made-up data


def test_synthetic_data_is_a_function_of_its_arguments():
    modules = (SyntheticDataModule(samples=40, seed=seed) for seed in (3, 3, 4))
    first, again, other = (pixels(everything(module.val_dataloader())[0]) for module in modules)
    assert first == again
    assert not set(first) & set(other)


def test_synthetic_splits_share_no_sample_and_have_the_documented_sizes():
    data = SyntheticDataModule(samples=103)
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    splits = [pixels(everything(loader)[0]) for loader in loaders]
    assert [len(split) for split in splits] == [103, 25, 25]
    assert len(set().union(*splits)) == 153


def test_synthetic_samples_do_not_change_with_the_size_of_the_data_set():
    small, large = (SyntheticDataModule(samples=size).train_dataloader().dataset for size in (5, 10**12))
    assert len(large) == 10**12
    for position in range(5):
        assert torch.equal(small[position][0], large[position][0])
        assert small[position][1] == large[position][1]
    with pytest.raises(IndexError):
        small[5]


@pytest.mark.parametrize(("shape", "classes"), [((1, 8, 8), 10), ([3, 4, 5], 2), ((7,), 3)])
def test_synthetic_batches_have_the_shape_and_the_classes_asked_for(shape, classes):
    data = SyntheticDataModule(samples=32, shape=shape, num_classes=classes, batch_size=8)
    inputs, targets = next(iter(data.train_dataloader()))
    assert (inputs.shape, inputs.dtype) == ((8, *shape), torch.float32)
    assert targets.dtype == torch.int64
    counts = torch.bincount(everything(data.train_dataloader())[1], minlength=classes)
    assert len(counts) == classes
    assert counts.max() - counts.min() <= 1


def test_a_model_learns_the_synthetic_data():
    pl.seed_everything(0, verbose=False)
    fit = trainer(max_epochs=5, num_sanity_val_steps=0)
    fit.fit(MLP(lr=3e-3), SyntheticDataModule())
    assert fit.callback_metrics["val/acc"] >= 0.9
