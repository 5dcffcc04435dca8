"""One array -> sbatch, through submitit, its only importer: told once, patiently, and never twice."""

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

_POLICY = re.compile(r"\b(?:QOS|Assoc)[A-Z]\w+")  # the limit's own name, where Slurm tells it
_SUBMIT_LIMIT = re.compile(r"job submit limit", re.IGNORECASE)  # Slurm says so of limits on a job's size, too
_SITES_OWN = re.compile(r"^sbatch: error: (?!Batch job submission failed)[^\n]*\w", re.MULTILINE)
_FULL = re.compile(r"temporarily unable to accept job|queue full|temporarily unavailable", re.IGNORECASE)
_LATER = "what is missing is submitted later"
_SBATCH_SECONDS = 20  # where the queue is full it tries for two minutes; this is within one of its pauses
_PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
_LOOKS_SECONDS = (0.5, 1.0, 2.0)  # for what may have been taken; longer looks are for whoever goes on later
_UNSENT = re.compile(
    r"connect failure|refused|standby|temporar|authentication|credential|munge|configuration source", re.IGNORECASE
)


class SubmitLimitError(ClusterError):
    """A limit on the number of jobs forbids so many of them for now; fewer may fit. `named`: Slurm said which."""

    named = True


class QueueFullError(SubmitLimitError):
    """Slurm holds as many jobs as it can: not one more fits for now."""


class RefusedError(ClusterError):
    """Slurm, or the site, refuses the jobs for good. Any other error passes, as far as anybody knows."""


class LostAnswerError(ClusterError):
    """Slurm may have taken the jobs, or may yet take them: they are looked for before they are submitted again."""


def limit(told: str) -> SubmitLimitError | None:
    """Return the error of a limit that passes by itself, if that is what sbatch complains of.

    A site's own rule may use Slurm's word for it, "violates accounting/QOS policy": it says in lines of its own why.
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
    """Return the script that `submit` would hand to sbatch."""
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
    """Submit an array and return its job's id. `path` is where its tasks look for what starts them.

    `find` looks for it in Slurm after an answer that was lost; `renew` raises if we may submit no longer.
    Raises SubmitLimitError where a limit forbids so many jobs, RefusedError where they are refused for good,
    LostAnswerError where nobody knows whether they were taken, ClusterError where Slurm does not take them now.
    """
    for pause in (*_PAUSES_SECONDS, None):
        renew()
        try:
            return _handed_over(parameters, start, path, cluster)
        except _Failure as failure:
            told = failure.told
            if (found := _found(find)) is not None:
                return found
            if (passes := limit(told)) is not None:
                raise passes from failure
            if commands.is_final(told):
                raise _refused(told) from failure
            lost = _is_lost(told)
            if lost and (found := _looked_for(find)) is not None:
                return found
            if lost or pause is None:
                repeated = _is_repeated(told, text(parameters, path.parent), cluster)
                raise (_refused if repeated else _lost if lost else _passing)(told) from failure
            time.sleep(pause)
    raise ClusterError("Slurm does not take the jobs", fix=_LATER)


class _Failure(Exception):  # noqa: N818 - it is sorted out where it is caught
    """sbatch has not said that it submitted; `told` is all that it did say."""

    def __init__(self, told: str) -> None:
        super().__init__(told)
        self.told = told


def _handed_over(parameters: Mapping[str, object], start: StartWorker, path: Path, cluster: str) -> str:
    from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError

    # submitit names the pickle after the job only once it is submitted: if we die before, its tasks still find this.
    folder = path.parent
    _write_start(DelayedSubmission(start), path)
    try:
        # What sbatch says on standard error is in the error, too.
        with commands.in_environment(cluster), chdir(folder.parent), redirect_stderr(io.StringIO()):
            job = str(executor(parameters, folder).submit(start).job_id)
    except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
        raise _Failure(str(error).strip()) from error
    close_to_others(folder)  # submitit leaves it to the umask who may write them
    return job


def _found(find: Callable[[], str | None]) -> str | None:
    try:
        return find()
    except ClusterError:
        return None  # a squeue that does not answer says nothing


def _is_lost(told: str) -> bool:
    """Return whether the request may have reached slurmctld without an answer of it reaching us."""
    answered = "submission failed: " in told and not commands.UNANSWERED.search(told)
    return not answered and not _UNSENT.search(told)


def _looked_for(find: Callable[[], str | None]) -> str | None:
    for pause in _LOOKS_SECONDS:
        time.sleep(pause)
        if (found := _found(find)) is not None:
            return found
    return None


def _is_repeated(told: str, script: str, cluster: str) -> bool:
    """Return whether `sbatch --test-only` says the same of a script: then trying again is of no use."""
    if commands.UNANSWERED.search(told):
        return False
    try:
        commands.run(["sbatch", "--test-only"], cluster=cluster, stdin=script.encode())
    except ProgramError as error:
        return commands.slurm_message(error.stderr) == commands.slurm_message(told)
    return False


def _lost(told: str) -> ClusterError:
    why = f"Slurm's answer was lost ({commands.said(told)})"
    return LostAnswerError("Slurm may have taken the jobs", why=why, fix=_LATER)


def _passing(told: str) -> ClusterError:
    return ClusterError("Slurm does not take the jobs now", why=commands.said(told), fix=_LATER)


def _write_start(delayed: Any, path: Path) -> None:
    """Write what tasks are started from, once: those of an earlier array may be reading it."""
    if not listed(path):
        with replacing(path) as draft:
            delayed.dump(draft)


def _refused(told: str) -> RefusedError:
    fix = "correct the cluster's options, or launch again later"
    return RefusedError("Slurm refused the jobs", why=commands.said(told), fix=fix)
