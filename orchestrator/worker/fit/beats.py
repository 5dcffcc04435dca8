"""A beat at each batch, so that the watcher of the node sees that a rank gets on."""

from __future__ import annotations

from pytorch_lightning.callbacks import Callback

from orchestrator.worker.monitor import heartbeat


class Beats(Callback):
    """Beats at the end of each batch, of whatever loop, and at both ends of an epoch and a validation."""

    def _beat(self, *_: object, **__: object) -> None:
        heartbeat.beat()

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _beat
    on_train_epoch_start = on_train_epoch_end = on_validation_start = on_validation_end = _beat
