"""The callable in the pickle of a submitit folder: on the node, it replaces submitit's process by the worker.

submitit's signal handlers would requeue on their own (FACTS 11), and its exit codes hide failures (FACTS 12).
Signals are blocked until the worker has installed its handlers; `execve` preserves pending signals.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class StartWorker:
    """Replaces the process by `python <worker> LAUNCH INDEX`, where INDEX is `offset` plus the array task's index.

    If tasks are packs, the worker is `orchestrator.worker.pack`, and the index is that of the pack's first run.
    """

    worker: tuple[str, ...]
    launch: str
    offset: int

    def __call__(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR2))
        index = self.offset + int(os.environ["SLURM_ARRAY_TASK_ID"])
        argv = [sys.executable, *self.worker, self.launch, str(index)]
        os.execve(sys.executable, argv, dict(os.environ))  # noqa: S606 - an argv list, no shell
