"""Decide which of a launch's jobs owns a task's run: the one in the run's own claim, whatever the arrays say.

Two arrays contain the same task if Slurm accepted one late, after its answer was lost and the task was submitted again,
or if a submitter was wrongly considered dead. The job without the run finds it claimed, and ends; if it has not started
yet, it is cancelled here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from orchestrator.cluster import JobState
from orchestrator.layout import LaunchPaths
from orchestrator.records.attempts import read_claim
from orchestrator.records.packs import read_packs
from orchestrator.records.planned import PlannedRun, read_planned_runs
from orchestrator.slurm import control
from orchestrator.slurm.leases import Job
from orchestrator.slurm.states import SlurmTask
from orchestrator.system.files import names_in

_HELD = frozenset({"JobHeldUser", "JobHeldAdmin"})


def jobs(launch: LaunchPaths, tasks: Collection[int]) -> dict[int, str]:
    """Return, for each task that a job has claimed, Slurm's name of that job. Packs are keyed by their first task."""
    if not tasks:
        return {}
    packs, started = read_packs(launch), set(names_in(launch.experiment.runs))
    found: dict[int, str] = {}
    for index, planned in read_planned_runs(launch, packs.all_tasks(tasks)).items():
        if planned.run in started and (job := _job(launch, planned)):
            found[packs.first(index)] = job
    return found


def _job(launch: LaunchPaths, planned: PlannedRun) -> str:
    attempts = launch.experiment.run(planned.run).attempts()
    for attempt in reversed([each for each in attempts if each.number >= planned.attempt]):
        if (claim := read_claim(attempt)) is not None and claim.launch == launch.number:
            return claim.job
    return ""


def needs_cleanup(names: Collection[str], claimed: str, seen: Mapping[str, SlurmTask]) -> bool:
    """Return whether one of a task's jobs, other than the one that has claimed it, has not ended."""
    alive = (name for name in names if name in seen and seen[name].observation.state is not JobState.ENDED)
    return bool(claimed) and any(name != claimed for name in alive)


def may_start(name: str, seen: Mapping[str, SlurmTask]) -> bool:
    """Return whether Slurm may start a job at any time."""
    told = seen[name].observation if name in seen else None
    return told is not None and told.state is JobState.PENDING and told.reason not in _HELD


def cancel_others(launch: LaunchPaths, arrays: Sequence[Job], cluster: str) -> None:
    """Cancel those tasks of a launch's arrays whose run another array has claimed."""
    holders = Counter(index for job in arrays for index in job.indices)
    claimed = jobs(launch, [index for index, count in holders.items() if count > 1])
    for job in arrays:
        theirs = [index for index in job.indices if claimed.get(index, job.name(index)) != job.name(index)]
        control.cancel([job], theirs, cluster)
