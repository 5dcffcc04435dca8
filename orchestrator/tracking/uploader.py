"""`python -m orchestrator.tracking.uploader LAUNCH INDEX ATTEMPT`: sends what a run logs to a tracking server.

A separate process, so that a server can neither make training wait nor end it. It ends soon after its standard
input closes or delivers a byte, which means that the run has ended or died. The run's next attempt, or
`orch ui --once`, sends the rest. Once a later attempt has been claimed it ends, and the later uploader sends all.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.cluster import JobState, Observation
from orchestrator.errors import OrchError
from orchestrator.layout import ExperimentPaths, LaunchPaths
from orchestrator.project import Project
from orchestrator.records.attempts import is_superseded, read_attempt, read_marks
from orchestrator.records.launches import Launch, read_launch
from orchestrator.records.ownership import require
from orchestrator.records.planned import read_plan, read_planned_run
from orchestrator.records.record import Record, RunState, reconcile
from orchestrator.system.files import listed, names_in
from orchestrator.tracking import TrackedRun, stores
from orchestrator.tracking.view import experiment_of, tracked_run

if TYPE_CHECKING:
    from orchestrator.tracking.mlflow_store import Follower

_log = logging.getLogger(__name__)
_PERIOD_SECONDS = 5.0
_SHARE = 0.05  # the most of its time spent on requests: many uploaders slow down together with the server
_LONGEST_PAUSE_SECONDS = 60.0
_LAST_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One task of a launch: the location of its run's records, and the store that they are sent to."""

    paths: ExperimentPaths
    launch: Launch
    index: int
    attempt: int | None = None

    @classmethod
    def of(cls, folder: Path, index: int, attempt: int | None = None) -> Source:
        launch = read_launch(LaunchPaths(folder))
        require(launch.paths.experiment, [launch])
        return cls(paths=launch.paths.experiment, launch=launch, index=index, attempt=attempt)

    @property
    def superseded(self) -> bool:
        """Whether a later attempt of the run has been claimed, for which another uploader sends."""
        if self.attempt is None:
            return False
        planned = read_planned_run(self.launch.paths, self.index)
        return is_superseded(self.paths.run(planned.run).attempt(self.attempt))

    @property
    def end_seconds(self) -> float:
        return float(self.launch.header.tracking["end_seconds"])

    def open(self) -> Follower:
        """Return a Follower that sends the run to the store. Raises TrackingError if the store cannot be used."""
        from orchestrator.tracking.mlflow_store import MlflowStore

        uri = str(self.launch.header.tracking["uri"])
        first = read_launch(self.paths.launches()[0])
        return MlflowStore.server(uri, self.paths.tracking(uri)).follow(experiment_of([first, self.launch]))

    def read(self) -> TrackedRun | None:
        """Return the run as its records have it now; None before its first attempt."""
        record = self._record()
        return tracked_run(self.paths, self.launch, record) if record.last else None

    def is_last(self) -> bool:
        """Return whether all runs of the experiment have ended, by its index."""
        states = {run_id: state for run_id, (_, state) in read_marks(self.paths).items()}
        latest = {planned.run: launch for launch in self.paths.launches() for planned in read_plan(launch)}
        wanted = {run_id for run_id, launch in latest.items() if run_id not in names_in(launch.cancelled)}
        return wanted <= states.keys() and RunState.RUNNING not in states.values()

    @property
    def project(self) -> Project:
        return Project.around(self.launch.paths.runs)

    def _record(self) -> Record:
        planned = read_planned_run(self.launch.paths, self.index)
        run = self.paths.run(planned.run)
        attempts = [read_attempt(run, attempt) for attempt in run.attempts()]
        stopped = bool(attempts) and attempts[-1].state is RunState.INTERRUPTED
        cancelled = listed(self.launch.paths.cancelled / planned.run)
        # The job of an interrupted attempt waits to be started again.
        seen = Observation(state=JobState.PENDING if stopped else JobState.RUNNING, reason="its job is requeued")
        return reconcile(
            planned, attempts, observation=None if cancelled else seen, cancelled="cancelled" if cancelled else ""
        )


