"""`python -m orchestrator.slurm.teardown RUNS`: at the end of a Slurm job, submit pending tasks.

The job's script calls it, with the job's frozen code, after the run's final event. The job itself still counts towards
a submit limit then. If several jobs end at the same time, each still counts for the others; so the last one to try
waits until the others are gone and tries again, while the others leave at once.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from orchestrator.errors import OrchError
from orchestrator.layout import LaunchPaths, RunsRoot
from orchestrator.slurm import leases, submit_pending
from orchestrator.slurm.cluster import SlurmCluster
from orchestrator.slurm.options import SlurmOptions
from orchestrator.slurm.submit_pending import Outcome

_log = logging.getLogger(__name__)
_PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0)
_TOGETHER_SECONDS = 60.0


def end(runs: RunsRoot, job: str) -> None:
    """Submit the pending tasks of all launches in a folder of runs, at the end of a job."""
    for launch in runs.launches_waiting():
        try:
            _submit_pending(launch, job)
        except (OrchError, OSError) as error:
            _log.warning("%s: pending tasks are submitted later: %s", launch.path, error)


def _submit_pending(launch: LaunchPaths, job: str) -> None:
    cluster = SlurmCluster(SlurmOptions())
    mine = 0
    for pause in (*_PAUSES_SECONDS, None):
        if mine and _other_later(launch, mine, job):
            return
        result = cluster.try_submit_pending(launch, ending=job)
        if result.outcome in {Outcome.SUBMITTED, Outcome.NOTHING_LEFT, Outcome.HELD} or pause is None:
            return
        if result.outcome is Outcome.DEFERRED:
            if not mine and not _just_ended(result.previous, job):
                return
            mine = result.lease
        time.sleep(pause)


def _just_ended(lease: leases.SubmitLease | None, job: str) -> bool:
    """Return whether another job tried just before this one, and may still have counted towards the limit."""
    if lease is None or lease.job in {"", job}:
        return False
    return lease.end is None or time.time() - lease.end.time < _TOGETHER_SECONDS


def _other_later(launch: LaunchPaths, mine: int, job: str) -> bool:
    """Return whether another job has tried after this one: then that one waits and tries again."""
    last = leases.last(launch)
    return last is not None and last.number > mine and last.job not in {"", job}


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    end(RunsRoot(Path(sys.argv[1])), submit_pending.own_job())
