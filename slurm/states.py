"""Slurm's job states as observations. Total: every state is mapped, and an unknown one becomes UNKNOWN.

States as in squeue(1) and sacct(1), section JOB STATE CODES.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from orchestrator.cluster import JobState, Observation

STATES: Mapping[str, JobState] = {
    **dict.fromkeys(
        ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"),
        JobState.PENDING,
    ),
    **dict.fromkeys(
        ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"), JobState.RUNNING
    ),
    **dict.fromkeys(
        ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"), JobState.ENDED
    ),
    **dict.fromkeys(("BOOT_FAIL", "DEADLINE", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL"), JobState.ENDED),
}
LASTING = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE"})
"""States after which Slurm does not restart a job by itself."""
OF_ITSELF = frozenset({"COMPLETED", "FAILED"})
"""States of jobs that Slurm did not end: the exit status that their script wrote says why they ended."""

_REASONS: Mapping[str, str] = {
    "OUT_OF_MEMORY": "out of memory: killed by Slurm",
    "TIMEOUT": "time limit",
    "NODE_FAIL": "its node failed",
    "PREEMPTED": "preempted",
    "BOOT_FAIL": "its node did not boot",
    "DEADLINE": "deadline",
    "CANCELLED": "cancelled in Slurm",
    "COMPLETED": "ended without a final event",
    "FAILED": "failed in Slurm",
}
_PRINTED: Mapping[str, re.Pattern[str]] = {
    "OUT_OF_MEMORY": re.compile(
        r"^(slurmstepd.* error: .*(exceeded (job |step )?memory limit|oom.kill)|srun: error: .*: out of memory)",
        re.IGNORECASE | re.MULTILINE,
    ),
    "NODE_FAIL": re.compile(
        r"^srun: error: (node failure on |task launch for \S+ failed on node \S+: (communication|socket|unable to))",
        re.IGNORECASE | re.MULTILINE,
    ),
}
_TOLD = frozenset({"SUSPENDED", "STOPPED", "COMPLETING", "REQUEUE_HOLD", "SPECIAL_EXIT"})
SQUEUE = ("squeue", "--all", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%N|%e|%j|%k")
"""`--all` includes hidden partitions, where ordinary users would not see even their own jobs."""
SACCT = ("sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,Reason,NodeList,End,JobName")
TIMES = {"SLURM_TIME_FORMAT": "%s"}
"""The environment of both commands, for times in seconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmTask:
    """One task as Slurm reports it. `job` is `<array job>_<index>`, or `<job>` without an array.

    `of_itself`: it has ended, and was not ended by Slurm. `lasting`: it has ended, and Slurm will not restart it.
    `name` and `comment` are as submitted; only squeue reports the comment.
    """

    job: str
    observation: Observation
    of_itself: bool = False
    lasting: bool = False
    name: str = ""
    comment: str = ""


def parse(text: str) -> Iterator[SlurmTask]:
    """Yield the tasks in the output of SQUEUE or SACCT; other lines are skipped."""
    for line in text.split("\n"):  # a comment may hold characters that end a line for `splitlines`
        job, *rest = line.split("|", 6)
        if len(rest) >= 3 and re.fullmatch(r"[0-9]+(_[0-9]+)?", job, re.ASCII):
            word, reason, node, end, name, comment = [*rest, "", "", ""][:6]
            yield SlurmTask(
                job=job,
                observation=observation(job, word, reason, node, end),
                name=name,
                comment=comment,
                of_itself=_name(word) in OF_ITSELF,
                lasting=_name(word) in LASTING,
            )


def observation(job: str, word: str, reason: str, node: str, end: str = "") -> Observation:
    """Return the observation for a state. `CANCELLED by 1000` and `PENDING+` are read by their first word."""
    name = _name(word)
    state = STATES.get(name, JobState.UNKNOWN)
    told = "" if reason in {"None", "(null)", ""} else reason
    if state is JobState.ENDED:
        told = _REASONS.get(name, name.lower().replace("_", " "))
    elif state is JobState.UNKNOWN:
        told = f"Slurm says {word!r}, which is not known here"
    elif name in _TOLD:
        told = name.lower()
    ended = state is JobState.ENDED
    return Observation(
        state=state,
        reason=told,
        job=job,
        node="" if node in {"(null)", "None assigned"} else node,
        unattended=ended,
        ended=float(end) if ended and re.fullmatch(r"[0-9]{1,12}", end, re.ASCII) else None,
    )


def printed_reason(output: str) -> str:
    """Return why Slurm ended a job, from the job's output; empty if unknown. A job whose step was killed is FAILED."""
    return next((_REASONS[word] for word, pattern in _PRINTED.items() if pattern.search(output)), "")


def _name(word: str) -> str:
    found = re.match(r"[A-Z_]+", word)
    return found.group() if found else word
