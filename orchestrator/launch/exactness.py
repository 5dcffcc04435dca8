"""Why a run that is interrupted may not resume with the bits of an undisturbed one, as far as its configuration says.

Pure. The worker adds what only the training knows; docs/explanation/exactness.md has the whole list.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from orchestrator.spec import EVALUATIONS, Config, Resources

TESTED = ((2, 6),)
"""Major and minor versions of Lightning that the tests have run with: others may have other private names."""
_CALLBACKS: Mapping[str, str] = {
    "Timer": "the callback Timer reads the clock",
    "StochasticWeightAveraging": "StochasticWeightAveraging prepares itself when an epoch begins",
    "LearningRateFinder": "LearningRateFinder reads data that is not counted",
    "BatchSizeFinder": "BatchSizeFinder reads data that is not counted",
}


def obstacles(config: Config, resources: Resources, lightning: str) -> list[str]:
    """Return what keeps a run of this configuration from resuming exactly, with that version of Lightning."""
    if config.get("task") in EVALUATIONS:
        return []
    trainer: Mapping[str, Any] = config["trainer"]
    found = [version] if (version := version_obstacle(lightning)) else []
    if resources.gpus_per_node and not trainer.get("deterministic"):
        found.append("on a GPU two runs differ unless trainer.deterministic is true")
    if not isinstance(trainer.get("val_check_interval") or 0, int | float):
        found.append("trainer.val_check_interval is a time")
    names = [str(node.get("_target_", "")) for node in (trainer.get("callbacks") or {}).values() if node]
    return found + [why for name in names if (why := _CALLBACKS.get(name.rpartition(".")[2]))]


def version_obstacle(version: str) -> str:
    """Return why a version of Lightning does not resume exactly, or nothing."""
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) in TESTED:
        return ""
    tested = ", ".join(f"{major}.{minor}" for major, minor in TESTED)
    return f"runs are not resumed exactly with Lightning {version}: that is tested with {tested}"


def installed_lightning() -> str:
    """Return the version of Lightning in this environment."""
    return metadata.version("pytorch-lightning")
