"""All that is known of an experiment: its launches, its attempts, and what the clusters say, reconciled."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.cluster import Cluster
from orchestrator.layout import ExperimentPaths
from orchestrator.ledger.attempts import read_attempts
from orchestrator.ledger.ended import EndedRuns, Key
from orchestrator.ledger.files import inodes, names
from orchestrator.ledger.launches import SILENT_SECONDS, Launch, braked, read_launch, submitting, wishes
from orchestrator.record import Attempt, JobState, Observation, Planned, Record, RunState, reconcile
from orchestrator.spec import RunId


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All that is known of an experiment at one moment. `hidden` are the ids of runs that are not to be shown."""

    experiment: ExperimentPaths
    launches: tuple[Launch, ...]
    records: Mapping[RunId, Record]
    hidden: frozenset[str] = frozenset()

    @property
    def next_number(self) -> int:
        """The number of the next launch, unless somebody else publishes one before."""
        return self.launches[-1].number + 1 if self.launches else 1

    @property
    def shown(self) -> list[Record]:
        """The records of the runs that nobody has hidden."""
        return [record for record in self.records.values() if record.id not in self.hidden]

    @property
    def tags(self) -> Mapping[int, Collection[str]]:
        """The words that each launch, by its number, is found by."""
        return {launch.number: launch.header.get("tags", ()) for launch in self.launches}

    def launch(self, number: int) -> Launch:
        return next(launch for launch in self.launches if launch.number == number)


def read(
    experiment: ExperimentPaths, cluster_of: Mapping[str, Cluster], *, only: Collection[str] | None = None
) -> Ledger:
    """Return an experiment's launches and records. `cluster_of` maps a cluster's kind to one that can be asked.

    `only`: the ids of the runs that are wanted, which have not ended; None: all.
    """
    return Reader(experiment).read(cluster_of, only=only)


class Reader:
    """Reads an experiment, again and again: what can never change is read once."""

    def __init__(self, experiment: ExperimentPaths, ended: EndedRuns | None = None) -> None:
        """`ended` are its ended runs; None: those that are kept in the user's cache."""
        self._experiment = experiment
        self._ended = ended or EndedRuns.of(experiment)
        self._plans: dict[str, dict[RunId, Planned]] = {}  # by the token of their launch

    def read(self, cluster_of: Mapping[str, Cluster], *, only: Collection[str] | None = None) -> Ledger:
        """Return what is known now, of some runs (by their ids) or of all."""
        launches = tuple(read_launch(paths) for paths in self._experiment.launches())
        latest = {run: wish for run, wish in self._latest(launches).items() if only is None or run in only}
        keys = self._keys(launches, latest)
        kept = self._ended.attempts(keys) if only is None else {}
        attempts = {run: kept[run] if run in kept else self._attempts(run) if run in keys else () for run in latest}
        seen = _observe(launches, latest, attempts, cluster_of)
        # An attempt may have begun, or ended with a last word, between our reading it and the scheduler's answer.
        begun = set(names(self._experiment.runs))
        ended = [run for run, observation in seen.items() if observation.state is JobState.ENDED and run in begun]
        attempts |= {run: self._attempts(run) for run in ended}
        cancelled = {launch.number: _cancelled(launch) for launch in launches}
        records = {
            run_id: reconcile(
                wish, attempts[run_id], observation=seen.get(run_id), cancelled=cancelled[wish.launch].get(run_id, "")
            )
            for run_id, wish in latest.items()
        }
        if only is None:
            new = [run for run in keys if run not in kept and records[run].settled]
            self._ended.keep({run: (keys[run], records[run].attempts) for run in new})
        hidden = frozenset(names(self._experiment.hidden))
        return Ledger(experiment=self._experiment, launches=launches, records=records, hidden=hidden)

    def _latest(self, launches: Iterable[Launch]) -> dict[RunId, Planned]:
        """Return of each run what the last launch that names it wants."""
        latest: dict[RunId, Planned] = {}
        for launch in launches:
            if launch.token not in self._plans:
                self._plans[launch.token] = {wish.run: wish for wish in wishes(launch)}
            latest |= self._plans[launch.token]
        return latest

    def _keys(self, launches: Iterable[Launch], latest: Mapping[RunId, Planned]) -> dict[RunId, Key]:
        """Return what the runs that have a folder are kept by: one listing, however many they are."""
        tokens = {launch.number: launch.token for launch in launches}
        folders = inodes(self._experiment.runs)
        return {run: (tokens[wish.launch], folders[run]) for run, wish in latest.items() if run in folders}

    def _attempts(self, run_id: RunId) -> tuple[Attempt, ...]:
        return read_attempts(self._experiment.run(run_id))


def _cancelled(launch: Launch) -> dict[str, str]:
    """Return which runs of a launch are cancelled, by their id, and why."""
    found = dict.fromkeys(names(launch.paths.cancelled), "cancelled")
    return found | braked(launch.paths) if found else found


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
