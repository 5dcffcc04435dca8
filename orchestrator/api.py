"""The public Python API: the calls of the orchestrator for a program, or for the command line.

    prepare, prepare_again, plan, scripts, launch      from overrides to jobs
    read, reader, refresh, refresher, count_states     the state of runs
    cancel, hold, release, change, hide                act on runs
    resolve_data                                       the data version that overrides choose

Everything heavy is imported by the call that needs it: reading records costs milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.cluster import Change, Cluster
from orchestrator.clusters import cluster_for, observers
from orchestrator.launch import canary
from orchestrator.layout import ExperimentPaths, LaunchPaths
from orchestrator.project import Project
from orchestrator.records.launches import ignore_in_git, read_launch
from orchestrator.records.ownership import require
from orchestrator.records.record import Record, RunState
from orchestrator.refresh import count_states, read, reader, refresh, refresher
from orchestrator.system.files import listed, make_private
from orchestrator.tracking.stores import options_of, sync_in_background

if TYPE_CHECKING:
    from orchestrator.data import Manifest
    from orchestrator.dry_run import Plan
    from orchestrator.launch.launch import Launched
    from orchestrator.launch.plan import Rerun, Step
    from orchestrator.prepare import Prepared

__all__ = [
    "DEBUG_BATCHES",
    "cancel",
    "change",
    "count_states",
    "hide",
    "hold",
    "launch",
    "plan",
    "prepare",
    "prepare_again",
    "read",
    "reader",
    "refresh",
    "refresher",
    "release",
    "resolve_data",
    "scripts",
    "tagged",
]

DEBUG_BATCHES = 3
"""The first batch allocates, the second finds the optimizer's state, the third is like all later ones."""


# --- prepare, plan and launch -----------------------------------------------------------------------------


def prepare(
    project: Project, overrides: Sequence[str], *, batches: int | None = None
) -> AbstractContextManager[Prepared]:
    """Compose and check an experiment, and gather the facts that it will run with: `orchestrator.prepare.prepare`."""
    from orchestrator.prepare import prepare

    return prepare(project, overrides, batches=batches)


def prepare_again(project: Project, records: Sequence[Record], name: str) -> AbstractContextManager[Prepared]:
    """Prepare known runs of one experiment as they were launched, to be retried with the current code."""
    from orchestrator.prepare import prepare_again

    require(project.runs.experiment(name))  # their launches' overrides are composed again, and name code to import
    return prepare_again(project, records, name)


def tagged(prepared: Prepared, tags: Sequence[str]) -> Prepared:
    """Return a copy of `prepared` with further tags. Raises ConfigError for a word that cannot be a tag."""
    from orchestrator.prepare import tagged

    return tagged(prepared, tags)


def resolve_data(project: Project, overrides: Sequence[str]) -> Manifest | None:
    """Return the manifest of the data version that overrides choose; None if they choose none."""
    from orchestrator.prepare import resolve_data

    return resolve_data(project, overrides)


def plan(project: Project, prepared: Prepared, *, rerun: Rerun = "never", measure_models: bool = False) -> Plan:
    """Return what a launch would do now. `measure_models`: build models whose checkpoint size no earlier run shows."""
    from orchestrator.dry_run import plan

    return plan(project, prepared, rerun=rerun, measure_models=measure_models)


def scripts(prepared: Prepared, planned: Plan) -> list[tuple[tuple[Step, ...], str]]:
    """Return the scripts that a launch would pass to sbatch, each with the steps of its array. Raises RequestError."""
    from orchestrator.dry_run import scripts

    return scripts(prepared, planned)


