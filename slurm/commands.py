"""Run Slurm's commands, all in the same environment, and interpret what they print when they fail.

The user's variables choose the installation (SLURM_CONF) and the login (SLURM_JWT). All other variables of Slurm are
removed: they filter and format answers (SQUEUE_PARTITION, SLURM_TIME_FORMAT), belong to a surrounding job (FACTS 6), or
are defaults of sbatch, which `site_defaults` reads. The cluster that a launch was submitted to is in its header.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from orchestrator.errors import ClusterError
from orchestrator.system import processes
from orchestrator.system.processes import ProgramError

UNANSWERED = re.compile(
    r"socket|timed out|time ?out|try again|slurm_load|slow response|unable to (contact|connect|send)|zero bytes"
    r"|connection|communication|standby|message (send|receive|length)|unexpected message|entire message|header lengths"
    r"|temporar|credential|authentication|munge|configuration source|interrupted system call",
    re.IGNORECASE,
)
"""Messages that mean that slurmctld did not answer, or could not be reached."""
_FINAL = re.compile(
    r"\binvalid\b(?!.*(\bid\b|credential))|unrecognized option|unknown option|requires an argument|ambiguous"
    r"|\bnot (permitted|allowed|supported|configured)|unsupported|(permission|access) denied"
    r"|than (permitted|available|the job)|too long|violates \S+ policy|not in this partition|no partition specified"
    r"|terminated with error|script is empty|not look like a batch script|unable to open file"
    r"|not provided|needs to be provided|does not permit|duplicate generic resource|only batch jobs",
    re.IGNORECASE,
)
"""Errors of Slurm that name something invalid or forbidden. All others are assumed to be temporary."""
_SLURMS_WORD = re.compile(r"submission failed: |allocation failure: ")
_PAUSES_SECONDS = (0.5, 1.0, 2.0)
FIX = "is this a Slurm login node, and does `sinfo` answer?"
_OF_SLURM = re.compile(
    r"(SLURM|SBATCH|SALLOC|SRUN|SQUEUE|SACCT|SACCTMGR|SINFO|SCANCEL|SCONTROL|SPRIO|SSHARE|SSTAT|SREPORT|SDIAG)_"
)
_KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})
_ANSWER_SECONDS = 60.0

Answer = TypeVar("Answer")


def environment(cluster: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for Slurm's commands, made from this process's.

    `cluster` is the cluster to ask, as in SLURM_CLUSTERS; empty: this machine's own.
    """
    kept = {key: value for key, value in environ.items() if key in _KEPT or not _OF_SLURM.match(key)}
    # On its own nodes a cluster is asked directly: they may not reach the database that lists the others.
    return kept | ({"SLURM_CLUSTERS": cluster} if cluster and cluster != environ.get("SLURM_CLUSTER_NAME") else {})


def run(
    argv: Sequence[str],
    *,
    cluster: str = "",
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    timeout_s: float = _ANSWER_SECONDS,
) -> str:
    """Run one of Slurm's commands and return what it prints; `env` is added to its environment.

    Raises ProgramError if it cannot be started, fails, or does not end in time.
    """
    inherited = environment(cluster, os.environ)
    answer = processes.run(argv, inherited=inherited, env=env, stdin=stdin, timeout_s=timeout_s)
    return answer.decode(errors="replace")


def ask(argv: Sequence[str], *, cluster: str = "") -> str:
    """Return what a command of Slurm prints, with retries. Raises ClusterError with its last line."""
    try:
        return with_retries(lambda: run(argv, cluster=cluster))
    except ProgramError as error:
        raise ClusterError(f"{argv[0]} failed", why=last_line(error.stderr), fix=FIX) from error


def is_final(text: str) -> bool:
    """Return whether a command's output is an error that will not go away by itself."""
    told = slurm_message(text)
    return bool(_FINAL.search(told)) and not UNANSWERED.search(told)


def slurm_message(text: str) -> str:
    """Return the reason that Slurm itself gives, without what a site's own rules print before it."""
    return _SLURMS_WORD.split(text)[-1].strip()


def is_retry_useless(error: ProgramError) -> bool:
    """Return whether a retry is useless: the error is final, or the command did not end in time."""
    return error.status is None or is_final(error.stderr)


def with_retries(ask: Callable[[], Answer], *, useless: Callable[[ProgramError], bool] = is_retry_useless) -> Answer:
    """Return an answer of Slurm, with retries after temporary errors. Raises the last ProgramError."""
    for pause in _PAUSES_SECONDS:
        try:
            return ask()
        except ProgramError as error:
            if useless(error):
                raise
        time.sleep(pause)
    return ask()


@contextmanager
def in_environment(cluster: str) -> Iterator[None]:
    """Set this process's environment to that of Slurm's commands, for a library that starts one itself."""
    before = dict(os.environ)
    wanted = environment(cluster, before)
    changed = {key for key in before.keys() | wanted.keys() if before.get(key) != wanted.get(key)}
    _set(changed, wanted)
    try:
        yield
    finally:
        _set(changed, before)


def _set(keys: set[str], values: Mapping[str, str]) -> None:
    for key in keys:
        if key in values:
            os.environ[key] = values[key]
        else:
            os.environ.pop(key, None)


def one_line(text: str) -> str:
    """Return a command's whole output as one line: a site's own plugins explain a refusal before Slurm's message."""
    lines = (re.sub(r"^s[a-z]+: (error:)?", "", line.strip()).strip() for line in text.splitlines())
    return "; ".join(dict.fromkeys(line for line in lines if re.search(r"\w", line))) or "no message"


def last_line(text: str) -> str:
    """Return the last non-empty line, without the program's name before it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^\w+: (error: )?", "", lines[-1]) if lines else "no message"
