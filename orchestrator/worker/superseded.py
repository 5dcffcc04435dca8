"""The end of an attempt whose run goes on in a later one: Slurm had lost its node, on which its processes are alive.

Two that train one run would both write its artifacts, and both send them. Rank 0 looks by a listing, which no cache of
names can answer. It does not save: the later attempt has long begun from what was there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orchestrator.worker.assignment import Assignment
from orchestrator.worker.signals import InterruptedByInfrastructureError

EVERY_SECONDS = 30.0
"""How often an attempt, or a pack of runs, looks whether it goes on elsewhere."""


def error() -> InterruptedByInfrastructureError:
    """Return the end of a superseded attempt."""
    return InterruptedByInfrastructureError("a later attempt of the run has been claimed", asked=False)


def check(assignment: Assignment) -> None:
    """Raise InterruptedByInfrastructureError in a superseded attempt, before it writes outside its own folder."""
    if assignment.superseded:
        raise error()


@contextmanager
def watched(assignment: Assignment, end: Callable[[], object], *, every_s: float = EVERY_SECONDS) -> Iterator[None]:
    """Call `end`, in a thread, once a later attempt has been claimed; on rank 0."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(every_s):
            if assignment.superseded:
                end()
                return

    if assignment.leads:
        threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        over.set()
