"""The Slurm cluster: submits arrays through submitit, then leaves; looks with squeue, and sacct where it is.

The only importer of submitit. What was submitted stands in the launch's jobs.json: one entry per array.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator import ledger
from orchestrator.errors import ClusterError, RequestError
from orchestrator.layout import ExperimentPaths, LaunchPaths
from orchestrator.process import ProgramError, run
from orchestrator.record import JobState, Observation
from orchestrator.slurm import script
from orchestrator.slurm.options import SlurmOptions
from orchestrator.slurm.states import SACCT, SQUEUE, parse
from orchestrator.slurm.task import StartWorker
from orchestrator.spec import Resources

_BUSY = re.compile(r"socket timed out|temporarily|try again|slurm_load|slow response", re.IGNORECASE)
_ANSWER_SECONDS = 60.0
_TRIES = 6


class SlurmCluster:
    """Submits to the Slurm that this machine's commands talk to."""

    background = True

    def __init__(self, options: SlurmOptions) -> None:
        self._options = options

    # --- submit -------------------------------------------------------------------------------------------

    def check(self, shapes: Collection[Resources]) -> None:
        """Ask Slurm, by `sbatch --test-only`, whether runs of these shapes could ever start."""
        for resources in sorted(shapes, key=str):
            shape = script.Shape(resources=resources, python_path=())
            array = script.Array(shape=shape, offset=0, indices=(0,))
            text = self._text(array, name="orch-check", comment="orch:check", folder=Path("/nonexistent"))
            try:
                with _clean_environment():
                    run(["sbatch", "--test-only"], stdin=text.encode(), timeout_s=_ANSWER_SECONDS)
            except ProgramError as error:
                raise _refused(error, resources) from error

    def submit(self, launch: LaunchPaths) -> None:
        header = ledger.read_launch(launch).header
        entries = []
        for array in self.arrays(launch):
            entries.append(self._submit_array(array, launch, header))
            ledger.replace_text(launch.jobs, json.dumps(entries))

    def arrays(self, launch: LaunchPaths) -> list[script.Array]:
        """Return the arrays that a launch's plan makes."""
        paths = ExperimentPaths(launch.path.parent.parent)
        shapes = {
            line["index"]: script.Shape(
                resources=Resources(**line["resources"]), python_path=tuple(paths.python_path(line["code"]))
            )
            for line in ledger.read_lines(launch)
        }
        return script.arrays(shapes, max_array_size=self._max_array_size)

    def _submit_array(self, array: script.Array, launch: LaunchPaths, header: Mapping[str, Any]) -> dict[str, Any]:
        executor = self._executor(array, launch, header)
        start = StartWorker(tuple(header["worker"]), str(launch.path), array.offset)
        with _clean_environment():
            job = _patiently(lambda: executor.submit(start))
        return {
            "job": str(job.job_id), "offset": array.offset, "indices": list(array.indices),
        }  # fmt: skip

    def _executor(self, array: script.Array, launch: LaunchPaths, header: Mapping[str, Any]) -> Any:
        folder = launch.path / "submitit"
        ledger.make_private(folder)
        name = f"{header['experiment']}.{launch.number:04d}"
        return _executor(script.parameters(
            array, self._options, name=name, comment=f"orch:{header['token']}", folder=folder
        ), folder)  # fmt: skip

    def _text(self, array: script.Array, *, name: str, comment: str, folder: Path) -> str:
        executor = _executor(
            script.parameters(array, self._options, name=name, comment=comment, folder=folder), folder
        )
        text: str = executor._make_submission_file_text(executor._submitit_command_str, "")  # noqa: SLF001 - the renderer has no public name
        return text

    @cached_property
    def _max_array_size(self) -> int:
        found = re.search(rb"MaxArraySize\s*=\s*(\d+)", _ask(["scontrol", "show", "config"]))
        return int(found.group(1)) if found else 1001

    # --- observe and cancel -------------------------------------------------------------------------------

    def observe(self, launch: LaunchPaths, tasks: Collection[int]) -> Mapping[int, Observation]:
        names = {
            index: f"{entry['job']}_{index - entry['offset']}" for entry in jobs_of(launch) for index in entry["indices"]
        }
        wanted = {index: names[index] for index in tasks if index in names}
        never = Observation(state=JobState.ENDED, reason="it was never submitted")
        try:
            seen = {item.job: item.observation for item in parse(_ask(SQUEUE).decode(errors="replace"))}
            missing = sorted({name.split("_")[0] for name in wanted.values() if name not in seen})
            seen |= {item.job: item.observation for item in parse(_account(missing))} if missing else {}
        except ClusterError as error:
            told = Observation(state=JobState.UNKNOWN, reason=f"Slurm does not answer: {error.why or error.what}")
            return dict.fromkeys(tasks, told)
        gone = Observation(state=JobState.ENDED, reason="Slurm no longer knows its job")
        return {index: seen.get(wanted[index], gone) if index in wanted else never for index in tasks}

    def cancel(self, launch: LaunchPaths, tasks: Collection[int]) -> None:
        chosen = set(tasks)
        for entry in jobs_of(launch):
            indices = [index - entry["offset"] for index in entry["indices"] if index in chosen]
            if indices:
                _ask(["scancel", f"{entry['job']}_[{script.ranges(indices)}]"])


