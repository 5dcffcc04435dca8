"""Control of queued tasks: cancel, hold or release them, and change their limits.

Slurm cannot change tasks that have not been submitted yet: such a change is written to a file of the launch, and
applied when they are submitted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from orchestrator.cluster import Change
from orchestrator.errors import ClusterError, StateError
from orchestrator.layout import LaunchPaths
from orchestrator.records.launches import read_launch
from orchestrator.slurm import commands, script
from orchestrator.slurm.leases import Job
from orchestrator.slurm.options import SlurmOptions
from orchestrator.system.files import make_private, read_json, write_text
from orchestrator.system.processes import ProgramError

_TRIES = 100
_OVER = re.compile(r"Invalid job id|already completing or completed")
_OPTIONS: Mapping[str, str] = {"partition": "Partition", "account": "Account", "qos": "QOS"}


def cancel(jobs: Iterable[Job], tasks: Collection[int], cluster: str) -> None:
    """Cancel tasks; one that has ended already is not an error. Raises ClusterError."""
    for names in _names(jobs, set(tasks)):
        try:
            commands.run(["scancel", names], cluster=cluster)
        except ProgramError as error:
            if not _OVER.search(error.stderr):
                why = commands.last_line(error.stderr)
                raise ClusterError("scancel failed", why=why, fix="cancel again later") from error


def hold(jobs: Iterable[Job], tasks: Collection[int], cluster: str) -> None:
    """Keep Slurm from starting tasks in its queue. Raises ClusterError."""
    for names in _names(jobs, tasks):
        _scontrol(cluster, "hold", names)


def release(jobs: Iterable[Job], tasks: Collection[int], cluster: str) -> None:
    """Let Slurm start held tasks. Raises ClusterError."""
    for names in _names(jobs, tasks):
        _scontrol(cluster, "release", names)


def change(jobs: Sequence[Job], tasks: Collection[int], change: Change, cluster: str) -> None:
    """Change the time limit, partition, account or QOS of queued tasks, and the throttle of their arrays."""
    settings = [f"{_OPTIONS[key]}={value}" for key, value in change.options.items() if key in _OPTIONS]
    if change.hours is not None:
        settings.append(f"TimeLimit={script.minutes(change.hours)}")
    for names in _names(jobs, tasks) if settings else ():
        _scontrol(cluster, "update", f"JobId={names}", *settings)
    if change.throttle is not None:
        for job in jobs:
            if not set(job.indices).isdisjoint(tasks):
                _scontrol(cluster, "update", f"JobId={job.id}", f"ArrayTaskThrottle={change.throttle}")


def record_change(launch: LaunchPaths, change: Change) -> None:
    """Record a change for the tasks of a launch that have still to be submitted."""
    make_private(launch.change(1).parent)
    text = json.dumps(change.to_json())
    for _ in range(_TRIES):
        path = launch.change(len(launch.changes()) + 1)
        try:
            write_text(path, text)
        except FileExistsError:
            continue
        return
    raise StateError(f"{path.parent} cannot be written", why="other processes keep changing it", fix="try again")


def recorded_change(launch: LaunchPaths) -> Change:
    """Return the combined recorded changes, to apply to tasks that are submitted now; later ones take precedence."""
    found = Change()
    for path in launch.changes():
        found = found.then(Change.from_json(read_json(path)))
    return found


def options(launch: LaunchPaths) -> SlurmOptions:
    """Return the options with which a launch's tasks are submitted now."""
    section = read_launch(launch).header.cluster
    changed = recorded_change(launch)
    throttle = {} if changed.throttle is None else {"throttle": changed.throttle}
    return SlurmOptions.parse({**section, **changed.options, **throttle})


def _names(jobs: Iterable[Job], tasks: Collection[int]) -> Iterator[str]:
    """Yield Slurm's names of tasks, one text per array: `12_[0-4,7]`."""
    for job in jobs:
        indices = sorted(index - job.offset for index in job.indices if index in tasks)
        if indices:
            yield f"{job.id}_[{script.ranges(indices)}]"


def _scontrol(cluster: str, *words: str) -> None:
    try:
        commands.run(["scontrol", *words], cluster=cluster)
    except ProgramError as error:
        told = commands.last_line(error.stderr)
        raise ClusterError(
            f"scontrol {words[0]} failed", why=told, fix="nothing more was changed; look at `orch status`"
        ) from error
