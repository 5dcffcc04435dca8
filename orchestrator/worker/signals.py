"""The only module that handles signals. A handler only sets a flag, which the training loop checks between steps."""

from __future__ import annotations

import signal
from types import FrameType

_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # USR2: the time limit is near (Slurm)


class InterruptedByInfrastructureError(BaseException):
    """The run has to stop, and has saved what it can. Not an Exception: user code must not swallow it.

    `together`: all ranks have agreed to stop, so all of them were alive. `asked`: a signal requested it, and the
    scheduler may have to be answered; otherwise this process found that it cannot continue, and ends at once, for a
    `cause` as in launch/recovery.py.
    """

    def __init__(self, told: str | None, *, together: bool = False, asked: bool = True, cause: str = "") -> None:
        super().__init__(told)
        self.together, self.asked, self.cause = together, asked, cause


class StopSignal:
    """Remembers the first signal that asked this process to stop."""

    def __init__(self) -> None:
        self.received: str | None = None

    def install(self) -> None:
        """Install the handlers. Call it again after Lightning has replaced them, as it does when fitting begins."""
        for number in _STOPPING:
            signal.signal(number, self._remember)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # Slurm sends it with SIGTERM at a preemption; it adds nothing
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)  # signals that came while Python started arrive now

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