def launch(
    project: Project,
    prepared: Prepared,
    *,
    cluster: Cluster | None = None,
    message: str = "",
    rerun: Rerun = "never",
    only: Callable[[Step], bool] = lambda _: True,
    worker: Sequence[str] | None = None,
    confirm: Callable[[Sequence[Step]], None] = lambda _: None,
) -> Launched:
    """Launch the missing runs. If the cluster is not a background one, the caller then calls its `run`.

    `confirm` receives the steps before anything is written, and may raise.
    """
    from orchestrator.dry_run import models
    from orchestrator.launch.estimate import disk_forecast
    from orchestrator.launch.launch import WORKER
    from orchestrator.launch.launch import launch as act
    from orchestrator.launch.plan import to_do

    paths = project.runs.experiment(prepared.experiment.name)
    launched = act(
        prepared.experiment,
        prepared.facts,
        paths,
        cluster=cluster or cluster_for(prepared.experiment.cluster),
        cluster_of=observers(),
        message=message,
        rerun=rerun,
        only=only,
        confirm=confirm,
        worker=worker or WORKER,
    )
    ignore_in_git(project.runs)
    if launched.paths is None:
        return launched
    forecast = disk_forecast(
        to_do(launched.steps), launched.records, paths, models(project, prepared.facts, measure=False)
    )
    return replace(launched, notes=(*launched.notes, forecast.note)) if forecast.note else launched


# --- act on runs ------------------------------------------------------------------------------------------


def cancel(project: Project, name: str, records: Iterable[Record]) -> list[Record]:
    """Cancel waiting or running runs, and return them. Writes marks first, for a supervisor that starts later."""
    paths = _own(project, name)
    chosen = [r for r in records if r.state.active and not listed(paths.launch(r.task[0]).cancelled / r.id)]
    for number, found in _by_launch(chosen).items():
        folder = paths.launch(number)
        make_private(folder.cancelled)
        for record in found:
            (folder.cancelled / record.id).touch(mode=0o600)
        header = read_launch(folder).header
        observers()[header.cluster_kind].cancel(folder, [record.task[1] for record in found])
        if header.tracking_kind != "none" and any(record.last and record.last.final for record in found):
            sync_in_background(project, paths)  # MLflow shows it as SCHEDULED, and no process will report it again
    return chosen


def hold(project: Project, name: str, records: Iterable[Record]) -> list[Record]:
    """Keep waiting runs from starting, and return them."""
    return _mark_and_request(project, name, records, canary.hold, lambda cluster: cluster.hold)


def release(project: Project, name: str, records: Iterable[Record]) -> list[Record]:
    """Let runs start that a hold or a canary keeps back, and return them."""
    return _mark_and_request(project, name, records, canary.release, lambda cluster: cluster.release)


def change(project: Project, name: str, records: Iterable[Record], wanted: Change) -> list[Record]:
    """Change the limits of waiting runs, and return them."""
    return _mark_and_request(
        project,
        name,
        records,
        lambda *_: None,
        lambda cluster: lambda launch, tasks: cluster.change(launch, tasks, wanted),
    )


def _mark_and_request(
    project: Project,
    name: str,
    records: Iterable[Record],
    mark: Callable[[LaunchPaths, Collection[int]], None],
    say: Callable[[Cluster], Callable[[LaunchPaths, Collection[int]], None]],
) -> list[Record]:
    """Mark waiting runs, then call their cluster, one launch at a time."""
    paths = _own(project, name)
    chosen = [record for record in records if record.state in {RunState.QUEUED, RunState.WAITING}]
    for number, found in _by_launch(chosen).items():
        launch = paths.launch(number)
        tasks = [record.task[1] for record in found]
        mark(launch, tasks)
        say(observers()[read_launch(launch).header.cluster_kind])(launch, tasks)
    return chosen


def _own(project: Project, name: str) -> ExperimentPaths:
    """Return an experiment's folder. Raises StateError if it may only be read."""
    paths = project.runs.experiment(name)
    require(paths)
    return paths


def _by_launch(records: Iterable[Record]) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = {}
    for record in records:
        found.setdefault(record.task[0], []).append(record)
    return found


def hide(project: Project, name: str, records: Iterable[Record], *, undo: bool = False) -> None:
    """Hide runs from output, or show them again. They are not deleted, and launches still take them into account."""
    paths = _own(project, name)
    folder = paths.hidden
    make_private(folder)
    for record in records:
        if undo:
            (folder / record.id).unlink(missing_ok=True)
        else:
            (folder / record.id).touch(mode=0o600)
    if options_of(paths).get("kind", "none") != "none":
        sync_in_background(project, paths)  # its best run may have changed