class Carrier:
    """Sends repeatedly, with pauses that grow while the store fails."""

    def __init__(self, source: Source, clock: Callable[[], float] = time.monotonic) -> None:
        self._source, self._clock = source, clock
        self._follower: Follower | None = None
        self._pause_seconds = _PERIOD_SECONDS
        self._shown = self._failing = False

    def carry(self, closed: threading.Event) -> bool:
        """Send until `closed`, then one last time. Return whether everything has been sent."""
        while not closed.wait(self._pause_seconds * random.uniform(0.8, 1.2)):  # noqa: S311 - jitter, not a secret
            if self._source.superseded:
                return True
            self._send(last=False)
        deadline = time.monotonic() + self._source.end_seconds
        while not self._source.superseded and not self._send(last=True):
            if time.monotonic() > deadline:
                _log.warning("not everything was sent to the tracking server; `orch ui --once` sends the rest")
                return False
            time.sleep(_LAST_PAUSE_SECONDS)
        if not self._source.superseded:
            self._finish_parent()
        return True

    def _finish_parent(self) -> None:
        """Bring the experiment's own run up to date, if this was the last run to end."""
        try:
            if self._source.is_last():
                stores.sync(self._source.project, self._source.paths.name)
                if done := stores.register(self._source.project, self._source.paths.name):
                    _log.warning("%s", done)
        except OrchError as error:
            _log.warning("the experiment's summary is not sent yet: %s", error)

    def _send(self, *, last: bool) -> bool:
        took = 0.0
        try:
            took = self._send_run(last=last)
        except OrchError as error:
            self._failed(str(error))
            return False
        except Exception as error:  # noqa: BLE001 - no error of a store may end the uploader: it tries again
            self._failed(repr(error))
            return False
        if self._failing:
            _log.warning("the tracking server answers again")
        self._failing = False
        self._pause_seconds = min(_LONGEST_PAUSE_SECONDS, max(_PERIOD_SECONDS, took / _SHARE))
        return True

    def _send_run(self, *, last: bool) -> float:
        """Send new values, and return the seconds that the server took.

        The first call counts as 0: it also loads MLflow and makes the lookups that are needed only once.
        """
        run = self._source.read()
        if run is None:
            return 0.0
        first, self._follower = self._follower is None, self._follower or self._source.open()
        began = self._clock()
        # The log keeps growing: it is sent when the run has ended; the config is sent at the beginning.
        self._follower.send(run if last or not self._shown else replace(run, artifacts=()))
        took = 0.0 if first else self._clock() - began
        self._shown = True
        if last and run.state == "queued":  # only a later read of the records shows whether its job resumes
            self._source.paths.unsynced.touch(mode=0o600)
        return took

    def _failed(self, told: str) -> None:
        self._follower = None  # its cache may be wrong by now
        _log.log(logging.DEBUG if self._failing else logging.WARNING, "not sent yet: %s", told)
        self._failing = True
        self._pause_seconds = min(_LONGEST_PAUSE_SECONDS, 2 * self._pause_seconds)


def _closing(read: Callable[[], object]) -> threading.Event:
    """Return an event that is set once `read` returns."""
    closed = threading.Event()

    def wait() -> None:
        read()
        closed.set()

    threading.Thread(target=wait, daemon=True).start()
    return closed


def main(folder: str, index: str, attempt: str = "") -> int:
    """Carry a task's run until standard input closes. Returns 0 once everything has been sent.

    `attempt`: the attempt that it runs beside; a program of version 0.1 does not pass it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGCONT):
        signal.signal(number, signal.SIG_IGN)  # the run's final values still have to be sent
    os.nice(10)
    source = Source.of(Path(folder), int(index), int(attempt) if attempt else None)
    return 0 if Carrier(source).carry(_closing(lambda: sys.stdin.buffer.read(1))) else 1


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="tracking: %(message)s", stream=sys.stderr)
    status = main(sys.argv[1], sys.argv[2], *sys.argv[3:])
    sys.stderr.flush()
    os._exit(status)  # no library's exit handler may hold up the end of the job
