"""`python -m orchestrator.slurm.restart LAUNCH INDEX STATUS`: the end of a job's script whose program was interrupted.

Writes down how the run's attempt has ended, and requeues the job if the run's policy wants that. Slurm then ends this
very script: it ignores SIGTERM, and has the seconds of KillWait to give the job more memory and other nodes. Slurm lets
an owner change those of a job that is pending, and a requeued job is, from the first moment on.
"""

from __future__ import annotations

import logging
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from orchestrator.errors import OrchError
from orchestrator.launch import recovery
from orchestrator.launch.recovery import Again, Ending, Room, Stop
from orchestrator.layout import LaunchPaths
from orchestrator.records.attempts import mark_state, read_attempts, read_job_output, write_observed
from orchestrator.records.packs import read_packs
from orchestrator.records.planned import PlannedRun, read_planned_runs
from orchestrator.records.record import Attempt, RunState
from orchestrator.slurm import commands, limits
from orchestrator.slurm.script import REQUEUED
from orchestrator.slurm.states import printed_reason
from orchestrator.slurm.submit_pending import own_job
from orchestrator.system.files import listed
from orchestrator.system.processes import ProgramError

_log = logging.getLogger(__name__)
_STOPPED = 143
_SIGNALLED = 128
_MB = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}
_PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0)
_KILLED_TASK = re.compile(r"^srun: error: (\S+): tasks? ([\d,-]+): (?:Killed|Out Of Memory)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as `scontrol show job` shows it. `memory_mb`: of a node, 0 for all; `memory_key` is how it is set."""

    state: str
    preempted: bool
    requeues: bool
    nodes: str = ""
    excluded: str = ""
    partition: str = ""
    memory_key: str = "MinMemoryNode"
    memory_mb: float = 0.0
    cpus: int = 1
    minutes: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        found = dict(re.findall(r"(\S+?)=(\S+)", text))
        cpus = int(found.get("NumCPUs", "1")) // max(1, int(found.get("NumNodes", "1").partition("-")[0]))
        key = "MinMemoryCPU" if "MinMemoryCPU" in found else "MinMemoryNode"
        return cls(
            state=found.get("JobState", ""),
            preempted=found.get("PreemptTime", "None") not in {"None", "Unknown"},
            requeues=found.get("Requeue") == "1",
            nodes=_some(found.get("NodeList", "")),
            excluded=_some(found.get("ExcNodeList", "")),
            partition=found.get("Partition", ""),
            memory_key=key,
            memory_mb=_megabytes(found.get(key, "0")) * (max(1, cpus) if key == "MinMemoryCPU" else 1),
            cpus=max(1, cpus),
            minutes=limits.minutes(found.get("TimeLimit", "")),
        )

    @property
    def may_be_requeued(self) -> bool:
        """Whether it runs, and Slurm is not about to end or requeue it itself."""
        return self.state == "RUNNING" and self.requeues and not self.preempted

    def changes(self, again: Again, *, avoid: str) -> list[str]:
        """Return the settings for `scontrol update`: the limits of the next start, and the nodes to avoid."""
        found = []
        if again.mem_gb is not None:
            each = again.mem_gb * 1024 / (self.cpus if self.memory_key == "MinMemoryCPU" else 1)
            found.append(f"{self.memory_key}={each:.0f}")
        if avoid:
            found.append(f"ExcNodeList={','.join(filter(None, [self.excluded, avoid]))}")
        if again.hours_factor != 1 and self.minutes:
            found.append(f"TimeLimit={self.minutes * again.hours_factor:.0f}")
        return found


def _some(text: str) -> str:
    return "" if text == "(null)" else text


def _megabytes(text: str) -> float:
    found = re.fullmatch(r"([\d.]+)([KMGT]?)", text)
    return float(found[1]) * _MB[found[2] or "M"] if found else 0.0


def end(launch: LaunchPaths, first: int, status: int, job: str) -> bool:
    """Record the end of a job's runs, and requeue the job if one of them is to be started again; return whether."""
    seen = Job.parse(commands.ask(["scontrol", "--all", "--oneliner", "show", "job", job]))
    output = read_job_output(launch, job, processes=1)
    decisions = [_decided(launch, planned, status, output, seen) for planned in _runs(launch, first)]
    again = [each for each in decisions if isinstance(each, Again)]
    if not again or not seen.may_be_requeued:
        return False
    return _requeue(launch, job, seen, max(again, key=lambda each: each.mem_gb or 0))


def _runs(launch: LaunchPaths, first: int) -> list[PlannedRun]:
    """Return the runs of a job that somebody still wants."""
    found = read_planned_runs(launch, read_packs(launch).tasks(first)).values()
    return [planned for planned in found if not listed(launch.cancelled / planned.run)]


def _decided(launch: LaunchPaths, planned: PlannedRun, status: int, output: str, seen: Job) -> Again | Stop:
    run = launch.experiment.run(planned.run)
    attempts = recovery.of_launch(read_attempts(run), launch.number)
    if not attempts:
        return Stop()
    endings = [recovery.ending(each, node=seen.nodes) for each in attempts]
    if not attempts[-1].final:
        endings[-1] = _ending(attempts[-1], status, output, seen)
    decision = recovery.decide(planned.resources.attempts, endings, _room(planned, seen))
    if not attempts[-1].final and endings[-1].cause:
        reason = recovery.described(endings[-1].reason, decision)
        write_observed(run, attempts[-1].number, "interrupted", reason=reason, cause=endings[-1].cause)
        mark_state(launch.experiment, planned.run, attempts[-1].number, RunState.INTERRUPTED.value)
    return decision


def _ending(last: Attempt, status: int, output: str, seen: Job) -> Ending:
    """Return how an attempt has ended that could not say so, by the exit status and the output of its job."""
    found = _KILLED_TASK.search(output)
    node = found[1] if found else seen.nodes
    reason = printed_reason(output)
    if not reason and status > _SIGNALLED and status != _STOPPED:
        where = f" (rank {found[2]} on {found[1]})" if found else ""
        reason = f"killed by signal {status - _SIGNALLED}{where}"
    step = recovery.ending(last).step
    return Ending(cause=recovery.cause_in(reason), reason=reason, step=step, node=node)


def _room(planned: PlannedRun, seen: Job) -> Room:
    """Return the job's memory, and the most that a node of its partition can give."""
    if "out_of_memory" not in (planned.resources.attempts or recovery.NEVER).when or not seen.memory_mb:
        return Room()
    return Room(mem_gb=seen.memory_mb / 1024, mem_gb_most=_largest_gb(seen.partition))


def _largest_gb(partition: str) -> float | None:
    try:
        nodes = limits.nodes(commands.ask(["scontrol", "--all", "--oneliner", "show", "node"]))
        known = limits.partitions(commands.ask(["scontrol", "--all", "--oneliner", "show", "partition"]))
    except OrchError:
        return None
    most = max((node.memory_mb for node in nodes if partition in node.partitions), default=0)
    limit = next((each.max_memory_mb for each in known if each.name == partition), None)
    return min(filter(None, (most, limit)), default=0) / 1024 or None


def _requeue(launch: LaunchPaths, job: str, seen: Job, again: Again) -> bool:
    """Requeue the job that this process is a part of, then change it; Slurm ends this process meanwhile."""
    changes = seen.changes(again, avoid=_avoidable(launch, job, seen, again.avoid))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        commands.with_retries(lambda: commands.run(["scontrol", "requeue", job]))
    except ProgramError as error:
        _log.warning("job %s cannot be requeued: %s", job, commands.last_line(error.stderr))
        return False
    for change in changes:
        _update(job, change)
    _delay(job, again.after_minutes * 60)
    return True


def _update(job: str, *changes: str) -> None:
    """Change a requeued job; one by one, since one that is refused would take the others with it."""
    for pause in (*_PAUSES_SECONDS, None):
        try:
            commands.run(["scontrol", "update", f"JobId={job}", *changes])
        except ProgramError as error:
            if pause is None or commands.is_final(error.stderr):
                _log.warning("job %s starts again without %s: %s", job, changes, commands.last_line(error.stderr))
                return
            time.sleep(pause)
        else:
            return


def _delay(job: str, seconds: float) -> None:
    """Have a job wait, if Slurm would start it earlier: a requeued one waits until its credential has expired."""
    try:
        text = commands.run(["scontrol", "--all", "--oneliner", "show", "job", job], env={"SLURM_TIME_FORMAT": "%s"})
    except ProgramError:
        return
    found = re.search(r"\bEligibleTime=([0-9]+)", text)
    if found and float(found[1]) < time.time() + seconds:
        _update(job, f"StartTime=now+{seconds:.0f}")


def _avoidable(launch: LaunchPaths, job: str, seen: Job, node: str) -> str:
    """Return the node, if Slurm has others for the job: without any the job would stay pending forever."""
    script = launch.script(job.partition("_")[0])
    if not re.fullmatch(r"[\w.-]+", node) or not listed(script):
        return ""
    excluded = ",".join(filter(None, [seen.excluded, node]))
    try:
        commands.run(["sbatch", "--test-only", f"--exclude={excluded}", str(script)])
    except ProgramError:
        return ""
    return node


def main(folder: str, first: str, status: str) -> int:
    job = own_job()
    try:
        return REQUEUED if end(LaunchPaths(Path(folder)), int(first), int(status), job) else 0
    except (OrchError, OSError) as error:
        _log.warning("job %s is not started again: %s", job, error)
        return 1


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    sys.exit(main(*sys.argv[1:4]))
