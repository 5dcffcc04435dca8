"""The Slurm cluster: submits arrays and returns; observes them with squeue and, if there is accounting, sacct.

Submitted arrays are recorded in the launch's last lease (`leases`). An array that was never recorded is found in Slurm
by its comment.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator.cluster import Capacity, Change, JobState, Observation, Waiting, check_data
from orchestrator.errors import ClusterError, OrchError, RequestError
from orchestrator.launch import dependencies as others
from orchestrator.launch.canary import safeguards
from orchestrator.layout import ExperimentPaths, LaunchPaths, RunsRoot
from orchestrator.records.attempts import read_job_output
from orchestrator.records.launches import read_launch
from orchestrator.records.ownership import why_read_only
from orchestrator.records.packs import read_packs
from orchestrator.slurm import (
    claims,
    control,
    leases,
    limits,
    packed,
    preflight,
    queue,
    script,
    submission,
    submit_pending,
)
from orchestrator.slurm.leases import Job
from orchestrator.slurm.options import SlurmOptions
from orchestrator.slurm.queue import QueueScope
from orchestrator.slurm.states import SlurmTask, printed_reason
from orchestrator.slurm.submit_pending import SubmitResult
from orchestrator.spec import Resources
from orchestrator.system.files import read_text
from orchestrator.system.units import hours_of

_OUTPUTS = 8  # the most processes of a job whose output is shown


class SlurmCluster:
    """Submits to the Slurm cluster that this machine's commands talk to, or to the one that the options name."""

    background = True

    def __init__(self, options: SlurmOptions) -> None:
        self.options, self._site = options, preflight.Site(options)

    # --- submit -------------------------------------------------------------------------------------------

    def check(self, shapes: Collection[Resources], folder: Path, data: Mapping[str, int]) -> tuple[str, ...]:
        """Check with the partitions' limits and `sbatch --test-only` whether such runs could ever start."""
        if found := script.forbidden_character(str(folder)):
            raise RequestError(
                f"the folder for runs, {str(folder)!r}, has {found!r} in its name",
                why="Slurm, or Python, would misread it",
                fix="choose another folder for runs with --runs or $ORCH_RUNS",
            )
        notes: dict[str, None] = {}
        if data:
            scratch = preflight.scratch(self._site)
            check_data(data, scratch, fix=preflight.SCRATCH_FIX)
            if not self.options.staging.request_tmp:
                notes |= dict.fromkeys(preflight.small_nodes(data, scratch))
        launch = ExperimentPaths(folder).launch(0)
        for resources in sorted(shapes, key=str):
            (array,) = self.arrays_of({0: script.Shape(resources=resources, python_path=())})
            text = self.script_of(array, launch, experiment="orch-check", token="check")  # noqa: S106 - no password
            notes[preflight.check(self._site, resources.job, text)] = None
        return tuple(note for note in notes if note)

    def capacity(self) -> Capacity:
        asked = hours_of(str(self.options.sbatch_defaults.get("time", "")))
        hours = asked or limits.default_hours(self._site.chosen)
        return Capacity(scratch=preflight.scratch(self._site), hours=hours)

    def submit(self, launch: LaunchPaths) -> Waiting | None:
        return submit_pending.submit_launch(launch, lambda: self.allowed_to(launch), after=self.jobs_before(launch))

    def submit_pending(self, launch: LaunchPaths) -> int:
        if shutil.which("sbatch") is None:
            return 0
        try:
            _clean_up_late_arrays(launch)
            return self.try_submit_pending(launch).tasks
        except (OrchError, OSError):
            return 0  # `observe` shows the reason

    def try_submit_pending(self, launch: LaunchPaths, *, ending: str = "", at_once: bool = False) -> SubmitResult:
        """Submit the pending tasks of a launch. See `submit_pending.submit_rest`. Raises ClusterError."""
        return submit_pending.submit_rest(
            launch,
            lambda: self.allowed_to(launch),
            ending=ending,
            at_once=at_once,
            after=lambda: self.jobs_before(launch),
        )

    def shape(self, resources: Resources, python_path: tuple[str, ...], *, data_bytes: int) -> script.Shape:
        """Return the shape of a run's request; with `staging.request_tmp` it includes scratch for the data version."""
        return submit_pending.shape(self.options, resources, python_path, data_bytes=data_bytes)

    def arrays_of(self, tasks: Mapping[int, script.Shape]) -> list[script.Array]:
        """Return the arrays for tasks, which are keyed by their index in the plan."""
        return script.arrays(tasks, max_array_size=self.allowed.max_array_size)

    def script_of(
        self, array: script.Array, launch: LaunchPaths, *, experiment: str, token: str, after: Sequence[str] = ()
    ) -> str:
        """Return the sbatch script for an array of a launch. It starts after the experiments named in `after`.

        `token` is the launch's own.
        """
        given = submit_pending.parameters(
            array, self.options, launch, experiment=experiment, token=token, after=self._jobs_of(launch.runs, after)
        )
        return submission.text(given, launch.submitit)

    def jobs_before(self, launch: LaunchPaths) -> list[str]:
        """Return the unfinished jobs that a launch has to start after."""
        return self._jobs_of(launch.runs, read_launch(launch).header.after)

    def _jobs_of(self, runs: RunsRoot, experiments: Sequence[str]) -> list[str]:
        return others.jobs(runs, experiments, {"slurm": self})

    @property
    def allowed(self) -> limits.Limits:
        """The limits of the whole cluster; Slurm is asked once."""
        return self._site.whole

    def allowed_to(self, launch: LaunchPaths) -> limits.Limits:
        """Return the limits of the cluster that a launch was submitted to."""
        cluster = queue.cluster_of(launch)
        return self.allowed if cluster == self._site.cluster else preflight.Site(SlurmOptions(clusters=cluster)).whole

    # --- observe and cancel -------------------------------------------------------------------------------

    def observe(self, launch: LaunchPaths, tasks: Collection[int]) -> Mapping[int, Observation]:
        packs = read_packs(launch)
        told = _observed_tasks(launch, {packs.first(index) for index in tasks})
        found = {index: told[packs.first(index)] for index in tasks}
        return found | packed.observe(launch, {index: found[index] for index in tasks if index in packs})

    def cancel(self, launch: LaunchPaths, tasks: Collection[int]) -> None:
        """Stop these tasks. A pack's job is cancelled only once all its runs are; its supervisor stops single runs."""
        control.cancel(queued_jobs(launch), packed.cancelled(launch, tasks), queue.cluster_of(launch))

    def hold(self, launch: LaunchPaths, tasks: Collection[int]) -> None:
        control.hold(queued_jobs(launch), read_packs(launch).whole(tasks), queue.cluster_of(launch))

    def release(self, launch: LaunchPaths, tasks: Collection[int]) -> None:
        control.release(queued_jobs(launch), read_packs(launch).firsts(tasks), queue.cluster_of(launch))
        self.try_submit_pending(launch, at_once=True)

    def change(self, launch: LaunchPaths, tasks: Collection[int], change: Change) -> None:
        packs, waiting = read_packs(launch), submit_pending.unsubmitted(launch)
        if change.hours is not None and any(task in packs for task in tasks):
            raise RequestError(
                "the hours of packed runs cannot be changed",
                why="their job's time limit is made of those of its runs",
                fix="cancel them, and launch them again with other resources",
            )
        tasks = packs.firsts(tasks)
        if not waiting.isdisjoint(tasks) and (missing := waiting - set(tasks)):
            raise RequestError(
                f"{len(missing)} more runs of launch {launch.number:04d} wait to be submitted",
                why="what a launch has not submitted yet is changed as a whole",
                fix=f"choose them all: launch={launch.number} state=waiting",
            )
        control.change(queued_jobs(launch), tasks, change, queue.cluster_of(launch))
        if not waiting.isdisjoint(tasks):
            control.record_change(launch, change)


