"""The end of an attempt that a later one has superseded: Slurm lost contact with its node, but its processes live on.

Two attempts that train one run would both write and upload its artifacts. Rank 0 looks for later attempts by listing
the folder, which a network filesystem does not answer from its cache of names. A superseded attempt saves nothing: the
later one has already resumed from an earlier checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from orchestrator.worker.assignment import Assignment
from orchestrator.worker.signals import InterruptedByInfrastructureError

EVERY_SECONDS = 30.0
"""How often an attempt, or a pack of runs, checks whether it has been superseded."""


def error() -> InterruptedByInfrastructureError:
    """Return the interruption that ends a superseded attempt."""
    return InterruptedByInfrastructureError("a later attempt of the run has been claimed", asked=False)


def check(assignment: Assignment) -> None:
    """Raise InterruptedByInfrastructureError if the attempt is superseded. Call before writing outside its folder."""
    if assignment.superseded:
        raise error()


@contextmanager
def watched(assignment: Assignment, end: Callable[[], object], *, every_s: float = EVERY_SECONDS) -> Iterator[None]:
    """On rank 0, call `end` from a thread once a later attempt has been claimed."""
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
