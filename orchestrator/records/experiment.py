"""All that is known of an experiment: its launches, its attempts, and what the clusters say, reconciled."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.cluster import Cluster, JobState, Observation
from orchestrator.layout import ExperimentPaths
from orchestrator.records.attempts import read_attempts
from orchestrator.records.ended import EndedRuns, Key
from orchestrator.records.launches import SILENT_SECONDS, Launch, is_submitting, read_failure_limit_reasons, read_launch
from orchestrator.records.planned import PlannedRun, read_plan
from orchestrator.records.record import Attempt, Record, RunState, reconcile
from orchestrator.spec import RunId
from orchestrator.system.files import inodes, names_in


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentState:
    """All that is known of an experiment at one moment. `hidden` are the ids of runs that are not to be shown.

    `read_only` is why a look at it has changed nothing; empty where the runs are this user's, or nobody has asked.
    """

    experiment: ExperimentPaths
    launches: tuple[Launch, ...]
    records: Mapping[RunId, Record]
    hidden: frozenset[str] = frozenset()
    read_only: str = ""

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
        return {launch.number: launch.header.tags for launch in self.launches}

    def launch(self, number: int) -> Launch:
        return next(launch for launch in self.launches if launch.number == number)


def read_experiment(
    experiment: ExperimentPaths, cluster_of: Mapping[str, Cluster], *, only: Collection[str] | None = None
) -> ExperimentState:
    """Return an experiment's launches and records. `cluster_of` maps a cluster's kind to one that can be asked.

    `only`: the ids of the runs that are wanted, which have not ended; None: all.
    """
    return ExperimentReader(experiment).read(cluster_of, only=only)


class ExperimentReader:
    """Reads an experiment, again and again: what can never change is read once."""

    def __init__(self, experiment: ExperimentPaths, ended: EndedRuns | None = None) -> None:
        """`ended` are its ended runs; None: those that are kept in the user's cache."""
        self._experiment = experiment
        self._ended = ended or EndedRuns.of(experiment)
        self._plans: dict[str, dict[RunId, PlannedRun]] = {}  # by the token of their launch

    def read(self, cluster_of: Mapping[str, Cluster], *, only: Collection[str] | None = None) -> ExperimentState:
        """Return what is known now, of some runs (by their ids) or of all."""
        launches = tuple(read_launch(paths) for paths in self._experiment.launches())
        latest = {run: planned for run, planned in self._latest(launches).items() if only is None or run in only}
        keys = self._keys(launches, latest)
        kept = self._ended.attempts(keys) if only is None else {}
        attempts = {run: kept[run] if run in kept else self._attempts(run) if run in keys else () for run in latest}
        seen = _observe(launches, latest, attempts, cluster_of)
        # An attempt may have begun, or ended with a final event, after it was read and before the scheduler answered.
        begun = set(names_in(self._experiment.runs))
        ended = [run for run, observation in seen.items() if observation.state is JobState.ENDED and run in begun]
        attempts |= {run: self._attempts(run) for run in ended}
        cancelled = {launch.number: _cancelled(launch) for launch in launches}
        records = {
            run_id: reconcile(
                planned,
                attempts[run_id],
                observation=seen.get(run_id),
                cancelled=cancelled[planned.launch].get(run_id, ""),
            )
            for run_id, planned in latest.items()
        }
        if only is None:
            new = [run for run in keys if run not in kept and records[run].settled]
            self._ended.keep({run: (keys[run], records[run].attempts) for run in new})
        hidden = frozenset(names_in(self._experiment.hidden))
        return ExperimentState(experiment=self._experiment, launches=launches, records=records, hidden=hidden)

    def _latest(self, launches: Iterable[Launch]) -> dict[RunId, PlannedRun]:
        """Return of each run what the last launch that names it wants."""
        latest: dict[RunId, PlannedRun] = {}
        for launch in launches:
            if launch.token not in self._plans:
                self._plans[launch.token] = {planned.run: planned for planned in read_plan(launch.paths)}
            latest |= self._plans[launch.token]
        return latest

    def _keys(self, launches: Iterable[Launch], latest: Mapping[RunId, PlannedRun]) -> dict[RunId, Key]:
        """Return what the runs that have a folder are kept by: one listing, however many they are."""
        tokens = {launch.number: launch.token for launch in launches}
        folders = inodes(self._experiment.runs)
        return {run: (tokens[planned.launch], folders[run]) for run, planned in latest.items() if run in folders}

    def _attempts(self, run_id: RunId) -> tuple[Attempt, ...]:
        return read_attempts(self._experiment.run(run_id))


def _cancelled(launch: Launch) -> dict[str, str]:
    """Return which runs of a launch are cancelled, by their id, and why."""
    found = dict.fromkeys(names_in(launch.paths.cancelled), "cancelled")
    return found | read_failure_limit_reasons(launch.paths) if found else found


def _observe(
    launches: Iterable[Launch],
    latest: Mapping[RunId, PlannedRun],
    attempts: Mapping[RunId, Sequence[Attempt]],
    cluster_of: Mapping[str, Cluster],
) -> dict[RunId, Observation]:
    """Ask the clusters about the runs that have no final event for what their latest plan wants."""
    asked: dict[int, dict[int, RunId]] = {}
    for run_id, planned in latest.items():
        last = attempts[run_id][-1] if attempts[run_id] else None
        if last is None or last.number < planned.attempt or last.state in {RunState.RUNNING, RunState.INTERRUPTED}:
            # A launch that was thought lost may have come to work before the one that took its runs over.
            claim = last.claim if last and last.number >= planned.attempt else None
            number, index = (claim.launch, claim.index) if claim else (planned.launch, planned.index)
            asked.setdefault(number, {})[index] = run_id
    answers: dict[RunId, Observation] = {}
    for launch in launches:
        tasks = asked.get(launch.number, {})
        found = _ask(launch, tasks.keys(), cluster_of) if tasks else {}
        answers |= {tasks[index]: observation for index, observation in found.items() if index in tasks}
    return answers


def _ask(launch: Launch, tasks: Collection[int], cluster_of: Mapping[str, Cluster]) -> Mapping[int, Observation]:
    if (submits := is_submitting(launch)) is not False:
        reason = f"being submitted by process {launch.launcher.pid} on {launch.launcher.host}"
        if submits is None:
            reason += (
                f", which cannot be asked here; others go on once it was silent for {SILENT_SECONDS / 60:.0f} minutes"
            )
        state = JobState.PENDING if submits else JobState.UNKNOWN
        return dict.fromkeys(tasks, Observation(state=state, reason=reason))
    kind = launch.header.cluster_kind
    if kind not in cluster_of:
        return dict.fromkeys(tasks, Observation(state=JobState.UNKNOWN, reason=f"cluster {kind} is not known here"))
    return cluster_of[kind].observe(launch.paths, tasks)
