"""A run's model in MLflow: logged with the run, and a version of a registered model. Created once only.

A complete logged model is found again by its tags, and so is a version. Only MlflowClient is used.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Before the import, which would start a thread that reports usage over the network.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from orchestrator.errors import TrackingError
from orchestrator.tracking.mlflow_store import MlflowStore
from orchestrator.tracking.upload import TrackedExperiment

_IDENTITY = ("orch.experiment", "orch.run", "orch.generation", "orch.history")
_NAME = "model"

Save = Callable[[Mapping[str, str]], Path]
"""Writes a model to a folder in MLflow's format, and returns it; takes MLflow's ids of the model and its run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """The models and versions of one store. Every method raises TrackingError if the store cannot be used."""

    store: MlflowStore

    @property
    def client(self) -> MlflowClient:
        return self.store.client

    def version(self, name: str, tags: Mapping[str, str]) -> str | None:
        """Return the version of a registered model that was created from a run; None if there is none."""
        with _errors(f"cannot look for versions of the model {name!r}"):
            found = self._versions(name, tags)
        return str(found[0].version) if found else None

    def child(self, experiment: TrackedExperiment, tags: Mapping[str, str]) -> Run | None:
        """Return the MLflow run of a run with these tags; None if there is none."""
        with _errors(f"cannot look for runs of {experiment.name!r}"):
            return self.store.child_of(experiment, tags)

    def register(self, name: str, run: Run, tags: Mapping[str, str], save: Save) -> str:
        """Log a run's model unless it is logged already, register it, and return the version."""
        with _errors(f"cannot register the model {name!r}"):
            logged = self._logged(run, tags) or self._log(run, tags, save)
            try:
                self.client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            made = self.client.create_model_version(  # `models:/ID` would be looked up where the fluent API points
                name, logged.artifact_location, run.info.run_id, tags=dict(tags), model_id=logged.model_id
            )
            first = self._versions(name, tags)[0]
            if str(first.version) != str(made.version):  # another process did the same at the same moment
                self.client.delete_model_version(name, str(made.version))
            return str(first.version)

    def _versions(self, name: str, tags: Mapping[str, str]) -> list[ModelVersion]:
        found = [v for v in self.client.search_model_versions(f"name = '{name}'") if _same(v.tags, tags)]
        return sorted(found, key=lambda version: int(version.version))

    def _logged(self, run: Run, tags: Mapping[str, str]) -> LoggedModel | None:
        where = f"source_run_id = '{run.info.run_id}'"
        found = self.client.search_logged_models([run.info.experiment_id], where)
        return next((m for m in found if m.status == LoggedModelStatus.READY and _same(m.tags, tags)), None)

    def _log(self, run: Run, tags: Mapping[str, str], save: Save) -> LoggedModel:
        made = self.client.create_logged_model(
            run.info.experiment_id, _NAME, source_run_id=run.info.run_id, tags=dict(tags)
        )
        try:
            folder = save({"model_id": made.model_id, "run_id": run.info.run_id})
            self.client.log_model_artifacts(made.model_id, str(folder))
        except BaseException:
            self.client.finalize_logged_model(made.model_id, LoggedModelStatus.FAILED)
            raise
        self.client.log_outputs(run.info.run_id, [LoggedModelOutput(made.model_id, 0)])
        return self.client.finalize_logged_model(made.model_id, LoggedModelStatus.READY)


def _same(found: Mapping[str, str] | None, wanted: Mapping[str, str]) -> bool:
    return found is not None and all(found.get(key) == wanted[key] for key in _IDENTITY)


@contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except (MlflowException, sqlite3.Error, OSError) as error:
        told = (str(error) or type(error).__name__).splitlines()[0]
        raise TrackingError(what, why=told, fix="correct the cause; `orch ui --once` tries again") from error
