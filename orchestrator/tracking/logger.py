"""The Lightning Logger of a run: everything it is given goes to the spool, nothing to a server.

Only rank 0 writes. The folders it names are those of the attempt, so that Lightning's own defaults (a
ModelCheckpoint without `dirpath`) land where the attempt keeps its files.
"""

from __future__ import annotations

import logging
import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from orchestrator.errors import RequestError
from orchestrator.tracking.spool import SpoolWriter, is_inside

log = logging.getLogger(__name__)


class RunArtifacts:
    """What `self.logger.experiment` is: files for people to look at, kept beside the run.

    `path` is relative to the run's artifacts, such as `plots/confusion.png`; logging it again replaces it.
    A disk that refuses the file is a warning, not the end of the training.
    """

    def __init__(self, writer: SpoolWriter, folder: Path) -> None:
        self._writer, self._folder = writer, folder

    def log_text(self, text: str, path: str) -> None:
        self._save(path, lambda file: file.write_text(text, encoding="utf-8", errors="backslashreplace"))

    def log_figure(self, figure: Any, path: str) -> None:
        """Save a matplotlib figure (the suffix says how) or a plotly one (as `.html`)."""
        self._save(path, figure.savefig if hasattr(figure, "savefig") else figure.write_html)

    def log_image(self, image: Any, path: str) -> None:
        """Save an image: PIL, an array (height, width[, channels]) or a tensor (channels, height, width).

        Integers are 0..255, floats 0..1.
        """
        self._save(path, _picture(image).save)

    def log_artifact(self, file: Path | str, path: str | None = None) -> None:
        """Save a copy of a file, under its own name if no `path` is given."""
        content = Path(file).read_bytes()
        self._save(path or Path(file).name, lambda target: target.write_bytes(content))

    def _save(self, path: str, write: Any) -> None:
        target = self._folder / _checked(path)
        partial = target.with_name(f".{target.stem}.partial{target.suffix}")  # savefig reads the suffix
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            write(partial)
            partial.replace(target)
        except OSError as error:
            log.warning("artifact %s is not saved: %s", path, error)
        else:
            folder = PurePosixPath(path).parent
            self._writer.artifact(target, "" if folder == PurePosixPath() else str(folder))


class SpoolLogger(Logger):
    """Append what Lightning logs to an attempt's spool; artifacts go to the folder `artifacts`."""

    def __init__(self, writer: SpoolWriter, artifacts: Path) -> None:
        super().__init__()
        self._writer = writer
        self._experiment = RunArtifacts(writer, artifacts)
        self._calls_without_step = 0

    @property
    @rank_zero_experiment
    def experiment(self) -> RunArtifacts:
        return self._experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append metrics. Calls without a step are numbered, so that none hides another."""
        self._writer.metrics(metrics, self._step(step))

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        self._writer.params(vars(params) if isinstance(params, Namespace) else params)

    @rank_zero_only
    def log_tags(self, tags: Mapping[str, object]) -> None:
        self._writer.tags(tags)

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:  # noqa: ARG002 - Lightning's signature
        """Force the spool to the disk: a run that goes on from the checkpoint has its metrics up to there."""
        self._writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:  # noqa: ARG002 - Lightning's signature
        """Flush only: the writer belongs to the worker, which may fit, test and log more."""
        self._writer.flush()

    # Lightning joins save_dir/name/version/checkpoints: with empty names that is the attempt's own folder.
    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self._writer.path.parent)

    @property
    def root_dir(self) -> str:
        return self.save_dir

    @property
    def log_dir(self) -> str:
        return self.save_dir

    def _step(self, step: float | None) -> int:
        if step is not None and math.isfinite(step):
            return int(step)  # `self.log("step", x)` makes Lightning pass a float
        self._calls_without_step += 1
        return self._calls_without_step - 1


def _checked(path: str) -> str:
    if not PurePosixPath(path).name or not is_inside(path):
        raise RequestError(
            f"{path!r} is no place for an artifact",
            why="it is relative to the run's artifacts and stays inside them",
            fix="use a path such as 'plots/confusion.png'",
        )
    return path


def _picture(image: Any) -> Any:
    if hasattr(image, "save"):
        return image
    import numpy as np  # noqa: PLC0415 - only runs that log images need them
    from PIL import Image  # noqa: PLC0415

    is_tensor = hasattr(image, "detach")
    pixels = np.asarray(image.detach().cpu() if is_tensor else image)
    if is_tensor and pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.dtype.kind == "f":
        pixels = np.clip(np.nan_to_num(pixels), 0.0, 1.0) * 255
    return Image.fromarray(pixels.astype(np.uint8))
