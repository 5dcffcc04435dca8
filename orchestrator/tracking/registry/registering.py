"""The best run of an experiment -> a version of a registered model, once.

    wanted      which run that is, by the records; pure but for looking whether its checkpoint is there
    register    logs its model and gives it a version, unless that was done before

The user's model is built and loaded by `registrar`, a process with the run's frozen code; here only MLflow is
loaded. Nothing is locked: who makes a second version of the same run at the same moment takes his own back.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import TrackingError
from orchestrator.records.checkpoints import best_of
from orchestrator.records.experiment import ExperimentState
from orchestrator.records.launches import read_run_config
from orchestrator.records.planned import read_planned_run
from orchestrator.records.record import Record
from orchestrator.spec import PROJECT
from orchestrator.system.files import listed
from orchestrator.system.processes import NEUTRAL, ProgramError, python, run
from orchestrator.tracking import TrackedExperiment
from orchestrator.tracking import notes as tracking_notes
from orchestrator.tracking.view import experiment_of

if TYPE_CHECKING:
    from orchestrator.tracking.mlflow_store import MlflowStore

_SECONDS = 1_800.0
_REQUIRED = ("torch", "pytorch-lightning", "lightning", "torchmetrics", "numpy", "cloudpickle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be registered: a run's checkpoint as a version of the model `name`.

    `tags` tell the run; `job` is what the registrar is told, but for where to write.
    """

    name: str
    run: str
    experiment: TrackedExperiment
    told: str
    tags: Mapping[str, str]
    job: Mapping[str, object]
    import_path: tuple[str, ...]


def wanted(state: ExperimentState, *, model: str | None = None) -> Wish | None:
    """Return what an experiment wants registered now: None before all its runs have ended, or without a best one.

    As which model, its last launch says, or `model`.
    """
    header = state.launches[-1].header
    name, objective = model or header.tracking.get("register"), tracking_notes.objective_of(header)
    if not name or objective is None or any(record.state.active for record in state.records.values()):
        return None
    found = tracking_notes.best(state.shown, objective)
    return _wish(state, str(name), *found) if found else None


def _wish(state: ExperimentState, name: str, record: Record, value: float) -> Wish | None:
    run, last = state.experiment.run(record.id), record.last
    kept = best_of(run, last.best) if last else None
    if last is None or last.claim is None or not kept:
        return None
    launch = state.launch(last.claim.launch)
    planned = read_planned_run(launch.paths, last.claim.index)
    code = tuple(state.experiment.python_path(record.code))
    examples = [attempt.example for n in record.history if listed((attempt := run.attempt(n.number)).example)]
    metric = str(last.best.get("metric"))
    return Wish(
        name=name,
        run=record.id,
        experiment=experiment_of(state.launches),
        import_path=code,
        told=f"best run {record.id[:8]} ({metric} {value:.6g})",
        tags={
            "orch.run": record.id,
            "orch.generation": str(last.claim.generation),
            "orch.history": str(last.claim.history),
            "orch.experiment": state.experiment.name,
            "orch.metric": f"{metric}={value!r}",
        },
        job={
            "model": _placed(read_run_config(launch.paths, planned, record.given)["model"], code[0]),
            "checkpoint": str(kept),
            "example": str(examples[0]) if examples else None,
            "code": list(code),
            "requirements": _requirements(launch.header.environment),
        },
    )


def _placed(node: object, project: str) -> object:
    """Return a config with the folder of the frozen project in it."""
    if isinstance(node, dict):
        return {key: _placed(value, project) for key, value in node.items()}
    if isinstance(node, list):
        return [_placed(value, project) for value in node]
    return node.replace(PROJECT, project) if isinstance(node, str) else node


def _requirements(environment: Mapping[str, Any]) -> list[str]:
    """Return what a model may need to be loaded, as pip reads it: without what only one index knows, such as `+cpu`."""
    found = environment.get("distributions", {})
    return [f"{name}=={found[name].partition('+')[0]}" for name in _REQUIRED if name in found]


def register(wish: Wish, store: MlflowStore) -> str | None:
    """Log the model and give it a version; return what was done, or None if it had been done.

    Raises TrackingError if the store or the registrar fails; what was logged by then is used the next time.
    """
    from orchestrator.tracking.mlflow_model import Registry

    registry = Registry(store=store)
    if registry.version(wish.name, wish.tags) is not None:
        return None
    child = registry.child(wish.experiment, wish.tags)
    if child is None:
        raise TrackingError(
            f"run {wish.run} is not in MLflow", why="so it cannot be registered", fix="orch ui --once, then look again"
        )
    with tempfile.TemporaryDirectory(prefix="orch-model-") as folder:
        version = registry.register(
            wish.name, child, wish.tags, lambda model: _save(wish, Path(folder) / "model", model)
        )
    return f"{wish.told} is version {version} of the registered model {wish.name}"


def _save(wish: Wish, folder: Path, model: Mapping[str, str]) -> Path:
    """Have the registrar write the model to a folder. `model` are MLflow's ids of it and of its run."""
    job = {**wish.job, "folder": str(folder), "mlflow": dict(model)}
    paths = os.pathsep.join([*wish.import_path, *filter(None, [os.environ.get("PYTHONPATH")])])
    argv = python("-m", "orchestrator.registrar")  # in code frozen before 0.2 it has no other name
    environment = {
        "PYTHONPATH": paths,
        "PYTHONSAFEPATH": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    try:
        run(argv, cwd=NEUTRAL, stdin=json.dumps(job).encode(), env=environment, timeout_s=_SECONDS)
    except ProgramError as error:
        raise TrackingError(
            f"the model of {wish.told} cannot be registered",
            why=error.reason,
            fix="its code and its checkpoint must make the model again, by themselves; then `orch ui --once`",
        ) from error
    return folder
