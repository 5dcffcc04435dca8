"""MLflow's fluent calls (`mlflow.log_metric`, ...) in the process of a run, recorded with the run, without a server.

MLflow finds stores by the scheme of the tracking URI, among the entry points of installed packages; two functions here
are such entry points. They import the rest only when a store is used, since each `import mlflow` loads this module.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from orchestrator.tracking.experiment import RunExperiment

SCHEME = "orch"
_PREFIX, _URI, _REGISTRY = "MLFLOW_", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"
_DISTRIBUTION = "slurm-orchestrator"

_runs: list[RunExperiment] = []
"""The run of this process: at most one."""


@contextmanager
def fluent(run: RunExperiment) -> Iterator[None]:
    """Record with `run` what this process logs through MLflow's fluent calls, for the duration of the block.

    If the tracking URI was a server, it remains the model registry.
    """
    if not _is_installed():
        yield
        return
    earlier = {name: value for name, value in os.environ.items() if name.startswith(_PREFIX)}
    if registry := earlier.get(_REGISTRY) or earlier.get(_URI):
        os.environ[_REGISTRY] = registry
    os.environ[_URI] = f"{SCHEME}:{quote(run.log_dir)}"
    _runs.append(run)
    try:
        yield
    finally:
        _end_active_run()
        _runs.remove(run)
        for name in [name for name in os.environ if name.startswith(_PREFIX)]:  # `mlflow.set_experiment` sets some
            del os.environ[name]
        os.environ.update(earlier)


def current() -> RunExperiment | None:
    return _runs[-1] if _runs else None


def tracking_store(store_uri: str, **_: object) -> Any:
    from orchestrator.tracking.mlflow_plugin import RunStore

    return RunStore(store_uri, current)


def artifact_repository(artifact_uri: str, **_: object) -> Any:
    from orchestrator.tracking.mlflow_plugin import RunArtifactRepository

    return RunArtifactRepository(artifact_uri, current)


def _is_installed() -> bool:
    """Return whether MLflow can find the scheme: an installation older than this code lacks the entry points."""
    try:
        points = distribution(_DISTRIBUTION).entry_points
    except PackageNotFoundError:
        return False
    return any(point.group == "mlflow.tracking_store" and point.name == SCHEME for point in points)


def _end_active_run() -> None:
    """End the run that `mlflow.log_metric` began: at exit MLflow would look for it at another tracking URI."""
    mlflow: Any = sys.modules.get("mlflow")
    if mlflow and mlflow.get_tracking_uri().startswith(f"{SCHEME}:"):
        mlflow.flush_async_logging()
        while mlflow.active_run():
            mlflow.end_run()
