"""The tracking store of an experiment, and the calls that bring it up to date. MLflow is imported when used."""

from __future__ import annotations

import getpass
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.clusters import observers
from orchestrator.errors import ConfigError, OrchError, StateError, TrackingError
from orchestrator.layout import ExperimentPaths, cache_dir
from orchestrator.project import Project
from orchestrator.records.experiment import ExperimentState, read_experiment
from orchestrator.records.launches import read_launch
from orchestrator.records.ownership import require
from orchestrator.records.record import RunState
from orchestrator.system.files import check_private, doubt, listed, make_private
from orchestrator.system.processes import python, start_detached

if TYPE_CHECKING:
    from orchestrator.tracking import Report
    from orchestrator.tracking.mlflow_store import MlflowStore

_log = logging.getLogger(__name__)


def sync(project: Project, name: str) -> Report:
    """Bring an experiment's tracking store up to date with its runs' own records and spools.

    Raises StateError if the runs may only be read.
    """
    from orchestrator.tracking.view import tracked

    state = _own_records(project, name)
    return store_of(project, name).sync(tracked(state))


def store_of(project: Project, name: str) -> MlflowStore:
    """Return the tracking store of an experiment. Raises TrackingError if it cannot be used."""
    from orchestrator.tracking.mlflow_store import MlflowStore

    if not listed(project.runs.experiment(name).path / "launches"):
        raise TrackingError(f"there is no experiment {name}", fix="orch status lists the experiments")
    uri = server_of(project, name)
    if uri:
        return MlflowStore.server(uri, project.runs.experiment(name).tracking(uri))
    folder = own_store(project)
    # If the database is not beside the runs, artifacts stay there, one folder per machine: checkpoints are hard links.
    beside = None if folder == project.runs.mlflow else project.runs.mlflow / socket.gethostname() / "artifacts"
    return MlflowStore.embedded(folder, beside)


def own_store(project: Project) -> Path:
    """Return the folder of the embedded store. Raises StateError if it is not this user's alone, or is a link."""
    store = project.tracking_store
    make_private(store)
    if why := doubt(store, os.getuid()):
        raise StateError(
            f"the tracking store {store} cannot be used",
            why=why,
            fix="ask its owner, or move it away: `orch ui` rebuilds it from the runs",
        )
    if store != project.runs.mlflow:
        check_private(store.parent)
    return store


def server_of(project: Project, name: str) -> str | None:
    """Return the address of the tracking server of an experiment's latest launch; None if it has none."""
    tracking = options_of(project.runs.experiment(name))
    return str(tracking["uri"]) if tracking.get("kind") == "server" else None


def options_of(paths: ExperimentPaths) -> Mapping[str, object]:
    """Return the `tracking:` section of an experiment's latest launch; empty if it has none."""
    launches = paths.launches()
    found: Mapping[str, object] = read_launch(launches[-1]).header.tracking if launches else {}
    return found


def open_in_store(project: Project, name: str) -> bool:
    """Return whether cancelled runs still seem to wait in a queue: their status in the store may yet change."""
    state = _own_records(project, name)
    cancelled = {launch.number: launch.paths.cancelled for launch in state.launches}
    waiting = [r for r in state.records.values() if r.last is not None and r.state is RunState.QUEUED]
    return any(listed(cancelled[record.task[0]] / record.id) for record in waiting)


def register(project: Project, name: str, *, model: str | None = None) -> str | None:
    """Register the best run's model if the experiment wants it, all runs have ended, and it is not registered yet.

    `model` requests it even if no launch did. Returns a message. The model is built and loaded in a separate process,
    with the run's own code. Raises TrackingError if that fails.
    """
    from orchestrator.tracking.registry.registering import register as act
    from orchestrator.tracking.registry.registering import wanted

    asked = model or options_of(project.runs.experiment(name)).get("register")
    registration = wanted(_own_records(project, name), model=model) if asked else None
    return act(registration, store_of(project, name)) if registration else None


def _own_records(project: Project, name: str) -> ExperimentState:
    """Return what is known of an experiment. Raises StateError if the runs may only be read."""
    state = read_experiment(project.runs.experiment(name), observers())
    require(state.experiment, state.launches)
    return state


def addressed(options: Mapping[str, object], project: Project, name: str) -> Mapping[str, object]:
    """Return a `tracking:` section with the server's address and the experiment's name on it. Raises ConfigError."""
    from orchestrator.config.schema import tracking as checked

    if options["kind"] != "server":
        return options
    uri = options["uri"] or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ConfigError(
            "tracking.uri is not set",
            why="nor is MLFLOW_TRACKING_URI, so there is no server to send to",
            fix="tracking.uri=http://HOST:5000, or tracking=embedded",
        )
    own = f"{getpass.getuser()}/{project.folder.name}/{name}"
    return checked({**options, "uri": uri, "experiment": options["experiment"] or own})


def sync_in_background(project: Project, experiment: ExperimentPaths) -> None:
    """Start a process that removes the mark and then syncs, so that it includes all runs that ended before."""
    argv = python("-m", "orchestrator.tracking.sidecar", str(project.runs.path), experiment.name)
    try:
        experiment.unsynced.touch(mode=0o600)
        make_private(cache_dir())
        start_detached(argv, log=cache_dir() / "sync.log")
    except (OSError, OrchError) as error:
        _log.info("not synced: %s", error)
