"""Consequences of a run's end for its launch: the failure limit, and notifications.

Nothing here may change how the run itself has ended.
"""

from __future__ import annotations

import logging

from orchestrator.errors import OrchError
from orchestrator.launch import failure_limit, notification
from orchestrator.worker.assignment import Assignment

_log = logging.getLogger(__name__)


def failed(assignment: Assignment, signature: str) -> None:
    """Apply the failure limit to runs that have not begun, and notify. The failure must be recorded already."""
    launch, run_id = assignment.launch, assignment.planned.run
    try:
        stopped = failure_limit.brake_after(launch, run_id, signature)
        if stopped and assignment.context.job:
            from orchestrator.slurm.cluster import SlurmCluster
            from orchestrator.slurm.options import SlurmOptions

            SlurmCluster(SlurmOptions()).cancel(launch, stopped)
    except (OrchError, OSError) as error:
        _log.warning("the launch goes on: %s", error)  # if only scancel failed, the tasks still see their marks
    notification.notify(launch, notification.Event.FAILED, run_id=run_id, reason=signature)
    ended(assignment)


def ended(assignment: Assignment) -> None:
    """Notify that the launch has ended, if this was its last run. The run's end must be recorded already."""
    try:
        notification.notify_if_ended(assignment.launch)
    except (OrchError, OSError) as error:
        _log.warning("launch.notify: %s", error)
