"""All that is known of an experiment: its launches, its attempts, and what the clusters say, reconciled."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.cluster import Cluster
from orchestrator.layout import ExperimentPaths
from orchestrator.ledger.attempts import read_attempt
from orchestrator.ledger.files import names
from orchestrator.ledger.launches import SILENT_SECONDS, Launch, read_launch, submitting, wishes
from orchestrator.record import Attempt, JobState, Observation, Planned, Record, RunState, reconcile
from orchestrator.spec import RunId

_OBSERVED = re.compile(r"a(\d{3,})\.[0-9a-f]+\.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All that is known of an experiment at one moment."""

    experiment: ExperimentPaths
    launches: tuple[Launch, ...]
    records: Mapping[RunId, Record]

    @property
    def next_number(self) -> int:
        """The number of the next launch, unless somebody else publishes one before."""
        return self.launches[-1].number + 1 if self.launches else 1

    def launch(self, number: int) -> Launch:
        return next(launch for launch in self.launches if launch.number == number)


def read(
    experiment: ExperimentPaths, cluster_of: Mapping[str, Cluster], *, only: Collection[str] | None = None
) -> Ledger:
    """Return an experiment's launches and records. `cluster_of` maps a cluster's kind to one that can be asked.

    `only`: the ids of the runs that are wanted; None: all.
    """
    launches = tuple(read_launch(paths) for paths in experiment.launches())
    latest: dict[RunId, Planned] = {}
    for launch in launches:
        latest |= {wish.run: wish for wish in wishes(launch) if only is None or wish.run in only}
    started = set(names(experiment.path / "runs"))
    attempts = {run_id: _attempts(experiment, run_id) if run_id in started else () for run_id in latest}
    seen = _observe(launches, latest, attempts, cluster_of)
    # An attempt may have begun, or ended with a last word, between our reading it and the scheduler's answer.
    ended = [run_id for run_id, observation in seen.items() if observation.state is JobState.ENDED]
    attempts |= {run_id: _attempts(experiment, run_id) for run_id in ended}
    cancelled = {launch.number: set(names(launch.paths.cancelled)) for launch in launches}
    records = {
        run_id: reconcile(
            wish, attempts[run_id], observation=seen.get(run_id), cancelled=run_id in cancelled[wish.launch]
        )
        for run_id, wish in latest.items()
    }
    return Ledger(experiment=experiment, launches=launches, records=records)


def _attempts(experiment: ExperimentPaths, run_id: RunId) -> tuple[Attempt, ...]:
    run = experiment.run(run_id)
    # An attempt that failed before it could claim its folder is known only by what its supervisor saw.
    seen = {int(match[1]) for match in map(_OBSERVED.fullmatch, names(run.observed)) if match}
    numbers = sorted(seen | {attempt.number for attempt in run.attempts()})
    return tuple(read_attempt(run, run.attempt(number)) for number in numbers)


def _observe(
    launches: Iterable[Launch], latest: Mapping[RunId, Planned],
    attempts: Mapping[RunId, Sequence[Attempt]], cluster_of: Mapping[str, Cluster],
) -> dict[RunId, Observation]:  # fmt: skip
    """Ask the clusters about the runs that have no final event for what their latest plan wants."""
    asked: dict[int, dict[int, RunId]] = {}
    for run_id, wish in latest.items():
        last = attempts[run_id][-1] if attempts[run_id] else None
        if last is None or last.number < wish.attempt or last.state in {RunState.RUNNING, RunState.INTERRUPTED}:
            # A launch that was thought lost may have come to work before the one that took its runs over.
            claim = last.claim if last and last.number >= wish.attempt else None
            number, index = (claim.launch, claim.index) if claim else (wish.launch, wish.index)
            asked.setdefault(number, {})[index] = run_id
    answers: dict[RunId, Observation] = {}
    for launch in launches:
        tasks = asked.get(launch.number, {})
        found = _ask(launch, tasks.keys(), cluster_of) if tasks else {}
        answers |= {tasks[index]: observation for index, observation in found.items() if index in tasks}
    return answers


def _ask(launch: Launch, tasks: Collection[int], cluster_of: Mapping[str, Cluster]) -> Mapping[int, Observation]:
    if (submits := submitting(launch)) is not False:
        told = f"being submitted by process {launch.launcher.pid} on {launch.launcher.host}"
        if submits is None:
            told += (
                f", which cannot be asked here; others go on once it was silent for {SILENT_SECONDS / 60:.0f} minutes"
            )
        state = JobState.PENDING if submits else JobState.UNKNOWN
        return dict.fromkeys(tasks, Observation(state=state, reason=told))
    kind = str(launch.header["cluster"]["kind"])
    if kind not in cluster_of:
        return dict.fromkeys(tasks, Observation(state=JobState.UNKNOWN, reason=f"cluster {kind} is not known here"))
    return cluster_of[kind].observe(launch.paths, tasks)
