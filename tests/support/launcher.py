"""A process that launches scripted runs on the workstation, once per order on standard input (a JSON line).

`at`: when to begin, in seconds since the epoch; `dies`: whether this process kills itself before or after it submits to
the cluster, as if it had crashed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from orchestrator.launch.plan import to_do
from orchestrator.layout import ExperimentPaths, LaunchPaths
from orchestrator.local.workstation import Workstation
from orchestrator.testing.launches import Bench, scripted


class Mortal(Workstation):
    """A workstation whose submitter may die while it submits."""

    dies = ""

    def submit(self, launch: LaunchPaths) -> None:
        self._perhaps_die("before")
        super().submit(launch)
        self._perhaps_die("after")

    def _perhaps_die(self, when: str) -> None:
        if self.dies == when:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    cluster = Mortal(cpus=2, grace_seconds=1.0)
    say("ready")
    for line in sys.stdin:
        order = json.loads(line)
        cluster.dies = order.get("dies", "")
        runs = [scripted(order.get("script"), seed=seed) for seed in order["seeds"]]
        bench = Bench(paths=ExperimentPaths(Path(order["experiment"])), kind="workstation", cluster=cluster)
        time.sleep(max(0.0, order.get("at", 0.0) - time.time()))
        launched = bench.launch(runs)
        say([step.run.id for step in to_do(launched.steps)])


def say(word: object) -> None:
    sys.stdout.write(f"{json.dumps(word)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
