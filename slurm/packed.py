"""The observations of runs that share a job: Slurm knows the job, the records which run is active, waiting or over."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from orchestrator.cluster import JobState, Observation
from orchestrator.layout import LaunchPaths
from orchestrator.records.attempts import read_attempt, read_marks
from orchestrator.records.packs import read_packs
from orchestrator.records.planned import PlannedRun, read_planned_runs
from orchestrator.records.record import Attempt, RunState
from orchestrator.system.files import names_in

SOME_FAILED = 3
"""The exit status of a pack whose runs have all ended, some of them as failed, as their records say."""

_OVER = frozenset({RunState.DONE.value, RunState.FAILED.value})


def observe(launch: LaunchPaths, told: Mapping[int, Observation]) -> dict[int, Observation]:
    """Return the observations of tasks in packs, given those of their jobs."""
    if not told:
        return {}
    cancelled = set(names_in(launch.cancelled))
    planned_runs = read_planned_runs(launch, told)
    return {
        index: _observed(told[index], _last(launch, planned), cancelled=planned.run in cancelled)
        for index, planned in planned_runs.items()
    }


def cancelled(launch: LaunchPaths, tasks: Collection[int]) -> list[int]:
    """Return the jobs, each by its first task, that have no task left once these tasks are cancelled."""
    packs = read_packs(launch)
    alone = [index for index in tasks if index not in packs]
    touched = {packs.first(index) for index in tasks if index in packs}
    if not touched:
        return alone
    marks, states = set(names_in(launch.cancelled)), read_marks(launch.experiment)

    def is_over(planned: PlannedRun) -> bool:
        attempt, state = states.get(planned.run, (0, ""))
        return planned.run in marks or (attempt >= planned.attempt and state in _OVER)

    planned_runs = read_planned_runs(launch, packs.all_tasks(touched))
    return [*alone, *packs.whole([index for index, planned in planned_runs.items() if is_over(planned)])]


def _last(launch: LaunchPaths, planned: PlannedRun) -> Attempt | None:
    """Return the latest attempt at a planned run; None before the first."""
    run = launch.experiment.run(planned.run)
    begun = [attempt for attempt in run.attempts() if attempt.number >= planned.attempt]
    return read_attempt(run, begun[-1]) if begun else None


def _observed(job: Observation, last: Attempt | None, *, cancelled: bool) -> Observation:
    over = Observation(state=JobState.ENDED, reason="cancelled", job=job.job, node=job.node)
    match job.state:
        case JobState.PENDING | JobState.WAITING if cancelled:
            return over
        case JobState.RUNNING if last is None:
            return over if cancelled else replace(job, state=JobState.PENDING, reason="waits for its turn in its job")
        case JobState.RUNNING if last is not None and last.final:  # its supervisor runs others meanwhile
            waits = replace(job, state=JobState.PENDING, reason="goes on when its job is started again")
            return over if cancelled else waits
        case JobState.ENDED if job.status == SOME_FAILED:
            return replace(job, status=None, output="", reason="its job ended before its turn", forgotten=bool(last))
        case JobState.ENDED if last is not None:
            return replace(job, status=None, output="")  # the status and the output are the pack's, not the run's
    return job
