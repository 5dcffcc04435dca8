"""The one owner of signals. A handler only sets a flag; the training loop looks at it between steps."""

from __future__ import annotations

import signal
from types import FrameType

_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # USR2: the time limit is near (Slurm)


class InterruptedByInfrastructureError(BaseException):
    """The run was asked to stop, and has saved what it can. Not an Exception: user code must not swallow it.

    `together`: all ranks have agreed on it, and so none of them was dead. `asked`: by a signal, which the scheduler has
    an answer to; else this process has found by itself that it cannot go on, and ends at once, for a `cause` of those
    in launch/recovery.py.
    """

    def __init__(self, told: str | None, *, together: bool = False, asked: bool = True, cause: str = "") -> None:
        super().__init__(told)
        self.together, self.asked, self.cause = together, asked, cause


class StopSignal:
    """Remembers the first signal that asked this process to stop."""

    def __init__(self) -> None:
        self.received: str | None = None

    def install(self) -> None:
        """Take the handlers; called again once Lightning has replaced them (it does so when fitting begins)."""
        for number in _STOPPING:
            signal.signal(number, self._remember)
        signal.signal(signal.SIGCONT, signal.SIG_DFL)  # comes with SIGTERM at a preemption, and says nothing more
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)  # what came while Python started is heard now

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.received = self.received or signal.Signals(number).name
