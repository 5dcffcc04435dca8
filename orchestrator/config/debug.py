"""A composed experiment -> its debug run: a few batches on one node, under a name of its own. Pure.

Its limits are part of the frozen configuration, so its records describe exactly what ran. They also give it a run id
of its own: a debug run is never mistaken for the real one, and never makes the real one count as done. It belongs to
a separate experiment, without tracking, so that comparisons and the tracking store stay free of it.

Lightning's own `fast_dev_run` is not used: it turns off logger and checkpoints, which a debug run has to exercise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.config.experiment import ComposedExperiment, ComposedPoint

SUFFIX = "-debug"
_LONGEST_NAME = 100


def debugging(composed: ComposedExperiment, batches: int) -> ComposedExperiment:
    """Return an experiment of one epoch of `batches` batches each of training, validation, test and prediction."""
    return replace(
        composed,
        after=(),
        name=composed.name[: _LONGEST_NAME - len(SUFFIX)] + SUFFIX,
        tracking={"kind": "none"},
        points=tuple(_point(point, batches) for point in composed.points),
    )


def _point(point: ComposedPoint, batches: int) -> ComposedPoint:
    config = {**point.config, "trainer": _trainer(point.config["trainer"], batches)}
    if start := config.pop("resume_from", None):  # its epochs already count against the limit of one
        config["init_from"] = start
    return replace(point, config=config, resources=replace(point.resources, nodes=1, pack=None))


def _trainer(trainer: Mapping[str, object], batches: int) -> dict[str, object]:
    limits = {f"limit_{loop}_batches": batches for loop in ("train", "val", "test", "predict")}
    # Lightning refuses intervals and minima that exceed the limits; null leaves an argument out.
    freed = {key: None for key in ("val_check_interval", "min_epochs", "min_steps") if key in trainer}
    return {
        **trainer,
        **freed,
        **limits,
        "max_epochs": 1,
        "check_val_every_n_epoch": 1,
        "log_every_n_steps": 1,
    }
