"""`python -m orchestrator.worker.pack LAUNCH INDEX`: the runs of a pack, in one job of Slurm.

A supervisor starts them from a warm parent, as many at once as `resources.pack` says, and sees to each one's end; it
alone answers to Slurm. Told to stop, it has all of them save, and does what one run by itself would: see `requeue`.
A job that is started again goes on with the runs that have not ended.

Exit status: 0 nothing is left, and nothing has failed; 3 some runs have failed; 143 interrupted; 2 wrong arguments.
"""

from __future__ import annotations

from orchestrator.worker.signals import InterruptedByInfrastructureError, StopSignal

stop = StopSignal()
if __name__ == "__main__":
    stop.install()  # before all that takes time

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from orchestrator.errors import OrchError
from orchestrator.layout import LaunchPaths
from orchestrator.local.launcher import Handle, Start
from orchestrator.local.prefork import PreforkLauncher
from orchestrator.local.schedule import Terms
from orchestrator.local.supervisor import Supervisor
from orchestrator.local.tasks import Task
from orchestrator.records.attempts import mark_state, read_attempt, read_attempts, read_claim
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import read_launch
from orchestrator.records.orphans import record_replaced
from orchestrator.records.packs import read_packs
from orchestrator.records.planned import read_planned_runs
from orchestrator.records.record import Attempt, RunState
from orchestrator.slurm.options import SlurmOptions
from orchestrator.slurm.packed import SOME_FAILED
from orchestrator.system.files import check_private
from orchestrator.worker import requeue
from orchestrator.worker.assignment import Assignment
from orchestrator.worker.context import JOB, RESTART, ProcessContext
from orchestrator.worker.superseded import EVERY_SECONDS

_LOOK_SECONDS = 1.0
_KEPT = ("SLURM_CONF", "SLURM_TMPDIR", "SLURM_ARRAY_TASK_COUNT")
"""What a run may know of the job that it shares: how to ask Slurm, the job's scratch, and how many start together."""
_LAST_SECONDS = 20.0  # of those between Slurm's signal and the time limit, what it takes to requeue the job
_UNLIMITED_SECONDS = 1e6  # Slurm itself kills what does not end


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """The runs of one job, each as if it had it for itself; and what the job owes Slurm for all of them."""

    launch: LaunchPaths
    header: LaunchHeader
    runs: tuple[Assignment, ...]
    context: ProcessContext

    @classmethod
    def read(cls, folder: Path, first: int, context: ProcessContext) -> Self:
        launch = LaunchPaths(folder)
        check_private(launch.experiment.path)
        header = read_launch(launch).header
        found = read_planned_runs(launch, read_packs(launch).tasks(first))
        runs = [
            Assignment(launch=launch, header=header, planned=planned, context=context) for planned in found.values()
        ]
        return cls(launch=launch, header=header, runs=tuple(runs), context=context)

    @property
    def leads(self) -> bool:
        return True

    @property
    def rank_failed(self) -> bool:
        return False

    @property
    def superseded(self) -> bool:
        """Whether a later start of the job has begun a run of it."""
        lasts = [ours[-1] for run in self.runs if (ours := run.attempts_of_this_job())]
        claims = (read_claim(last.attempt) for last in lasts)
        return any(claim is not None and claim.restart > self.context.restart for claim in claims)

    @property
    def cancelled(self) -> bool:
        return all(run.cancelled for run in self.runs)

    def left(self) -> Self:
        """Return the pack of those runs that this job has yet to end."""
        return replace(self, runs=tuple(run for run in self.runs if _start(run)))

    def tasks(self) -> list[Task]:
        """Return them as tasks of a supervisor, each in its next attempt."""
        starts = filter(None, map(_start, self.runs))
        return [Task.of(start.launch, start.planned) for start in starts]

    def stopped_by_limit(self) -> bool:
        """Whether a run has had its own time, and is to go on."""
        lasts = [_last(run) for run in self.runs if not run.cancelled]
        return any(
            last is not None and last.state is RunState.INTERRUPTED and last.reason.startswith(requeue.LIMIT)
            for last in lasts
        )

    def exhausted(self) -> bool:
        """Whether no run is to be started again: those begun have got no further, however often they were."""
        begun = [ours[-1] for run in self.runs if (ours := run.attempts_of_this_job())]
        return len(begun) == len(self.runs) and all(map(requeue.exhausted, begun))

    def failed(self) -> bool:
        lasts = map(_last, self.runs)
        return any(last is not None and last.state is RunState.FAILED for last in lasts)

    def write_replaced(self) -> None:
        """Write down the end of the attempts that an earlier start of this job left without a word."""
        for run in self.runs:
            for earlier in run.attempts_of_this_job():
                attempt = read_attempt(run.run, earlier.attempt)
                if not attempt.final:
                    record_replaced(run.run, attempt)
                    mark_state(run.experiment, run.planned.run, attempt.number, RunState.INTERRUPTED.value)