def jobs_of(launch: LaunchPaths) -> list[Job]:
    """Return the recorded arrays of a launch."""
    lease = leases.last(launch)
    return list(lease.jobs) if lease else []


def queued_jobs(
    launch: LaunchPaths, *, listed: Callable[[QueueScope], Mapping[str, SlurmTask]] = queue.queue
) -> list[Job]:
    """Return the arrays of a launch in Slurm, recorded or not; not those of others that reuse a recorded job id."""
    seen, jobs, belongs = (
        listed(QueueScope.of(launch)).values(),
        jobs_of(launch),
        submit_pending.belongs_to(launch),
    )
    others = {each.job.partition("_")[0] for each in seen if not belongs(each)}
    alive = [each for each in seen if each.observation.state is not JobState.ENDED]
    untracked = submit_pending.untracked_arrays(launch, alive, known=[job.id for job in jobs])
    return [*untracked, *(job for job in jobs if job.id not in others)]


def _observed_tasks(launch: LaunchPaths, asked: set[int]) -> dict[int, Observation]:
    """Return the observations of tasks; a pack is keyed by its first task."""
    lease = leases.last(launch)
    jobs = list(lease.jobs) if lease else []
    view = _SlurmView(launch)
    names = _names(jobs)
    view.ask([name for index in asked for name in names.get(index, ())])
    silent = "" if names.keys() >= asked else view.ask_for_others()  # there may be untracked arrays
    late = submit_pending.untracked_arrays(launch, view.seen.values(), known=[job.id for job in jobs])
    names = _names([*jobs, *late])
    told = _told(launch, {index: names[index] for index in asked if index in names}, view)
    for index in _to_hold(launch, late, view.seen) & told.keys():
        told[index] = replace(told[index], needs_cleanup=True)
    if not asked <= told.keys():
        rest = submit_pending.observe_unsubmitted(launch, lease)
        told |= {index: view.unknown(silent) if silent else rest(index) for index in asked - told.keys()}
    return told


