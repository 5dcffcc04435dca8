"""The Lightning Logger of a run: it writes everything to the spool, and nothing to a server.

Only rank 0 writes. Its folders are those of the attempt, so that Lightning's own defaults (a ModelCheckpoint
without `dirpath`) write among the attempt's files.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from orchestrator.layout import AttemptPaths
from orchestrator.tracking.experiment import RunExperiment
from orchestrator.tracking.spool import SpoolWriter


class SpoolLogger(Logger):
    """Append what Lightning logs to an attempt's spool; on rank 0, `experiment` is `kept`.

    Attributes that it does not have are looked up on the experiment: `self.logger.add_scalar`.
    """

    def __init__(self, writer: SpoolWriter, attempt: AttemptPaths) -> None:
        super().__init__()
        self._writer = writer
        self._folder = str(attempt.path)
        self.kept = RunExperiment(writer, attempt)
        self._calls_without_step = 0

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.experiment, name)

    @property
    @rank_zero_experiment
    def experiment(self) -> RunExperiment:
        return self.kept

    @property
    def run_id(self) -> str:
        return self.kept.run_id

    @property
    def experiment_id(self) -> str:
        return self.kept.experiment_id

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append metrics. Calls without a step are numbered, so that none replaces another."""
        self.kept.step = self._step(step)
        self._writer.metrics(metrics, self.kept.step)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, object] | Namespace, *_: object, **__: object) -> None:
        self._writer.params(vars(params) if isinstance(params, Namespace) else params)

    @rank_zero_only
    def log_tags(self, tags: Mapping[str, object]) -> None:
        self._writer.tags(tags)

    # The three that modules written for WandbLogger call.
    @rank_zero_only
    def log_image(self, key: str, images: object, step: int | None = None, **_: object) -> None:
        self.kept.add_pictures(key, images, step)

    @rank_zero_only
    def log_text(
        self, key: str, columns: object = None, data: object = None, dataframe: object = None, step: int | None = None
    ) -> None:
        """Save a text, or a table of texts."""
        if isinstance(columns, str):
            self.kept.add_text(key, columns, step)
        else:
            self.log_table(key, columns, data, dataframe, step)

    @rank_zero_only
    def log_table(
        self, key: str, columns: object = None, data: object = None, dataframe: object = None, step: int | None = None
    ) -> None:
        self.kept.add_table(key, columns, data, dataframe, step)

    def metrics_bytes(self) -> int:
        """Return the size of the metric log."""
        return self._writer.size()

    def force(self) -> bool:
        """Force the metric log to the disk; return whether it is there."""
        return self._writer.flush()

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:  # noqa: ARG002 - Lightning's signature
        """Force the spool to the disk: a run that resumes from the checkpoint has its metrics up to that point."""
        self._writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:  # noqa: ARG002 - Lightning's signature
        """Flush only: the writer belongs to the worker, which may fit, test and log more."""
        self._writer.flush()

    # Lightning joins save_dir/name/version/checkpoints: with empty names this is the attempt's own folder.
    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return self._folder

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
