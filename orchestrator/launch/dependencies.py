"""An experiment that starts `after:` others: once none of their runs is under way, and only if all of them are done.

A cluster holds its runs back in its own way: Slurm by a dependency on the others' jobs, a supervisor by looking. What
holds everywhere is the run's own look at its start: it fails, with the reason, where one of the others' is not done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.cluster import Cluster
from orchestrator.errors import RequestError, StateError, nearest
from orchestrator.layout import LaunchPaths, RunsRoot
from orchestrator.records.experiment import read_experiment
from orchestrator.records.launches import read_launch
from orchestrator.records.record import Record, RunState

_MAY_WAIT_FOR = {
    "slurm": {"slurm"},
    "workstation": {"workstation", "inline"},
    "inline": {"inline", "workstation", "slurm"},
}
"""What each kind of cluster can see the end of: Slurm knows its own jobs, a supervisor does not ask Slurm."""


def check(runs: RunsRoot, name: str, after: Sequence[str], cluster_of: Mapping[str, Cluster], kind: str) -> list[str]:
    """Return what a person should know of the experiments that one of this name is to start after.

    Raises RequestError for one that has no runs, or has failed, and for one that this kind of cluster cannot wait for.
    """
    notes = []
    for other in after:
        records = _records(runs, other, cluster_of)
        if other == name or not records:
            raise _no_runs(runs, name, other)
        under_way = [record for record in records if record.state.active]
        if broken := [record for record in records if not record.state.active and record.state is not RunState.DONE]:
            raise RequestError(
                f"after: {other} is not done: {_described(broken)}",
                why="this experiment starts once all of its runs are",
                fix=f"orch retry {other}, or orch launch what is missing of it",
            )
        _check_kind(runs, other, kind, under_way)
        if under_way:
            notes.append(f"starts after {other}: {len(under_way)} of its {len(records)} runs are under way")
    return notes


def under_way(launch: LaunchPaths, cluster_of: Mapping[str, Cluster]) -> bool:
    """Return whether a launch has to wait: somebody is still at work on what it is to start after."""
    others = read_launch(launch).header.after
    return any(record.state.active for other in others for record in _records(launch.runs, other, cluster_of))


def require(launch: LaunchPaths) -> None:
    """Raise StateError unless all that a launch is to start after is done. Asks no scheduler."""
    for other in read_launch(launch).header.after:
        if missing := [record for record in _records(launch.runs, other, {}) if record.state is not RunState.DONE]:
            raise StateError(
                f"after {other}, which is not done: {_described(missing)}",
                why="all its runs have to be",
                fix=f"orch retry {other}; then orch retry {launch.experiment.name}",
            )


def jobs(runs: RunsRoot, after: Sequence[str], cluster_of: Mapping[str, Cluster]) -> list[str]:
    """Return the scheduler's names of the jobs that are under way, the arrays for their tasks."""
    found = (record for other in after for record in _records(runs, other, cluster_of) if record.state.active)
    return list(dict.fromkeys(record.job.partition("_")[0] for record in found if record.job))


def _records(runs: RunsRoot, name: str, cluster_of: Mapping[str, Cluster]) -> list[Record]:
    return list(read_experiment(runs.experiment(name), cluster_of).records.values())


def _check_kind(runs: RunsRoot, other: str, kind: str, under_way: Sequence[Record]) -> None:
    launches = {record.task[0] for record in under_way}
    headers = (read_launch(runs.experiment(other).launch(number)).header for number in launches)
    kinds = {header.cluster_kind for header in headers}
    waiting = [record for record in under_way if record.state is RunState.WAITING]
    if wrong := kinds - _MAY_WAIT_FOR[kind]:
        raise RequestError(
            f"after: {other} runs on cluster={min(wrong)}",
            why=f"cluster={kind} cannot wait for that",
            fix=f"the same cluster for both, or launch once it is done: orch status {other} -w",
        )
    if kind == "slurm" and waiting:
        raise RequestError(
            f"after: {len(waiting)} runs of {other} have not been submitted yet",
            why=waiting[0].reason,
            fix="launch again once they have: Slurm can only wait for jobs that it knows",
        )


def _no_runs(runs: RunsRoot, name: str, other: str) -> RequestError:
    if other == name:
        return RequestError(f"after: {other} is this experiment", why="nothing starts after itself", fix="name another")
    known = [paths.name for paths in runs.experiments()]
    return RequestError(
        f"after: {other} has no runs{nearest(other, known)}",
        why=f"there are {', '.join(known) or 'no experiments'}",
        fix=f"launch {other} first",
    )


def _described(records: Sequence[Record]) -> str:
    first = records[0]
    state = "not done" if first.state is RunState.UNKNOWN else first.state.value
    more = f", and {len(records) - 1} more" if len(records) > 1 else ""
    return f"{first.id[:8]} is {state}{f' ({first.reason})' if first.failure else ''}{more}"
