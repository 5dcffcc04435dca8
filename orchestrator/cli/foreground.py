"""A run of a background cluster in the foreground: its output is shown live, and Ctrl-C ends its job."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from orchestrator import api
from orchestrator.cli.tail import Tail
from orchestrator.cli.text import say
from orchestrator.cluster import Cluster, JobState
from orchestrator.errors import RequestError
from orchestrator.launch.plan import Step
from orchestrator.layout import LaunchPaths
from orchestrator.project import Project
from orchestrator.records.record import Record

if TYPE_CHECKING:
    from orchestrator.launch.launch import Launched
    from orchestrator.prepare import Prepared

_PERIOD_SECONDS = 0.5
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Foreground:
    """One run of one launch, followed in the terminal that launched it."""

    def __init__(self, project: Project, name: str, cluster: Cluster, launch: LaunchPaths, step: Step) -> None:
        self._project, self._name, self._cluster, self._launch, self._step = project, name, cluster, launch, step
        self._tails: dict[Path, Tail] = {}
        self._shown = ""

    def follow(self) -> Record:
        """Show the run's output, and what it waits for, until its job has ended; return its last record."""
        while True:
            record = self._record()
            ended = not record.state.active and not self._has_job(record)
            self._copy(record, ended=ended)
            if ended:
                return record
            self._say_what_it_waits_for(record)
            time.sleep(_PERIOD_SECONDS)

    def cancel(self) -> Record:
        """Cancel the run, and wait until its job has ended."""
        api.cancel(self._project, self._name, [self._record()])
        say(f"{self._step.run.id[:8]}: cancelled; its job is ending (Ctrl-C again: do not wait for it)")
        return self.follow()

    def _record(self) -> Record:
        return api.read(self._project, self._name).records[self._step.run.id]

    def _has_job(self, record: Record) -> bool:
        """Return whether processes of a run remain: even after its final event they may print more."""
        index = record.planned.index
        return self._cluster.observe(self._launch, [index])[index].state is JobState.RUNNING

    def _copy(self, record: Record, *, ended: bool) -> None:
        for path, label in self._outputs(record, ended=ended):
            self._tails.setdefault(path, Tail(path, label)).copy(ended=ended)

    def _outputs(self, record: Record, *, ended: bool) -> Iterator[tuple[Path, str]]:
        """Yield the files to show, each with its label: the output of the job's script, and each rank's log.

        The output of a process before its log exists is included only if there never was a log.
        """
        attempts = [attempt for attempt in record.attempts if attempt.number >= self._step.attempt]
        ranks = self._step.run.resources.world_size
        jobs = {record.job, *(attempt.claim.job for attempt in attempts if attempt.claim)} - {""}
        for job in sorted(jobs):
            script, *processes = self._launch.outputs(job, processes=ranks)
            yield script, ""
            yield from ((path, "") for path in processes if ended and not attempts)
        for attempt in attempts:
            paths = self._project.runs.experiment(self._name).run(record.id).attempt(attempt.number)
            yield from ((paths.rank_log(rank), f"[rank {rank}] " if rank else "") for rank in range(ranks))

    def _say_what_it_waits_for(self, record: Record) -> None:
        waiting = not record.attempts or record.attempts[-1].number < self._step.attempt or record.attempts[-1].final
        text = f"{record.id[:8]}: {record.state.value}{f' ({record.reason})' if record.reason else ''}"
        if waiting and text != self._shown:
            say(text)
        self._shown = text if waiting else self._shown


def launch_and_follow(project: Project, prepared: Prepared, cluster: Cluster, *, message: str) -> Record:
    """Launch the only run of an experiment from scratch and follow it to its end; an interruption cancels it.

    Raises RequestError if it is running already, and KeyboardInterrupt once it is cancelled.
    """
    followed = None
    try:
        with _as_interrupts():
            with _held():
                launched = api.launch(project, prepared, cluster=cluster, message=message, rerun="anew")
                followed = _followed(project, prepared.experiment.name, cluster, launched)
            return followed.follow()
    except KeyboardInterrupt:
        if followed is not None:
            followed.cancel()
        raise


def _followed(project: Project, name: str, cluster: Cluster, launched: Launched) -> Foreground:
    (step,) = launched.steps
    if launched.paths is None:
        raise RequestError(
            f"{name}: this debug run is running already",
            why=step.reason,
            fix=f"wait for it, or end it: orch cancel {name} {step.run.id[:8]}",
        )
    return Foreground(project, name, cluster, launched.paths, step)


@contextmanager
def _held() -> Iterator[None]:
    """Delay signals that would stop this process, so that no job is submitted without a record.

    Raises KeyboardInterrupt at the end of the block if a signal came.
    """
    came: list[int] = []
    with _handling(lambda number, _: came.append(number)):
        yield
    if came:
        raise KeyboardInterrupt


@contextmanager
def _as_interrupts() -> Iterator[None]:
    """Treat SIGTERM, and SIGHUP from a closed terminal, like Ctrl-C: the job must not outlive this process."""
    with _handling(signal.default_int_handler):
        yield


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    former = {number: signal.signal(number, handler) for number in _STOPPING}
    try:
        yield
    finally:
        for number, old in former.items():
            signal.signal(number, old)
