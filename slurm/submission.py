"""Submission of one array with sbatch, through submitit: with retries, but never twice. Only this imports submitit."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import chdir, redirect_stderr
from pathlib import Path
from typing import Any

from orchestrator.errors import ClusterError
from orchestrator.slurm import commands, script
from orchestrator.slurm.task import StartWorker
from orchestrator.system.files import close_to_others, listed, replacing
from orchestrator.system.processes import ProgramError

_POLICY = re.compile(r"\b(?:QOS|Assoc)[A-Z]\w+")  # the name of the limit, if Slurm prints it
_SUBMIT_LIMIT = re.compile(r"job submit limit", re.IGNORECASE)  # also printed for limits on a job's size
_SITES_OWN = re.compile(r"^sbatch: error: (?!Batch job submission failed)[^\n]*\w", re.MULTILINE)
_FULL = re.compile(r"temporarily unable to accept job|queue full|temporarily unavailable", re.IGNORECASE)
_LATER = "what is missing is submitted later"
_SBATCH_SECONDS = 20  # with a full queue, sbatch tries for two minutes; 20 s is within one of its pauses
_PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
_LOOKS_SECONDS = (0.5, 1.0, 2.0)  # to look for an array after a lost answer; a later submitter looks again
_UNSENT = re.compile(
    r"connect failure|refused|standby|temporar|authentication|credential|munge|configuration source", re.IGNORECASE
)


class SubmitLimitError(ClusterError):
    """A limit on the number of jobs forbids this many for now; fewer may fit. `named`: Slurm named the limit."""

    named = True


class QueueFullError(SubmitLimitError):
    """Slurm's queue is full: for now it accepts no more jobs at all."""


class RefusedError(ClusterError):
    """Slurm, or the site, refuses the jobs for good. All other errors are assumed to be temporary."""


class LostAnswerError(ClusterError):
    """Slurm may have accepted the jobs, or may still do so: look for them before submitting them again."""


def limit(told: str) -> SubmitLimitError | None:
    """Return the error for a temporary limit, if that is sbatch's complaint; otherwise None.

    A site's own rule may use Slurm's message, "violates accounting/QOS policy", but prints lines of its own with it.
    """
    names = _POLICY.findall(told)
    unnamed = not names and _SUBMIT_LIMIT.search(told) and not _SITES_OWN.search(told)
    if any("Submit" in name for name in names) or unnamed:
        why = f"submit limit ({names[0]})" if names else "submit limit"
        error = SubmitLimitError("Slurm accepts no more jobs of yours for now", why=why, fix=_LATER)
        error.named = bool(names)
        return error
    if _FULL.search(told):
        return QueueFullError("Slurm's queue is full", why="submit limit (MaxJobCount)", fix=_LATER)
    return None


def executor(parameters: Mapping[str, Any], folder: Path) -> Any:
    """Return submitit's executor; options set to None are left out of its script."""
    import submitit

    class Executor(submitit.SlurmExecutor):
        def _make_submission_command(self, path: Path) -> list[str]:
            return ["timeout", str(_SBATCH_SECONDS), *super()._make_submission_command(path)]

        def _make_submission_file_text(self, command: str, uid: str) -> str:
            written = super()._make_submission_file_text(command, uid)
            return script.without_none(written, parameters["additional_parameters"])

    made = Executor(folder=folder, python=f"${script.BLOCKED} {shlex.quote(sys.executable)}")
    made.update_parameters(**parameters)
    return made


def text(parameters: Mapping[str, Any], folder: Path) -> str:
    """Return the script that `submit` would pass to sbatch."""
    made = executor(parameters, folder)
    written: str = made._make_submission_file_text(made._submitit_command_str, "")  # noqa: SLF001 - the renderer has no public name
    return written


