"""What the end of a run means for its launch: the brake after a failure, and telling a person.

Nothing here may change how the run itself has ended.
"""

from __future__ import annotations

import logging

from orchestrator.errors import OrchError
from orchestrator.launch import failure_limit, notification
from orchestrator.worker.assignment import Assignment

_log = logging.getLogger(__name__)


def failed(assignment: Assignment, signature: str) -> None:
    """See to what a failure means for the runs that have not begun. The failure has been written down."""
    launch, run_id = assignment.launch, assignment.planned.run
    try:
        stopped = failure_limit.brake_after(launch, run_id, signature)
        if stopped and assignment.context.job:
            from orchestrator.slurm.cluster import SlurmCluster
            from orchestrator.slurm.options import SlurmOptions

            SlurmCluster(SlurmOptions()).cancel(launch, stopped)
    except (OrchError, OSError) as error:
        _log.warning("the launch goes on: %s", error)  # where only Slurm was not told, its tasks see the marks
    notification.notify(launch, notification.Event.FAILED, run_id=run_id, reason=signature)
    ended(assignment)


def ended(assignment: Assignment) -> None:
    """Tell of the launch's end, if this was the last of its runs. Its own end has been written down."""
    try:
        notification.notify_if_ended(assignment.launch)
    except (OrchError, OSError) as error:
        _log.warning("launch.notify: %s", error)
