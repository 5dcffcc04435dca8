"""The script of a run. Serves as `model._target_`; a subclass in a project is imported from its frozen code."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_POLL_SECONDS = 0.02
_HOG_BYTES, _HOG_SECONDS = 2**29, 300.0


class Script:
    """Takes `steps` steps, starting after the last checkpoint, and then ends as `ends` says.

    Each step logs `value()` and lasts until `seconds` have passed and the file `until` exists. `ends` has one
    of done, raise, kill (itself, with SIGKILL), exit (with status 3), hog (0.5 GB of memory, to be killed for it),
    stop (itself, with SIGSTOP) and hold (the interpreter's lock, in C) per attempt; the last one applies to all further
    attempts. A `deaf` script ignores SIGTERM and SIGUSR2.
    """

    def __init__(
        self,
        *,
        steps: int = 1,
        seconds: float = 0.0,
        until: str | None = None,
        ends: Sequence[str] = ("done",),
        deaf: bool = False,
        reads: str | None = None,
    ) -> None:
        self.steps, self._seconds, self._ends = steps, seconds, ends
        self._until = Path(until) if until else None
        self._reads = Path(reads) if reads else None
        if deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    def value(self) -> float:
        """Return the value that a step logs."""
        return float(len(sorted(self._reads.rglob("*")))) if self._reads else 1.0

    def step(self, stopped: Callable[[], object]) -> None:
        """Wait until one step is over, or a stop is requested."""
        due = time.monotonic() + self._seconds
        while not stopped() and not (time.monotonic() >= due and (self._until is None or self._until.exists())):
            time.sleep(_POLL_SECONDS)

    def end(self, attempt: int) -> None:
        """End attempt number `attempt` (from 1) as the script says."""
        match self._ends[min(attempt, len(self._ends)) - 1]:
            case "raise":
                raise ArithmeticError("this run was to fail")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(3)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "hold":
                re.match("(a+)+$", "a" * 60 + "b")  # for longer than anybody waits
            case "hog":
                held = b"\xff" * _HOG_BYTES
                time.sleep(_HOG_SECONDS)
                del held