def _start(run: Assignment) -> Assignment | None:
    """Return a run in the attempt that is to be started; None where nothing is left to do.

    It may also have failed before it could claim that attempt.
    """
    start = None if run.cancelled else run.next_start()
    if start is None or start.taken_by_others:
        return None
    return None if read_attempt(start.run, start.attempt).state is RunState.FAILED else start


def _last(run: Assignment) -> Attempt | None:
    """Return the last attempt at what the plan asks for, whoever has begun it."""
    begun = [attempt for attempt in read_attempts(run.run) if attempt.number >= run.planned.attempt]
    return begun[-1] if begun else None


def work(pack: Pack, stop: StopSignal) -> int:
    """Work off a pack; return the exit status of its job."""
    pack.write_replaced()
    prefork = PreforkLauncher()
    supervisor = Supervisor(sync=lambda *_: None, start=_starter(prefork, pack.context), restarts=True)
    options = SlurmOptions.parse(pack.header.cluster)
    need = pack.runs[0].planned.resources
    terms = Terms(cpus=need.job.cpus_per_node, grace_seconds=options.grace_seconds)
    supervisor.queue(pack.launch, pack.tasks(), terms)
    due = time.monotonic() + EVERY_SECONDS
    while not stop.received and supervisor.step():
        prefork.wait(_LOOK_SECONDS)
        if time.monotonic() > due:
            due = time.monotonic() + EVERY_SECONDS
            if pack.superseded:
                supervisor.stop("its job was started again", grace_seconds=options.grace_seconds)
                prefork.close()
                return 143
    if stop.received:
        limited = stop.received == requeue.TIME_LIMIT
        grace = max(options.grace_seconds, options.signal_seconds - _LAST_SECONDS) if limited else _UNLIMITED_SECONDS
        supervisor.stop("its job was stopped", number=signal.Signals[stop.received], grace_seconds=grace)
    prefork.close()
    return _end(pack, stop.received)


def _starter(prefork: PreforkLauncher, context: ProcessContext) -> Callable[[Start], Handle]:
    """Return what starts a run of a job as one that shares it."""
    shown = {key: os.environ[key] for key in _KEPT if key in os.environ}
    shown |= {JOB: context.job, RESTART: str(context.restart)}

    def start(start: Start) -> Handle:
        return prefork(replace(start, environments=tuple({**each, **shown} for each in start.environments)))

    return start


def _end(pack: Pack, received: str | None) -> int:
    """Do what the job owes Slurm, once no run is at work; return its exit status."""
    told = received or (requeue.TIME_LIMIT if pack.stopped_by_limit() else None)
    left = pack.left()
    if told and left.runs:
        requeue.answer(left, InterruptedByInfrastructureError(told), exhausted=left.exhausted)
        return 143
    return SOME_FAILED if pack.failed() else 0


def main(folder: str, first: str) -> int:
    try:
        pack = Pack.read(Path(folder), int(first), ProcessContext.of(os.environ, slurm=True))
    except OrchError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return work(pack, stop)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    status = main(sys.argv[1], sys.argv[2])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