def submit(
    parameters: Mapping[str, object],
    start: StartWorker,
    path: Path,
    *,
    cluster: str,
    find: Callable[[], str | None],
    renew: Callable[[], None],
) -> str:
    """Submit an array and return its job id. `path` is the file from which its tasks start.

    `find` looks for the array in Slurm after a lost answer; `renew` raises if this process may no longer submit.
    Raises SubmitLimitError if a limit forbids this many jobs, RefusedError if they are refused for good,
    LostAnswerError if it is not known whether they were accepted, ClusterError if Slurm does not accept them now.
    """
    for pause in (*_PAUSES_SECONDS, None):
        renew()
        try:
            return _submit_once(parameters, start, path, cluster)
        except _Failure as failure:
            told = failure.told
            if (found := _find_if_answered(find)) is not None:
                return found
            if (passes := limit(told)) is not None:
                raise passes from failure
            if commands.is_final(told):
                raise _refused(told) from failure
            lost = _is_lost(told)
            if lost and (found := _find_with_patience(find)) is not None:
                return found
            if lost or pause is None:
                repeated = _is_repeated(told, text(parameters, path.parent), cluster)
                raise (_refused if repeated else _lost if lost else _temporary)(told) from failure
            time.sleep(pause)
    raise ClusterError("Slurm does not take the jobs", fix=_LATER)


class _Failure(Exception):  # noqa: N818 - it is classified where it is caught
    """sbatch has not confirmed a submission; `told` is its output."""

    def __init__(self, told: str) -> None:
        super().__init__(told)
        self.told = told


def _submit_once(parameters: Mapping[str, object], start: StartWorker, path: Path, cluster: str) -> str:
    from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError

    # submitit names its pickle after the job only once that is submitted. If this process dies first, tasks use this.
    folder = path.parent
    _write_start(DelayedSubmission(start), path)
    try:
        # sbatch's standard error is also in the exception.
        with commands.in_environment(cluster), chdir(folder.parent), redirect_stderr(io.StringIO()):
            job = str(executor(parameters, folder).submit(start).job_id)
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        raise _Failure(str(error).strip()) from error
    close_to_others(folder)  # submitit leaves permissions to the umask
    return job


def _find_if_answered(find: Callable[[], str | None]) -> str | None:
    try:
        return find()
    except ClusterError:
        return None  # without an answer of squeue nothing is known


def _is_lost(told: str) -> bool:
    """Return whether the request may have reached slurmctld although its answer was lost."""
    answered = "submission failed: " in told and not commands.UNANSWERED.search(told)
    return not answered and not _UNSENT.search(told)


def _find_with_patience(find: Callable[[], str | None]) -> str | None:
    for pause in _LOOKS_SECONDS:
        time.sleep(pause)
        if (found := _find_if_answered(find)) is not None:
            return found
    return None


def _is_repeated(told: str, script: str, cluster: str) -> bool:
    """Return whether `sbatch --test-only` gives the same error for a script: then a retry is useless."""
    if commands.UNANSWERED.search(told):
        return False
    try:
        commands.run(["sbatch", "--test-only"], cluster=cluster, stdin=script.encode())
    except ProgramError as error:
        return commands.slurm_message(error.stderr) == commands.slurm_message(told)
    return False


def _lost(told: str) -> ClusterError:
    why = f"Slurm's answer was lost ({commands.one_line(told)})"
    return LostAnswerError("Slurm may have taken the jobs", why=why, fix=_LATER)


def _temporary(told: str) -> ClusterError:
    return ClusterError("Slurm does not take the jobs now", why=commands.one_line(told), fix=_LATER)


def _write_start(delayed: Any, path: Path) -> None:
    """Write the file from which tasks start, only once: tasks of an earlier array may be reading it."""
    if not listed(path):
        with replacing(path) as draft:
            delayed.dump(draft)


def _refused(told: str) -> RefusedError:
    fix = "correct the cluster's options, or launch again later"
    return RefusedError("Slurm refused the jobs", why=commands.one_line(told), fix=fix)
