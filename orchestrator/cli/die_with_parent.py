"""`python -m orchestrator.cli.die_with_parent PROGRAM ...`: runs a program for as long as standard input is open.

Whoever starts it holds the other end: however that one ends, killed too, the program and what it has started end with
it. It leads a process group of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

_GRACE_SECONDS = 5.0


_ending = threading.Event()


def _end_with(program: subprocess.Popen[bytes]) -> None:
    status = program.wait()
    if _ending.is_set():  # what it has started may take longer, and is seen to
        return
    os._exit(status if status >= 0 else 128 - status)  # the main thread still reads, and is not waited for


if __name__ == "__main__":
    started = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it goes to the whole group: the program's end is waited for
    threading.Thread(target=_end_with, args=[started], daemon=True).start()
    sys.stdin.buffer.read()
    _ending.set()
    os.killpg(0, signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)
