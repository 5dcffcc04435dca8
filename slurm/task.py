"""What the pickle in a submitit folder calls on a node: it becomes our worker, and submitit is gone.

submitit's handlers would requeue behind our back (FACTS 11), and its exit codes hide failures (FACTS 12).
Between its handlers and ours, signals stay pending; `execve`, which replaces the process, keeps them so.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class StartWorker:
    """Becomes `python <worker> LAUNCH INDEX` with the array task's index, counted from `offset`.

    Where tasks are packs the worker is `orchestrator.worker.pack`, and the index the pack's first run's.
    """

    worker: tuple[str, ...]
    launch: str
    offset: int

    def __call__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR2))
        index = self.offset + int(os.environ["SLURM_ARRAY_TASK_ID"])
        argv = [sys.executable, *self.worker, self.launch, str(index)]
        os.execve(sys.executable, argv, dict(os.environ))  # noqa: S606 - an argv list, no shell
