"""`python -m orchestrator.worker LAUNCH INDEX`: one task of a launch, on the node where it runs.

Exit status: 0 done, or claimed by another process; 1 failed; 143 interrupted; 2 wrong arguments or folders.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.worker.signals import StopSignal

if TYPE_CHECKING:
    from orchestrator.worker.attempt import Work

stop = StopSignal()
stop.install()


def main(folder: str, index: str, work: Work | None = None) -> int:
    """Claim the task's attempt, redirect all output to its log, run it, and return the exit status."""
    from orchestrator.errors import OrchError
    from orchestrator.system.files import check_private
    from orchestrator.worker.assignment import Assignment
    from orchestrator.worker.attempt import run
    from orchestrator.worker.cause import failing_disk
    from orchestrator.worker.log import to_file

    try:
        assignment = Assignment.read(Path(folder), int(index))
        check_private(assignment.experiment.path)
        taken = assignment.take()
    except (OrchError, OSError) as error:
        if failing_disk(error, Path(folder)):
            sys.stderr.write(f"{error}\n")
            return 143
        if isinstance(error, OSError):
            raise
        sys.stderr.write(f"{error}\n")
        return 2
    if taken is None:
        sys.stdout.write(f"{assignment.attempt.path} has been taken: nothing to do\n")
        return 0
    to_file(taken.attempt.rank_log(taken.context.rank))
    return run(taken, stop, work)


if __name__ == "__main__":
    status = main(sys.argv[1], sys.argv[2])
    with suppress(OSError):  # the disk may be full; the status still tells how the run ended
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)  # no library's exit handler may change the status, or hang
