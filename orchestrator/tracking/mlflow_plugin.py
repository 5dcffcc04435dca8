"""MLflow's tracking store and artifact repository of the run in this process: logged values go to the spool.

There is one run, even if code creates or starts more: metrics, parameters and tags are appended to its spool, files
are saved among its artifacts. Runs with other ids are looked up where the model registry is.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import (
    Experiment,
    LifecycleStage,
    LoggedModel,
    Metric,
    Param,
    Run,
    RunData,
    RunInfo,
    RunStatus,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.tracking.abstract_store import AbstractStore

from orchestrator.layout import AttemptPaths
from orchestrator.tracking.experiment import RunExperiment
from orchestrator.tracking.fields import flatten
from orchestrator.tracking.spool import Metrics, Params, SpoolWriter, Tags, read

log = logging.getLogger(__name__)

Current = Callable[[], RunExperiment | None]
"""Returns the run of this process."""


class RunStore(AbstractStore):
    """The run of this process as MLflow's tracking store. In a process started by a run, it stores nothing."""

    def __init__(self, uri: str, current: Current) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in MLflow
        self._models: dict[str, LoggedModel] = {}
        self._attempt = AttemptPaths(Path(unquote(urlsplit(uri).path)))
        self._scheme, self._current = urlsplit(uri).scheme, current
        if current() is None:
            log.warning("values that this process logs to MLflow are not kept: it is not the run's own process")

    @property
    def _experiment(self) -> RunExperiment:
        return self._current() or RunExperiment(SpoolWriter(Path(os.devnull)), self._attempt)

    # --- the run --------------------------------------------------------------------------------------------

    def create_run(self, experiment_id: str, user_id: str, start_time: int, tags: list[RunTag], run_name: str) -> Run:
        """Return the only run. Tags set by MLflow itself are left out: they describe who started the process."""
        self.log_batch("", [], [], [tag for tag in tags if not tag.key.startswith("mlflow.")])
        return self._run()

    def get_run(self, run_id: str) -> Run:
        registry = os.environ.get("MLFLOW_REGISTRY_URI")
        if run_id == self._experiment.run_id or not registry:
            return self._run()
        return MlflowClient(registry).get_run(run_id)

    def update_run_info(self, run_id: str, run_status: Any, end_time: int | None, run_name: str | None) -> RunInfo:
        """Change nothing: the run's state and name come from its record."""
        return self._run().info

    def log_batch(
        self, run_id: str, metrics: Iterable[Metric], params: Iterable[Param], tags: Iterable[RunTag]
    ) -> None:
        if self._experiment.is_kept:
            self._experiment.log_batch(metrics=metrics, params=params, tags=tags)

    def get_metric_history(
        self, run_id: str, metric_key: str, max_results: int | None = None, page_token: str | None = None
    ) -> PagedList[Metric]:
        return PagedList([metric for metric in self._metrics() if metric.key == metric_key], None)

    def _search_runs(self, *_: object) -> tuple[list[Run], None]:
        return [self._run()], None

    def _run(self) -> Run:
        run = self._experiment
        info = RunInfo(
            run.run_id,
            run.experiment_id,
            "",
            RunStatus.to_string(RunStatus.RUNNING),
            0,
            None,
            LifecycleStage.ACTIVE,
            f"{self._scheme}:{quote(str(run.artifacts))}",
            run.run_id,
        )
        latest = {metric.key: metric for metric in self._metrics()}
        records = [record for record, _ in read(self._attempt.metrics) if isinstance(record, Params | Tags)]
        params = {k: v for each in records if isinstance(each, Params) for k, v in flatten(each.values).items()}
        tags = {key: value for each in records if isinstance(each, Tags) for key, value in each.values.items()}
        data = RunData(
            list(latest.values()), [Param(*each) for each in params.items()], [RunTag(*each) for each in tags.items()]
        )
        return Run(info, data)

    def _metrics(self) -> Sequence[Metric]:
        records = (record for record, _ in read(self._attempt.metrics) if isinstance(record, Metrics))
        # Of a metric without a model MLflow logs a copy, when a model is logged: here that would be the metric again.
        copied = {"model_id": ""}
        return [
            Metric(key, each.values[key], each.time_ms, each.step, **copied) for each in records for key in each.values
        ]

    # --- its experiment -------------------------------------------------------------------------------------

    def get_experiment(self, experiment_id: str) -> Experiment:
        name = self._experiment.experiment_id
        return Experiment(name, name, self._run().info.artifact_uri or "", LifecycleStage.ACTIVE)

    get_experiment_by_name = get_experiment

    def create_experiment(self, name: str, artifact_location: str, tags: object) -> str:
        return self._experiment.experiment_id

    def search_experiments(self, *_: object, **__: object) -> PagedList[Experiment]:
        return PagedList([self.get_experiment("")], None)

    def _changes_nothing(self, *_: object, **__: object) -> None:
        """Change nothing: the state of the run and its experiment comes from the record."""

    rename_experiment = delete_experiment = restore_experiment = set_experiment_tag = _changes_nothing
    delete_run = restore_run = link_traces_to_run = delete_tag = _changes_nothing

    # --- its models: folders of the artifacts -----------------------------------------------------------------

    def create_logged_model(self, experiment_id: str, name: str | None = None, *_: object, **__: object) -> LoggedModel:
        info, name, now = self._run().info, name or "model", time.time_ns() // 1_000_000
        place = f"{info.artifact_uri}/models/{quote(name)}"
        made = LoggedModel(info.experiment_id, f"m-{name}", name, place, now, now, source_run_id=info.run_id)
        self._models[made.model_id] = made
        return made

    def get_logged_model(self, model_id: str, allow_deleted: bool = False) -> LoggedModel:
        if model_id not in self._models:
            raise MlflowException(f"the run has no model {model_id!r}", RESOURCE_DOES_NOT_EXIST)
        return self._models[model_id]

    def finalize_logged_model(self, model_id: str, status: object) -> LoggedModel:
        return self.get_logged_model(model_id)

    set_logged_model_tags = log_logged_model_params = _changes_nothing
    # The run's data version is in its record.
    log_inputs = log_outputs = record_logged_model = _changes_nothing


class RunArtifactRepository(LocalArtifactRepository):
    """The artifacts of the run in this process."""

    def __init__(self, artifact_uri: str, current: Current) -> None:
        path = urlsplit(artifact_uri).path
        super().__init__(f"file://{path}")
        self._root, self._current = Path(unquote(path)), current

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        if run := self._current():
            run.log_artifact(Path(local_file), artifact_path=self._folder(run, artifact_path))

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        if run := self._current():
            run.log_artifacts(Path(local_dir), self._folder(run, artifact_path))

    def _folder(self, run: RunExperiment, folder: str | None) -> str:
        return str(PurePosixPath(self._root.relative_to(run.artifacts).as_posix()) / (folder or ""))
