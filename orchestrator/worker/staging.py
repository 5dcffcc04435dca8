"""The run's data version: staged to this node before the training, held and checked while it lasts."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator.data import Manifest, Progress, Staged, Staging, Store, fetcher_of, scratch_dir
from orchestrator.errors import DataError
from orchestrator.records.attempts import EventWriter
from orchestrator.slurm.queue import job_runs
from orchestrator.system.units import size
from orchestrator.worker.assignment import Assignment
from orchestrator.worker.monitor import heartbeat
from orchestrator.worker.signals import InterruptedByInfrastructureError, StopSignal

_log = logging.getLogger(__name__)

_REPORT_SECONDS = 2.0
_JITTER_SECONDS_PER_TASK = 0.02
_SHOWN = 3


@contextmanager
def staged(assignment: Assignment, events: EventWriter, stop: StopSignal) -> Iterator[str | None]:
    """Bring the run's data version to this node and yield its view; None if the run names no version.

    Every process of the run does this: the first on its node copies, the others wait. Raises DataError, with the
    node's name, if staging fails, or if files of the view were changed while it was in use.
    """
    digest = assignment.planned.data
    if not digest:
        yield None
        return
    section = assignment.header.cluster
    options, job = Staging.parse(section.get("staging")), assignment.context.job
    with _on_this_node():
        root = scratch_dir(section["scratch"], os.environ)
        store = Store(root, options, job=job, ask=job_runs if job else None)
        version = store.find(digest) or _stage(store, assignment, digest, _Reporter(events, stop), _jitter(options))
        heartbeat.beat(heartbeat.Stage.STARTING)
    _record(assignment, events, digest, version)
    watch = _Watch(store, version, stop) if assignment.context.first_on_node else None
    try:
        yield str(version.view)
    except BaseException:
        if watch:
            watch.check(again=False)
        raise
    else:
        if watch:
            watch.check(again=True)
    finally:
        version.release()


def _stage(store: Store, assignment: Assignment, digest: str, reporter: _Reporter, jitter_seconds: float) -> Staged:
    manifest = Manifest.read(assignment.experiment.manifest(digest))
    return store.stage(manifest, report=reporter.report, fetcher=fetcher_of(manifest), jitter_seconds=jitter_seconds)


@contextmanager
def _on_this_node() -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"node {socket.gethostname()}: {error.what}", why=error.why, fix=error.fix) from error


def _jitter(options: Staging) -> float:
    """Return the seconds over which an array's tasks spread their starts, to avoid a metadata storm."""
    tasks = int(os.environ.get("SLURM_ARRAY_TASK_COUNT") or 1)
    return min(options.jitter_seconds, _JITTER_SECONDS_PER_TASK * (tasks - 1))


class _Reporter:
    """Writes progress events every few seconds, and ends the staging when the run is asked to stop."""

    def __init__(self, events: EventWriter, stop: StopSignal) -> None:
        self._events, self._stop = events, stop
        self._written = time.monotonic()  # a short staging needs no event
        self._seen = -1

    def report(self, progress: Progress) -> None:
        if self._stop.received:
            raise InterruptedByInfrastructureError(self._stop.received)
        if progress.waiting_for or progress.beats != self._seen:  # the process that copies has a watcher of its own
            self._seen = progress.beats
            heartbeat.beat(heartbeat.Stage.STAGING)
        if time.monotonic() - self._written >= _REPORT_SECONDS:
            self._written = time.monotonic()
            self._events.write(
                "staging",
                told=str(progress),
                files=progress.files,
                bytes=progress.bytes,
                total_files=progress.total_files,
                total_bytes=progress.total_bytes,
            )


def _record(assignment: Assignment, events: EventWriter, digest: str, version: Staged) -> None:
    """Write a summary to the log and the events. A rank other than 0 has events of its own, if it has copied files."""
    how = f"hit, waited {version.waited_seconds:.1f} s" if version.hit else f"copied {size(version.copied_bytes)}"
    _log.info("data version %s: %d files in %s (%s)", digest[:12], version.files, version.view, how)
    if not assignment.leads and version.hit:
        return
    writer = events if assignment.leads else EventWriter(assignment.attempt.rank_staged(assignment.context.rank))
    writer.write(
        "staged",
        digest=digest,
        view=str(version.view),
        node=socket.gethostname(),
        files=version.files,
        bytes=version.bytes,
        hit=version.hit,
        copied_files=version.copied_files,
        copied_bytes=version.copied_bytes,
        waited_seconds=round(version.waited_seconds, 3),
        verified=version.verified,
        primitive=version.primitive,
        seconds=round(version.seconds, 3),
    )


class _Watch:
    """Checks the sizes and times of a view's files during the training, and once more after it."""

    def __init__(self, store: Store, version: Staged, stop: StopSignal) -> None:
        self._store, self._version, self._stop = store, version, stop
        self._problems: list[str] = []
        self._thread = threading.Thread(target=self._look, daemon=True)
        if version.hit:  # files copied just now were verified just now
            self._thread.start()

    def _look(self) -> None:
        try:
            self._problems = self._store.changed(self._version.version)
        except OSError as error:
            self._problems = [str(error)]
        if self._problems:
            self._stop.received = self._stop.received or "SIGTERM"

    def check(self, *, again: bool) -> None:
        """Raise DataError if the view was changed. `again`: check once more, now."""
        if self._thread.ident is not None:
            self._thread.join()
        if again and not self._problems:
            self._look()
        if self._problems:
            shown = "; ".join(self._problems[:_SHOWN])
            raise DataError(
                f"node {socket.gethostname()}: the data version was changed while the run read it",
                why=f"{len(self._problems)} files: {shown}",
                fix=f"find out what writes to {self._version.view.parent.parent}; orch retry copies the version again",
            )
