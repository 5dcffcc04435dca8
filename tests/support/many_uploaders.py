"""A program that runs many uploaders at once, for some tasks of a launch, each with its own thread and connections.

python many_uploaders.py LAUNCH INDEX...
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from orchestrator.tracking.uploader import Carrier, Source

_THREADS = 12
CONNECTIONS = 80
"""The database connections that a server needs for many uploaders: two for each of its 40 threads."""


def start(launch: Path, count: int, env: Mapping[str, str]) -> list[subprocess.Popen[bytes]]:
    """Start the uploaders of a launch's first tasks, whose runs have ended, in processes of some each."""
    groups = [range(first, min(first + _THREADS, count)) for first in range(0, count, _THREADS)]
    argv = [sys.executable, __file__, str(launch)]
    return [subprocess.Popen([*argv, *map(str, group)], env=dict(env), stderr=subprocess.DEVNULL) for group in groups]


def main(launch: Path, indices: list[int]) -> int:
    closed, sent = threading.Event(), []
    closed.set()
    threads = [
        threading.Thread(target=lambda index=index: sent.append(Carrier(Source.of(launch, index)).carry(closed)))
        for index in indices
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0 if len(sent) == len(indices) and all(sent) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [int(index) for index in sys.argv[2:]]))
