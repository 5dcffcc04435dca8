"""`python -m orchestrator.worker.pack LAUNCH INDEX`: the runs of a pack, in one job of Slurm.

A supervisor starts them from a prefork server, at most `resources.pack` at once, and watches each one to its end; only
this process deals with Slurm. On a signal, all runs save, and this process requeues as a single run would: see
`requeue`. A restarted job continues with the runs that have not ended.

Exit status: 0 all have ended, none has failed; 3 some runs have failed; 143 interrupted; 2 wrong arguments.
"""

from __future__ import annotations

from orchestrator.worker.signals import InterruptedByInfrastructureError, StopSignal

stop = StopSignal()
if __name__ == "__main__":
    stop.install()  # before the slow imports

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
"""Variables of the job that its runs may see: how to reach Slurm, the job's scratch, how many tasks start together."""
_LAST_SECONDS = 20.0  # before the time limit: the time it takes to requeue the job
_UNLIMITED_SECONDS = 1e6  # Slurm itself kills runs that do not end


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """The runs of one job, each as if it had the job to itself, and the job's duties towards Slurm (a `JobOwner`)."""

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
        """Whether a later start of the job has begun one of its runs."""
        lasts = [ours[-1] for run in self.runs if (ours := run.attempts_of_this_job())]
        claims = (read_claim(last.attempt) for last in lasts)
        return any(claim is not None and claim.restart > self.context.restart for claim in claims)

    @property
    def cancelled(self) -> bool:
        return all(run.cancelled for run in self.runs)

    def left(self) -> Self:
        """Return a pack of the runs that have not ended yet."""
        return replace(self, runs=tuple(run for run in self.runs if _start(run)))

    def tasks(self) -> list[Task]:
        """Return the runs that have not ended as tasks for a supervisor, each in its next attempt."""
        starts = filter(None, map(_start, self.runs))
        return [Task.of(start.launch, start.planned) for start in starts]

    def stopped_by_limit(self) -> bool:
        """Whether a run has reached its own time limit, and is to continue."""
        lasts = [_last(run) for run in self.runs if not run.cancelled]
        return any(
            last is not None and last.state is RunState.INTERRUPTED and last.reason.startswith(requeue.LIMIT)
            for last in lasts
        )

    def exhausted(self) -> bool:
        """Whether no run may be restarted: all have begun, and have been restarted too often without progress."""
        begun = [ours[-1] for run in self.runs if (ours := run.attempts_of_this_job())]
        return len(begun) == len(self.runs) and all(map(requeue.exhausted, begun))

    def failed(self) -> bool:
        lasts = map(_last, self.runs)
        return any(last is not None and last.state is RunState.FAILED for last in lasts)

    def write_replaced(self) -> None:
        """Record the end of attempts that an earlier start of this job left without a final event."""
        for run in self.runs:
            for earlier in run.attempts_of_this_job():
                attempt = read_attempt(run.run, earlier.attempt)
                if not attempt.final:
                    record_replaced(run.run, attempt)
                    mark_state(run.experiment, run.planned.run, attempt.number, RunState.INTERRUPTED.value)


def _start(run: Assignment) -> Assignment | None:
    """Return a run with the attempt to start; None if nothing is left to do.

    A run may also have failed before it could claim that attempt.
    """
    start = None if run.cancelled else run.next_start()
    if start is None or start.taken_by_others:
        return None
    return None if read_attempt(start.run, start.attempt).state is RunState.FAILED else start


def _last(run: Assignment) -> Attempt | None:
    """Return the latest attempt at the planned run, including those of other jobs."""
    begun = [attempt for attempt in read_attempts(run.run) if attempt.number >= run.planned.attempt]
    return begun[-1] if begun else None


def work(pack: Pack, stop: StopSignal) -> int:
    """Run a pack to its end, or until a signal; return the exit status of its job."""
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
    """Return a function that starts a run with the variables of the shared job."""
    shown = {key: os.environ[key] for key in _KEPT if key in os.environ}
    shown |= {JOB: context.job, RESTART: str(context.restart)}

    def start(start: Start) -> Handle:
        return prefork(replace(start, environments=tuple({**each, **shown} for each in start.environments)))

    return start


def _end(pack: Pack, received: str | None) -> int:
    """Requeue the job if needed, once no run is active; return its exit status."""
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