def jobs_of(launch: LaunchPaths) -> list[dict[str, Any]]:
    """Return the arrays that were submitted for a launch."""
    try:
        entries: list[dict[str, Any]] = json.loads(launch.jobs.read_bytes())
    except FileNotFoundError:
        return []
    return entries


def _executor(parameters: Mapping[str, Any], folder: Path) -> Any:
    """Return submitit's executor; options set to None are left out of its script."""
    import submitit

    class Executor(submitit.SlurmExecutor):  # type: ignore[misc] - submitit's types are partial
        def _make_submission_file_text(self, command: str, uid: str) -> str:
            return script.without_none(super()._make_submission_file_text(command, uid))

    executor = Executor(folder=folder)
    executor.update_parameters(**parameters)
    return executor


def _patiently(submit: Any) -> Any:
    """Submit, and try again with growing pauses while Slurm is busy or a submit limit is reached."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    for attempt in range(_TRIES):
        try:
            return submit()
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            if attempt + 1 == _TRIES or not _BUSY.search(str(error)):
                raise ClusterError(
                    "Slurm refused the jobs", why=_last_line(str(error)), fix="correct the cluster's options, or launch again later"
                ) from error
            time.sleep(0.5 * 2**attempt)
    raise ClusterError("Slurm refused the jobs", fix="launch again later")


@contextmanager
def _clean_environment() -> Iterator[None]:
    """Hide SLURM_* of a job that we may run in from what we submit (FACTS 6); SLURM_CONF must survive."""
    hidden = {k: v for k, v in os.environ.items() if re.match("SLURM_|SBATCH_|SRUN_", k) and k != "SLURM_CONF"}
    for key in hidden:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _ask(argv: Sequence[str]) -> bytes:
    try:
        return run(argv, timeout_s=_ANSWER_SECONDS)
    except ProgramError as error:
        raise ClusterError(
            f"{argv[0]} failed", why=_last_line(error.stderr), fix="is this a Slurm login node, and does `sinfo` answer?"
        ) from error


def _account(jobs: Sequence[str]) -> str:
    """Return sacct's answer about jobs that squeue has forgotten; nothing where there is no accounting."""
    try:
        return run([*SACCT, "--jobs", ",".join(jobs)], timeout_s=_ANSWER_SECONDS).decode(errors="replace")
    except ProgramError as error:
        if "accounting storage is disabled" in error.stderr:
            return ""
        raise ClusterError("sacct failed", why=_last_line(error.stderr), fix="try again later") from error


def _refused(error: ProgramError, resources: Resources) -> Exception:
    why = _last_line(error.stderr)
    asked = ", ".join(f"{key}={value}" for key, value in resources.to_json().items() if value)
    if error.status is None or _BUSY.search(error.stderr):
        return ClusterError("Slurm does not answer", why=why, fix="is this a Slurm login node, and does `sinfo` answer?")
    return RequestError(
        f"Slurm would not run this ({asked})", why=why, fix="change resources, or cluster.partition, account, qos"
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
