"""`python -m orchestrator.tracking.sidecar RUNS`: sends metrics to the tracking store while runs are running.

Reads names of experiments from standard input, one per line, keeps them in sync, and syncs once more when the
input ends. With an experiment's name after RUNS it syncs that one and returns. It is a separate process, so that
it cannot make training wait; `orch ui --once` sends whatever it failed to send.
"""

from __future__ import annotations

import logging
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from orchestrator.errors import OrchError
from orchestrator.layout import RunsRoot
from orchestrator.project import Project
from orchestrator.tracking import stores

_log = logging.getLogger(__name__)
_PERIOD_SECONDS = 3.0
_LEAVING_SECONDS = 20.0


def follow(project: Project) -> None:
    """Sync the experiments named on standard input, every few seconds and once more when it closes."""
    named: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(named,), daemon=True).start()
    experiments: set[str] = set()
    more = True
    while more:
        more = _collect(named, experiments)
        for experiment in sorted(experiments):
            _sync(project, experiment)
    for experiment in sorted(experiments):  # all runs of this session have ended
        _quietly(partial(stores.register, project, experiment))


def _read(named: queue.SimpleQueue[str | None]) -> None:
    for line in sys.stdin:
        named.put(line.strip())
    named.put(None)


def _collect(named: queue.SimpleQueue[str | None], experiments: set[str]) -> bool:
    """Add the experiments named within a period. Returns False once standard input has closed."""
    deadline = time.monotonic() + _PERIOD_SECONDS
    try:
        while (name := named.get(timeout=max(0.0, deadline - time.monotonic()))) is not None:
            if name not in experiments or time.monotonic() > deadline:
                experiments.add(name)
                return True
    except queue.Empty:
        return True
    return False


def _sync(project: Project, experiment: str) -> bool:
    return _quietly(partial(stores.sync, project, experiment))


def _quietly(act: Callable[[], object]) -> bool:
    """Call `act`, logging its errors; return whether it succeeded."""
    try:
        act()
    except OrchError as error:
        _log.warning("not done yet: %s", error)
        return False
    except Exception:  # noqa: BLE001 - no error of a store may end the sidecar: it tries again
        _log.exception("not done yet")
        return False
    return True


def catch_up(project: Project, experiment: str) -> None:
    """Sync an experiment, until its cancelled runs have left their queue.

    If that fails, or takes long, the next command that reads the experiment tries again.
    """
    unsynced = project.runs.experiment(experiment).unsynced
    unsynced.unlink(missing_ok=True)  # first, so that a run that ends from now on is synced by the next process
    deadline = time.monotonic() + _LEAVING_SECONDS
    while synced := _sync(project, experiment):
        if not stores.open_in_store(project, experiment):
            return
        if time.monotonic() > deadline:
            break
        time.sleep(_PERIOD_SECONDS)
    _log.info("%s: %s", experiment, "cancelled runs still wait" if synced else "not synced")
    unsynced.touch(mode=0o600)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="tracking: %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the runs; their last values are still sent
    project = Project.around(RunsRoot(Path(sys.argv[1])))
    if sys.argv[2:]:
        catch_up(project, sys.argv[2])
    else:
        follow(project)
