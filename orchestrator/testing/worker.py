"""`python -m orchestrator.testing.worker LAUNCH INDEX`: the real worker, except for the training.

When it begins it writes a file in the experiment's folder `played/`, and renames it when it ends: evidence,
independent of the records, of how often a run was executed, and of what ran at the same time.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from orchestrator.config.build import build
from orchestrator.records.attempts import EventWriter
from orchestrator.system.files import make_private, replace_text
from orchestrator.testing.script import Script
from orchestrator.tracking import SpoolWriter
from orchestrator.worker.__main__ import main
from orchestrator.worker.assignment import Assignment
from orchestrator.worker.monitor import heartbeat
from orchestrator.worker.signals import InterruptedByInfrastructureError, StopSignal


def play(assignment: Assignment, config: dict[str, object], events: EventWriter, stop: StopSignal) -> dict[str, object]:
    """Play the script that is the config's model, and return the data of the `done` event. Only rank 0 plays it."""
    if not assignment.leads:
        return {"metrics": {}, "best": {}}
    script = build(config["model"])
    with _played(assignment), SpoolWriter(assignment.attempt.metrics) as spool:
        events.write("training")
        for step in range(_last_step(assignment) + 1, script.steps + 1):
            _step(script, step, assignment, spool, stop)
            heartbeat.beat()
            events.write("progress", progress={"step": step, "steps": script.steps}, metrics={"step": step})
        script.end(assignment.planned.attempt)
    return {"metrics": {"step": script.steps}, "best": {}}


def _step(script: Script, step: int, assignment: Assignment, spool: SpoolWriter, stop: StopSignal) -> None:
    script.step(lambda: stop.received)
    if stop.received:
        raise InterruptedByInfrastructureError(stop.received)
    sys.stdout.write(f"step {step}\n")
    spool.metrics({"value": script.value(), "step": step}, step)
    spool.flush()
    make_private(assignment.attempt.checkpoints)
    replace_text(assignment.attempt.checkpoints / "step", str(step))


def _last_step(assignment: Assignment) -> int:
    numbers = range(assignment.planned.history, assignment.planned.attempt)
    files = [assignment.run.attempt(number).checkpoints / "step" for number in numbers]
    return max((int(file.read_text()) for file in files if file.exists()), default=0)


@contextmanager
def _played(assignment: Assignment) -> Iterator[None]:
    planned, folder = assignment.planned, assignment.experiment.path / "played"
    make_private(folder)
    name = f"{planned.run}.{planned.attempt}.{os.getpid()}.{time.monotonic_ns()}"
    (folder / name).touch()
    try:
        yield
    finally:
        (folder / name).rename(folder / f"{name}.{time.monotonic_ns()}")


if __name__ == "__main__":
    status = main(sys.argv[1], sys.argv[2], play)
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(status)