def _to_hold(launch: LaunchPaths, late: Collection[Job], seen: Mapping[str, SlurmTask]) -> set[int]:
    """Return the tasks of late arrays that should be held, but that Slurm may start."""
    held = set(read_packs(launch).whole(safeguards(launch).held)) if late else set()
    return {i for job in late for i in held.intersection(job.indices) if claims.may_start(job.name(i), seen)}


def _told(launch: LaunchPaths, names: Mapping[int, Collection[str]], view: _SlurmView) -> dict[int, Observation]:
    """Return the observations of tasks, given the names of their jobs: of two, the one in the run's claim counts.

    The claim is read only if a task has two jobs or none that is alive: only then may it name another one.
    """
    told = {index: _best([view.at(name) for name in names[index]]) for index in names}
    doubtful = [index for index in told if len(names[index]) > 1 or told[index].state is JobState.ENDED]
    claimed = claims.jobs(launch, doubtful)
    view.ask({name for index, name in claimed.items() if name not in names[index]})
    for index, name in claimed.items():
        told[index] = replace(view.at(name), needs_cleanup=claims.needs_cleanup(names[index], name, view.seen))
    return told


class _SlurmView:
    """What Slurm knows about the tasks of a launch. Tasks of other launches are left out."""

    def __init__(self, launch: LaunchPaths) -> None:
        self._launch, self._scope, self._belongs = (
            launch,
            QueueScope.of(launch),
            submit_pending.belongs_to(launch),
        )
        self.seen: dict[str, SlurmTask] = {}

    def ask(self, names: Collection[str]) -> None:
        if names:
            self._take(queue.tasks(self._scope, names))

    def ask_for_others(self) -> str:
        """Ask for all tasks of the user; return why squeue does not answer, or an empty text."""
        try:
            self._take(queue.queue(self._scope))
        except ClusterError as error:
            return f"squeue does not answer: {error.why}"
        return ""

    def at(self, name: str) -> Observation:
        found = _observed(self._launch, name, self.seen)
        return self.unknown(found.reason, job=name) if found.state is JobState.UNKNOWN else found

    def unknown(self, reason: str, job: str = "") -> Observation:
        where = f"on cluster {self._scope.cluster}: " if self._scope.cluster else ""
        return Observation(state=JobState.UNKNOWN, reason=where + reason, job=job)

    def _take(self, seen: Mapping[str, SlurmTask]) -> None:
        self.seen |= {name: each for name, each in seen.items() if self._belongs(each)}


def _clean_up_late_arrays(launch: LaunchPaths) -> None:
    """Cancel or hold tasks of arrays that Slurm accepted late. Raises ClusterError."""
    if why_read_only(launch.experiment):
        return
    known = {job.id for job in jobs_of(launch)}
    arrays = queued_jobs(launch, listed=queue.listed)
    late = [job for job in arrays if job.id not in known]
    cluster = queue.cluster_of(launch)
    claims.cancel_others(launch, arrays, cluster)
    control.hold(late, read_packs(launch).whole(safeguards(launch).held) if late else (), cluster)


def _names(jobs: Iterable[Job]) -> dict[int, list[str]]:
    """Return Slurm's names of each task; there are two if the array was submitted twice, after a lost answer."""
    names: dict[int, list[str]] = {}
    for job in jobs:
        for index in job.indices:
            names.setdefault(index, []).append(job.name(index))
    return names


def _best(told: Iterable[Observation]) -> Observation:
    """Return the observation of a task from those of its jobs; one that ended because the run was taken loses."""
    return max(told, key=lambda each: (each.state is not JobState.ENDED, each.status is not None))


def _observed(launch: LaunchPaths, name: str, seen: Mapping[str, SlurmTask]) -> Observation:
    """Return the observation of a task: Slurm's state, and the exit status that a job left if it ended by itself."""
    gone = SlurmTask(
        job=name,
        of_itself=True,
        observation=Observation(
            state=JobState.ENDED, reason="Slurm no longer knows its job", job=name, unattended=True, forgotten=True
        ),
    )
    task = seen.get(name, gone)
    if task.observation.state is not JobState.ENDED or not task.of_itself:
        return task.observation
    status = _exit_status(launch, name)
    if not status:
        return task.observation
    output = read_job_output(launch, name, processes=_OUTPUTS)
    if reason := printed_reason(output):
        return replace(task.observation, reason=reason, forgotten=False)
    told = f"killed by signal {status - 128}" if status > 128 else f"exit status {status}"
    return replace(task.observation, reason=told, status=status, output=output, forgotten=False)


def _exit_status(launch: LaunchPaths, name: str) -> int | None:
    try:
        return int(read_text(launch.exit_status(name)))
    except (OSError, ValueError):
        return None
