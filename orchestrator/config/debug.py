"""A composed experiment -> its debug run: a few batches on one node, under a name of its own. Pure.

Its limits are part of the configuration that is frozen, so what runs is what stands in its records. They make it
another run than the experiment's: no short run is ever taken for the real one, nor the real one for done. It lies
in an experiment of its own, without tracking, so that comparisons and the tracking store stay free of it.

Lightning's own `fast_dev_run` is not used: it takes away logger and checkpoints, and with them half of what a
debug run is to try.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from orchestrator.config.experiment import ComposedExperiment, ComposedPoint

SUFFIX = "-debug"
_LONGEST_NAME = 100


def debugging(composed: ComposedExperiment, batches: int) -> ComposedExperiment:
    """Return an experiment of one epoch of so many batches of training, validation, test and prediction."""
    return replace(
        composed,
        after=(),
        name=composed.name[: _LONGEST_NAME - len(SUFFIX)] + SUFFIX,
        tracking={"kind": "none"},
        points=tuple(_point(point, batches) for point in composed.points),
    )


def _point(point: ComposedPoint, batches: int) -> ComposedPoint:
    config = {**point.config, "trainer": _trainer(point.config["trainer"], batches)}
    if start := config.pop("resume_from", None):  # it has as many epochs behind it as it may have
        config["init_from"] = start
    return replace(point, config=config, resources=replace(point.resources, nodes=1, pack=None))


def _trainer(trainer: Mapping[str, object], batches: int) -> dict[str, object]:
    limits = {f"limit_{loop}_batches": batches for loop in ("train", "val", "test", "predict")}
    # Lightning refuses intervals and minima that the limits leave no room for; null leaves an argument out.
    freed = {key: None for key in ("val_check_interval", "min_epochs", "min_steps") if key in trainer}
    return {
        **trainer,
        **freed,
        **limits,
        "max_epochs": 1,
        "check_val_every_n_epoch": 1,
        "log_every_n_steps": 1,
    }
