"""The best run of an experiment -> a version of a registered model, once.

    wanted      finds the run in the records; pure, except that it checks whether the checkpoint exists
    register    logs its model and gives it a version, unless that is already done

`registrar`, a process with the run's frozen code, builds and loads the user's model; only MLflow is loaded here.
There is no lock: of two processes that create a version of the same run at the same moment, one deletes its own.
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
from orchestrator.system.extras import require
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
class Registration:
    """A registration to make: a run's checkpoint as a version of the model `name`.

    `tags` identify the run; `job` is the input of the registrar, except for the folder to write to.
    """

    name: str
    run: str
    experiment: TrackedExperiment
    description: str
    tags: Mapping[str, str]
    job: Mapping[str, object]
    import_path: tuple[str, ...]


def wanted(state: ExperimentState, *, model: str | None = None) -> Registration | None:
    """Return the registration to make now; None until all runs have ended, or if there is no best one.

    The model's name is `model`, or else comes from the experiment's last launch.
    """
    header = state.launches[-1].header
    name, objective = model or header.tracking.get("register"), tracking_notes.objective_of(header)
    if not name or objective is None or any(record.state.active for record in state.records.values()):
        return None
    found = tracking_notes.best(state.shown, objective)
    return _registration(state, str(name), *found) if found else None


def _registration(state: ExperimentState, name: str, record: Record, value: float) -> Registration | None:
    run, last = state.experiment.run(record.id), record.last
    kept = best_of(run, last.best) if last else None
    if last is None or last.claim is None or not kept:
        return None
    launch = state.launch(last.claim.launch)
    planned = read_planned_run(launch.paths, last.claim.index)
    code = tuple(state.experiment.python_path(record.code))
    examples = [attempt.example for n in record.history if listed((attempt := run.attempt(n.number)).example)]
    metric = str(last.best.get("metric"))
    return Registration(
        name=name,
        run=record.id,
        experiment=experiment_of(state.launches),
        import_path=code,
        description=f"best run {record.id[:8]} ({metric} {value:.6g})",
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
    """Return a config with the folder of the frozen project filled in."""
    if isinstance(node, dict):
        return {key: _placed(value, project) for key, value in node.items()}
    if isinstance(node, list):
        return [_placed(value, project) for value in node]
    return node.replace(PROJECT, project) if isinstance(node, str) else node


def _requirements(environment: Mapping[str, Any]) -> list[str]:
    """Return the packages that loading a model may need, for pip, without local version labels such as `+cpu`."""
    found = environment.get("distributions", {})
    return [f"{name}=={found[name].partition('+')[0]}" for name in _REQUIRED if name in found]


def register(registration: Registration, store: MlflowStore) -> str | None:
    """Log the model and give it a version; return a message, or None if it was registered already.

    Raises TrackingError if the store or the registrar fails; a model logged until then is used the next time.
    """
    from orchestrator.tracking.mlflow_model import Registry

    registry = Registry(store=store)
    if registry.version(registration.name, registration.tags) is not None:
        return None
    child = registry.child(registration.experiment, registration.tags)
    if child is None:
        raise TrackingError(
            f"run {registration.run} is not in MLflow",
            why="so it cannot be registered",
            fix="orch ui --once, then try again",
        )
    require("mlflow", "registering a model")
    with tempfile.TemporaryDirectory(prefix="orch-model-") as folder:
        version = registry.register(
            registration.name,
            child,
            registration.tags,
            lambda model: _save(registration, Path(folder) / "model", model),
        )
    return f"{registration.description} is version {version} of the registered model {registration.name}"


def _save(registration: Registration, folder: Path, model: Mapping[str, str]) -> Path:
    """Let the registrar write the model to a folder. `model` has MLflow's ids of the model and of its run."""
    job = {**registration.job, "folder": str(folder), "mlflow": dict(model)}
    paths = os.pathsep.join([*registration.import_path, *filter(None, [os.environ.get("PYTHONPATH")])])
    argv = python("-m", "orchestrator.registrar")  # its only name in code frozen before 0.2
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
            f"the model of {registration.description} cannot be registered",
            why=error.reason,
            fix="correct the cause: its code and checkpoint alone must rebuild the model; then `orch ui --once`",
        ) from error
    return folder
