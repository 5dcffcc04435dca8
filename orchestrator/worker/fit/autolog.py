"""MLflow's autologging of Lightning, beside the run's own logger, which logs the same metrics.

`mlflow.pytorch.autolog()` adds a callback when `fit` is called. What it logs reaches the run as all of MLflow's fluent
calls do; its metrics would come twice, the second time with the number of the epoch in place of the step.
"""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

_MODULE = "mlflow.pytorch._lightning_autolog"


class _Nowhere:
    """What stands in for MLflow's `BatchMetricsLogger`."""

    def record_metrics(self, *_: object, **__: object) -> None: ...

    def flush(self) -> None: ...


class MetricsOnce(Callback):
    """Takes the metrics from MLflow's callback; its parameters, summary and model are kept."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning's connector sets it
            if type(callback).__module__ == _MODULE and hasattr(callback, "metrics_logger"):
                callback.metrics_logger = _Nowhere()
