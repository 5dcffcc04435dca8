"""Read an experiment, and do its pending work: the only changes that commands which read make.

Pending runs are submitted as far as the queue has free places. Attempts that ended without a final event are recorded.
A background process brings the tracking store up to date. The code for these is imported only if there is such work:
mostly there is none, and reading records takes milliseconds. If the runs are not this user's to act on
(`records/ownership.py`), a refresh changes nothing.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from orchestrator.clusters import observers
from orchestrator.errors import RequestError
from orchestrator.layout import EXPERIMENT_NAME, ExperimentPaths
from orchestrator.project import Project
from orchestrator.records.attempts import read_marks
from orchestrator.records.experiment import ExperimentReader, ExperimentState, read_experiment
from orchestrator.records.orphans import record_orphans
from orchestrator.records.ownership import why_read_only
from orchestrator.records.record import Record, RunState

_RETRY_SECONDS = 60.0


def read(project: Project, name: str) -> ExperimentState:
    """Return all that is known about an experiment; an experiment that was never launched has no records."""
    return reader(project, name)()


def reader(project: Project, name: str) -> Callable[[], ExperimentState]:
    """Return a function that reads an experiment at each call: the second call costs much less than the first."""
    if not EXPERIMENT_NAME.fullmatch(name):
        raise RequestError(f"{name!r} is not the name of an experiment", fix="orch status lists the experiments")
    known, clusters = ExperimentReader(project.runs.experiment(name)), observers()
    return lambda: known.read(clusters)


def refresh(project: Project, name: str) -> ExperimentState:
    """Do the experiment's pending work, then return what `read` returns."""
    return refresher(project, name)()


def refresher(project: Project, name: str) -> Callable[[], ExperimentState]:
    """Return a function that refreshes an experiment at each call, as `reader` reads one."""
    read = reader(project, name)

    def again() -> ExperimentState:
        state = read()
        if why := why_read_only(state.experiment, state.launches):
            return replace(state, read_only=why)
        if _submit_pending(state):
            state = read()
        _see_to(project, state)
        return read() if _relaunch(state) else state

    return again


def count_states(project: Project, experiment: ExperimentPaths) -> dict[str, int]:
    """Return how many of an experiment's started runs are in each state. Only running ones are read."""
    marked = {run_id: state for run_id, (_, state) in read_marks(experiment).items()}
    running = {run_id for run_id, state in marked.items() if state == RunState.RUNNING}
    if running:
        experiment_state = read_experiment(experiment, observers(), only=running)
        if not why_read_only(experiment, experiment_state.launches):
            _see_to(project, experiment_state)
        marked |= {record.id: record.state.value for record in experiment_state.records.values() if record.last}
    found = Counter(marked.values())
    return {state: found[state] for state in sorted(found)}


def _submit_pending(state: ExperimentState) -> bool:
    """Submit pending runs of the experiment's launches, as far as places are free; return whether any was submitted."""
    if not any(record.awaits_cluster for record in state.records.values()):
        return False
    from orchestrator.launch.pending import submit_pending

    return submit_pending(state, observers()) > 0


def _relaunch(state: ExperimentState) -> bool:
    """Launch runs again whose jobs could not be requeued, if their policies allow that; return whether any was."""
    kinds = {launch.header.cluster_kind for launch in state.launches}
    interrupted = any(record.state is RunState.INTERRUPTED for record in state.records.values())
    if "slurm" not in kinds or not interrupted:
        return False
    from orchestrator.launch.relaunch import relaunch

    return relaunch(state, observers()) > 0


def _see_to(project: Project, state: ExperimentState) -> None:
    orphans = record_orphans(state)
    if state.launches:
        _apply_safeguards(state, orphans)
    tracked = bool(state.launches) and state.launches[-1].header.tracking_kind != "none"
    if tracked and _sync_is_due(state.experiment.unsynced, news=bool(orphans)):
        from orchestrator.tracking.stores import sync_in_background

        sync_in_background(project, state.experiment)


def _apply_safeguards(state: ExperimentState, orphans: Iterable[Record]) -> None:
    """Count failures that left no final event against their launch's limit, and notify."""
    failed = [(record, record.failure) for record in orphans if record.failure]
    notifying = [launch for launch in state.launches if launch.header.launch.notify]
    if not (failed or notifying):
        return
    from orchestrator.launch import failure_limit, notification

    for record, failure in failed:
        launch = state.launch(record.task[0])
        if stopped := failure_limit.brake_after(launch.paths, record.id, failure.signature):
            observers()[launch.header.cluster_kind].cancel(launch.paths, stopped)
        notification.notify(launch.paths, notification.Event.FAILED, run_id=record.id, reason=failure.signature)
    for launch in notifying:
        mine = (record for record in state.records.values() if record.planned.launch == launch.number)
        if not any(record.state.active for record in mine):
            notification.notify(launch.paths, notification.Event.ENDED)


def _sync_is_due(unsynced: Path, *, news: bool) -> bool:
    """Return whether to sync now: there is news, or an earlier sync failed a while ago."""
    try:
        return time.time() - unsynced.stat().st_mtime > _RETRY_SECONDS
    except OSError:
        return news
