"""The Slurm cluster: submits arrays, then leaves; looks with squeue, and sacct where it is.

What was submitted stands in the launch's jobs.json, one entry per array; an array whose entry was never written
is found in Slurm by its comment.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from orchestrator import ledger
from orchestrator.cluster import Capacity, check_data
from orchestrator.errors import ClusterError, RequestError
from orchestrator.layout import ExperimentPaths, LaunchPaths
from orchestrator.process import ProgramError, run
from orchestrator.record import JobState, Observation
from orchestrator.slurm import limits, preflight, queue, script, submission
from orchestrator.slurm.options import SlurmOptions
from orchestrator.slurm.states import OUT_OF_MEMORY, Seen, killed_for_memory
from orchestrator.slurm.task import StartWorker
from orchestrator.spec import Resources

_ANSWER_SECONDS = 60.0
_OUTPUTS = 8  # of so many processes of a job, what they printed is shown
_NEVER = Observation(state=JobState.ENDED, reason="it was never submitted")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One submitted array: Slurm's id of it, and the tasks of the plan that it holds."""

    id: str
    offset: int
    indices: tuple[int, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(id=str(value["job"]), offset=int(value["offset"]), indices=tuple(value["indices"]))

    def to_json(self) -> dict[str, Any]:
        return {"job": self.id, "offset": self.offset, "indices": self.indices}

    def name(self, index: int) -> str:
        """Return what Slurm calls a task."""
        return f"{self.id}_{index - self.offset}"


class SlurmCluster:
    """Submits to the Slurm that this machine's commands talk to."""

    background = True

    def __init__(self, options: SlurmOptions) -> None:
        self._options, self._site = options, preflight.Site(options)

    # --- submit -------------------------------------------------------------------------------------------

    def check(self, shapes: Collection[Resources], folder: Path, data: Mapping[str, int]) -> tuple[str, ...]:
        """Ask Slurm, by its partitions' limits and `sbatch --test-only`, whether such runs could ever start."""
        if found := script.unfit(str(folder)):
            raise RequestError(
                f"the folder for runs, {str(folder)!r}, has {found!r} in its name",
                why="Slurm, or Python, would misread it",
                fix="choose another folder for runs with --runs or $ORCH_RUNS",
            )  # fmt: skip
        notes: dict[str, None] = {}
        if data:
            scratch = preflight.scratch(self._site)
            check_data(data, scratch, fix=preflight.SCRATCH_FIX)
            if not self._options.staging.request_tmp:
                notes |= dict.fromkeys(preflight.small_nodes(data, scratch))
        launch = ExperimentPaths(folder).launch(0)
        for resources in sorted(shapes, key=str):
            array = script.Array(shape=script.Shape(resources=resources, python_path=()), offset=0, indices=(0,))
            text = self.script_of(array, launch, experiment="orch-check", token="check")  # noqa: S106 - no password
            notes[preflight.check(self._site, resources, text)] = None
        return tuple(note for note in notes if note)

    def capacity(self) -> Capacity:
        return Capacity(scratch=preflight.scratch(self._site), hours=limits.default_hours(self._site.chosen))

    def submit(self, launch: LaunchPaths) -> None:
        """Submit a launch's arrays, in halves where a submit limit forbids the whole.

        Raises ClusterError where Slurm refuses one; those before it are submitted, and stand in jobs.json.
        """
        waiting = deque(self.arrays(launch))
        header, jobs, asked = ledger.read_launch(launch).header, [], script.total(waiting)
        while waiting:
            array = waiting.popleft()
            try:
                jobs.append(self._submit_array(array, launch, header))
            except submission.SubmitLimitError as error:
                if len(array.indices) == 1:
                    raise _in_part(error, sum(len(job.indices) for job in jobs), asked) from error
                waiting.extendleft(reversed(array.halves))
            except ClusterError as error:
                raise _in_part(error, sum(len(job.indices) for job in jobs), asked) from error
            else:
                ledger.replace_text(launch.jobs, json.dumps([job.to_json() for job in jobs]))

    def arrays(self, launch: LaunchPaths) -> list[script.Array]:
        """Return the arrays that a launch's plan makes."""
        paths, lines = ExperimentPaths(launch.path.parent.parent), ledger.read_lines(launch)
        versions = ledger.read_launch(launch).header["data"]
        python_paths = {code: tuple(paths.python_path(code)) for code in {line["code"] for line in lines}}
        return self.arrays_of({
            line["index"]: self.shape(
                Resources(**line["resources"]), python_paths[line["code"]],
                data_bytes=versions.get(line["data"], {}).get("bytes", 0),
            )
            for line in lines
        })  # fmt: skip

    def shape(self, resources: Resources, python_path: tuple[str, ...], *, data_bytes: int) -> script.Shape:
        """Return what a run asks for here: with `staging.request_tmp` also room for its data version."""
        asked_mb = script.tmp_mb(data_bytes) if self._options.staging.request_tmp else 0
        return script.Shape(resources=resources, python_path=python_path, tmp_mb=asked_mb)

    def arrays_of(self, tasks: Mapping[int, script.Shape]) -> list[script.Array]:
        """Return the arrays that tasks make, by their index in the plan."""
        return script.arrays(tasks, max_array_size=self._site.whole.max_array_size)

    def script_of(self, array: script.Array, launch: LaunchPaths, *, experiment: str, token: str) -> str:
        """Return the text that sbatch gets for an array of a launch. `token` is the launch's own."""
        return submission.text(self._parameters(array, launch, experiment=experiment, token=token), launch.submitit)

    def _submit_array(self, array: script.Array, launch: LaunchPaths, header: Mapping[str, Any]) -> Job:
        most = self._site.whole.max_job_count
        room = most - 1 - _in_memory()
        if room < len(array.indices):
            said = submission.full(most)
            raise submission.SubmitLimitError(said.what, why=said.why, fix=said.fix) if room > 0 else said
        folder = launch.submitit
        ledger.make_private(folder)
        parameters = self._parameters(array, launch, experiment=header["experiment"], token=header["token"])
        start = StartWorker(tuple(header["worker"]), str(launch.path), array.offset)

        def find() -> str | None:
            return next((job.id for job in _strays(launch, known=()) if job.indices == array.indices), None)

        job = submission.submit(parameters, start, folder, find=find)
        return Job(id=job, offset=array.offset, indices=array.indices)

    def _parameters(self, array: script.Array, launch: LaunchPaths, *, experiment: str, token: str) -> dict[str, Any]:
        name, told = f"{experiment}.{launch.number:04d}", script.comment(token, array.offset)
        return script.parameters(array, self._options, name=name, comment=told, folder=launch.submitit)

    # --- observe and cancel -------------------------------------------------------------------------------

    def observe(self, launch: LaunchPaths, tasks: Collection[int]) -> Mapping[int, Observation]:
        try:
            names = {index: job.name(index) for job in self._jobs(launch, tasks) for index in job.indices}
            wanted = {index: names[index] for index in tasks if index in names}
            seen = queue.tasks(_owner(launch), wanted.values()) if wanted else {}
        except ClusterError as error:
            told = Observation(state=JobState.UNKNOWN, reason=f"Slurm does not answer: {error.why or error.what}")
            return dict.fromkeys(tasks, told)
        return {index: _observed(launch, wanted[index], seen) if index in wanted else _NEVER for index in tasks}

    def cancel(self, launch: LaunchPaths, tasks: Collection[int]) -> None:
        chosen = set(tasks)
        for job in self._jobs(launch, tasks):
            indices = sorted(index - job.offset for index in job.indices if index in chosen)
            if indices:
                _scancel(f"{job.id}_[{script.ranges(indices)}]")

    def _jobs(self, launch: LaunchPaths, tasks: Collection[int]) -> list[Job]:
        """Return the arrays of a launch; Slurm is asked where a task is in none that was written down."""
        jobs = jobs_of(launch)
        written = {index for job in jobs for index in job.indices}
        strays = [] if written.issuperset(tasks) else _strays(launch, known=[job.id for job in jobs])
        return [*strays, *jobs]


def jobs_of(launch: LaunchPaths) -> list[Job]:
    """Return the arrays that were submitted for a launch, and written down."""
    try:
        return [Job.from_json(entry) for entry in json.loads(launch.jobs.read_bytes())]
    except FileNotFoundError:
        return []


def _strays(launch: LaunchPaths, known: Collection[str]) -> list[Job]:
    """Return the arrays of a launch that Slurm has, but whose submitter died before it could write them down."""
    token = str(ledger.read_launch(launch).header["token"])
    found: dict[tuple[str, int], list[int]] = {}
    for seen in queue.queue(_owner(launch)).values():
        job, _, task = seen.job.partition("_")
        offset = script.offset_in(seen.comment, token)
        if offset is not None and task and job not in known:
            found.setdefault((job, offset), []).append(offset + int(task))
    return [Job(id=job, offset=offset, indices=tuple(sorted(tasks))) for (job, offset), tasks in found.items()]


def _observed(launch: LaunchPaths, name: str, seen: Mapping[str, Seen]) -> Observation:
    """Return what is known of a task: Slurm's word, and the exit status that a job left that ended by itself."""
    gone = Seen(job=name, of_itself=True, observation=Observation(
        state=JobState.ENDED, reason="Slurm no longer knows its job", job=name, unattended=True, forgotten=True
    ))  # fmt: skip
    task = seen.get(name, gone)
    if task.observation.state is not JobState.ENDED or not task.of_itself:
        return task.observation
    status = _exit_status(launch, name)
    if not status:
        return task.observation
    output = ledger.job_output(launch, name, processes=_OUTPUTS)
    if killed_for_memory(output):
        return replace(task.observation, reason=OUT_OF_MEMORY, forgotten=False)
    told = f"killed by signal {status - 128}" if status > 128 else f"exit status {status}"
    return replace(task.observation, reason=told, status=status, output=output, forgotten=False)


def _exit_status(launch: LaunchPaths, name: str) -> int | None:
    try:
        return int(launch.exit_status(name).read_text())
    except (OSError, ValueError):
        return None


def _owner(launch: LaunchPaths) -> int:
    return launch.path.stat().st_uid


def _in_memory() -> int:
    """Return how many jobs Slurm holds: waiting arrays count as one, those that ended count for some minutes."""
    return len(queue.ask(["squeue", "--noheader", "--states=all", "--format=%A"]).splitlines())


def _scancel(tasks: str) -> None:
    try:
        run(["scancel", tasks], timeout_s=_ANSWER_SECONDS)
    except ProgramError as error:
        if "Invalid job id" not in error.stderr and "already completing or completed" not in error.stderr:
            raise ClusterError("scancel failed", why=queue.last_line(error.stderr), fix="cancel again later") from error


def _in_part(error: ClusterError, submitted: int, asked: int) -> ClusterError:
    return ClusterError(f"{submitted} of {asked} runs were submitted", why=f"{error.what} ({error.why})", fix=error.fix)
