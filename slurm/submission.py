"""One array -> sbatch, through submitit, its only importer: told once, patiently, and never twice."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

from orchestrator.errors import ClusterError
from orchestrator.slurm import script
from orchestrator.slurm.queue import BUSY, last_line
from orchestrator.slurm.task import StartWorker

_SUBMIT_LIMIT = re.compile(r"SubmitJob|MaxSubmit|job submit limit|temporarily unable to accept job", re.IGNORECASE)
_INHERITED = re.compile(r"SLURM_|SRUN_|SBATCH_")
_PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)


class SubmitLimitError(ClusterError):
    """Slurm takes no more jobs of this user's, or of anybody's, for now."""


def executor(parameters: Mapping[str, Any], folder: Path) -> Any:
    """Return submitit's executor; options set to None are left out of its script."""
    import submitit

    class Executor(submitit.SlurmExecutor):  # type: ignore[misc] - submitit's types are partial
        def _make_submission_file_text(self, command: str, uid: str) -> str:
            return script.without_none(super()._make_submission_file_text(command, uid))

    made = Executor(folder=folder)
    made.update_parameters(**parameters)
    return made


def text(parameters: Mapping[str, Any], folder: Path) -> str:
    """Return the script that `submit` would hand to sbatch."""
    made = executor(parameters, folder)
    written: str = made._make_submission_file_text(made._submitit_command_str, "")  # noqa: SLF001 - the renderer has no public name
    return written


def submit(
    parameters: Mapping[str, Any], start: StartWorker, folder: Path, *, find: Callable[[], str | None]
) -> str:
    """Submit an array and return its job's id. `find` looks for it in Slurm after an answer that was lost.

    Raises SubmitLimitError where a limit forbids so many jobs, ClusterError where it is refused otherwise.
    """
    from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError

    # submitit names the pickle after the job only once it is submitted: if we die before, its tasks still find this.
    DelayedSubmission(start).dump(folder / script.pickle_name(start.offset))
    for pause in (*_PAUSES_SECONDS, None):
        try:
            with inherited_hidden(), chdir(folder.parent):
                return str(executor(parameters, folder).submit(start).job_id)
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            if (found := find()) is not None:
                return found
            if pause is None or not BUSY.search(str(error)):
                raise _refused(str(error)) from error
            time.sleep(pause)
    raise ClusterError("Slurm refused the jobs", fix="launch again later")


def _refused(told: str) -> ClusterError:
    why = last_line(told)
    if _SUBMIT_LIMIT.search(told):
        return SubmitLimitError(
            "Slurm accepts no more jobs for now", why=why,
            fix="launch again once some have ended: what is missing is submitted then",
        )  # fmt: skip
    return ClusterError("Slurm refused the jobs", why=why, fix="correct the cluster's options, or launch again later")


@contextmanager
def inherited_hidden() -> Iterator[None]:
    """Hide what a job that we may run in would hand down to what we submit (FACTS 6); SLURM_CONF must survive."""
    hidden = {key: value for key, value in os.environ.items() if _INHERITED.match(key) and key != "SLURM_CONF"}
    for key in hidden:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(hidden)
