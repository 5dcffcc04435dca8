"""The mapping to MLflow, into a store on this machine or a server.

    MLflow experiment   one experiment, tagged with its project
    parent run          one per experiment, tag orch.kind=parent, with the note
    child run           one per run and generation, found again by orch.run, orch.generation, orch.history

The state of a sync is kept in the store itself, as tags of the child: `orch.offset.<attempt>` (how far a spool
has been sent), `orch.artifact.<name>` (the size and time of a file when it was logged). So a sync may be
interrupted anywhere and the next one continues; a sync that finds nothing new writes nothing.

One process at a time writes to an embedded store. Many write to a server: MLflow stores a point once even if it
is sent twice, and the processes agree through files on which runs are theirs (run_ids).

Only MlflowClient is used: the fluent API would obey MLFLOW_RUN_ID and MLFLOW_EXPERIMENT_NAME.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

# Before the import, which would start a thread that reports usage over the network.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Experiment, Run, ViewType
from mlflow.exceptions import MlflowException

from orchestrator.errors import TrackingError
from orchestrator.tracking.embedded import locked, make_database
from orchestrator.tracking.fields import flatten
from orchestrator.tracking.mlflow_run import Writer, committed
from orchestrator.tracking.run_ids import RunIds
from orchestrator.tracking.upload import AbandonedError, Report, Seen, TrackedExperiment, TrackedRun, batches

log = logging.getLogger(__name__)

STATUS: Mapping[str, str] = {
    "queued": "SCHEDULED",
    "running": "RUNNING",
    "done": "FINISHED",
    "failed": "FAILED",
    "cancelled": "KILLED",
    "lost": "KILLED",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowStore:
    """An MLflow tracking store: an embedded one in `folder`, or a server, whose run ids are agreed on in `ids`.

    `files` is where an embedded store keeps artifacts; `wait_seconds` is how long to wait for another process that
    is writing to it.
    """

    client: MlflowClient
    uri: str
    folder: Path | None = None
    files: Path | None = None
    ids: RunIds | None = None
    wait_seconds: float = 60.0

    @classmethod
    def embedded(cls, folder: Path, files: Path | None = None) -> MlflowStore:
        """Open the SQLite store in a folder on a local disk, creating it at the first use.

        `files` is the folder of artifacts, if not the same. Raises TrackingError if the store cannot be used.
        """
        folder = folder.absolute()
        files = files.absolute() if files else folder / "artifacts"
        if set("?%") & set(str(folder)):
            raise TrackingError(
                f"cannot keep a tracking store in {folder}",
                why="a database address cannot hold the characters ? and %",
                fix="choose another folder for the runs",
            )
        with _errors(f"cannot open the tracking store {folder}", _REBUILD):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _quieten()
            uri = f"sqlite:///{folder / 'mlflow.db'}"
            with locked(folder, 60.0):
                make_database(folder / "mlflow.db", files)
                client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            return cls(client=client, uri=uri, folder=folder, files=files)

    @classmethod
    def server(cls, uri: str, ids: Path) -> MlflowStore:
        """Return the store at a server's address, without sending a request yet.

        Credentials come from MLflow's own environment variables. `ids` is a folder in the experiment's own, shared by
        all processes that send its runs. A call that hangs is given up after 30 s, and MLflow itself repeats none.
        """
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        return cls(client=MlflowClient(tracking_uri=uri, registry_uri=uri), uri=uri, ids=RunIds(ids))

    def sync(self, experiment: TrackedExperiment) -> Report:
        """Bring the store up to date with an experiment; do nothing if it is.

        A run that cannot be stored does not hold up the others. Raises TrackingError at the end if there was such
        a run, or if the store cannot be used.
        """
        with _errors(f"cannot track experiment {experiment.name!r}", self._fix), self._alone():
            runs = list(experiment.runs)
            writer = self._writer(experiment)
            found = _search(self.client, writer.experiment)
            parent = self._parent(writer, experiment, runs, found)
            report, problems, children = self._sync_children(writer, parent, runs, found)
            writer.set_tags(parent, _noted(experiment.note, writer.experiment, children))
            writer.set_status(parent, *(("RUNNING", None) if experiment.waits and runs else _summary(runs)))
            if problems:
                raise TrackingError(
                    f"{len(problems)} of {len(runs)} runs could not be tracked",
                    why="; ".join(problems[:3]),
                    fix="correct the cause and sync again: it continues where it stopped",
                )
            return report

    def follow(self, experiment: TrackedExperiment) -> Follower:
        """Return a Follower that sends single runs of an experiment repeatedly, in parallel with other processes.

        Raises TrackingError if the store cannot be used.
        """
        with _errors(f"cannot track experiment {experiment.name!r}", self._fix):
            writer = self._writer(experiment)
            found = _search(self.client, writer.experiment, "tags.`orch.kind` = 'parent'")
            parent = self._parent(writer, experiment, [], found)
            if parent.info.status != "RUNNING":
                writer.set_status(parent, "RUNNING", None)
            return Follower(store=self, writer=writer, parent=parent)

    def child_of(self, experiment: TrackedExperiment, tags: Mapping[str, str]) -> Run | None:
        """Return the active child of a run, found by its identifying tags; None if there is none."""
        where = " and ".join(f"tags.`{key}` = '{tags[key]}'" for key in ("orch.run", "orch.generation", "orch.history"))
        found = _search(self.client, self._experiment(experiment), where)
        return next((run for run in found if run.info.lifecycle_stage == "active"), None)

    def _writer(self, experiment: TrackedExperiment) -> Writer:
        found = self._experiment(experiment)
        return Writer(client=self.client, experiment=found, linked=self.files is not None)

    @property
    def _fix(self) -> str:
        return _REBUILD if self.folder else "is the server up, and is this its address? nothing is lost: sync again"

    def _alone(self) -> AbstractContextManager[None]:
        return locked(self.folder, self.wait_seconds) if self.folder else nullcontext()

    # --- which experiment and runs are its own ---------------------------------------------------------------

    def _experiment(self, experiment: TrackedExperiment) -> str:
        """Return the id of the MLflow experiment, which is created at the first use.

        On a server, if another project has taken the name, the project's own id is appended to it.
        """
        place = (self.files / experiment.name).as_uri() if self.files else None
        found = self._named(experiment.name, experiment.project, place)
        if self.folder is None and found.tags.get("orch.project") != experiment.project:
            found = self._named(f"{experiment.name} {experiment.project[:6]}", experiment.project, place)
        if found.tags.get("orch.project") != experiment.project:
            raise TrackingError(
                f"the MLflow experiment {experiment.name!r} belongs to another project",
                why=f"its project is {found.tags.get('orch.project')!r}, this one is {experiment.project!r}",
                fix="give this experiment another name",
            )
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the MLflow experiment {found.name!r} is deleted",
                why="MLflow keeps the name of a deleted experiment",
                fix=f"MLFLOW_TRACKING_URI={self.uri} mlflow experiments restore --experiment-id "
                f"{found.experiment_id}, or give this experiment another name",
            )
        if place is not None and found.artifact_location != place:
            raise TrackingError(
                f"the tracking store {self.folder} was moved",
                why=f"it keeps its artifacts in {found.artifact_location}",
                fix=f"delete {self.folder}; the next sync rebuilds it from the runs",
            )
        return str(found.experiment_id)

    def _named(self, name: str, project: str, place: str | None) -> Experiment:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                made = self.client.create_experiment(name, artifact_location=place, tags={"orch.project": project})
                found = self.client.get_experiment(made)
            except MlflowException:
                found = self.client.get_experiment_by_name(name)  # another process has just created it
                if found is None:
                    raise
        return found

    def _parent(
        self, writer: Writer, experiment: TrackedExperiment, runs: Sequence[TrackedRun], found: Sequence[Run]
    ) -> Run:
        """Return the parent run, after updating its tags."""
        active = [run for run in found if run.info.lifecycle_stage == "active"]
        ours = [run for run in active if run.data.tags.get("orch.kind") == "parent"]
        tags = {
            **experiment.tags,
            "orch.kind": "parent",
            "mlflow.runName": experiment.tags.get("orch.experiment", experiment.name),
        }
        start = min((run.started_ms for run in runs if run.started_ms), default=None)
        parent = self._agreed("parent", ours, lambda: writer.create(tags, start))
        writer.set_tags(parent, tags)
        return parent

    def _agreed(self, name: str, found: Sequence[Run], create: Callable[[], Run]) -> Run:
        """Return the one run of a name: the agreed one, else one that was found, else a new one."""
        if self.ids is None:
            return found[0] if found else create()
        if (known := self.ids.known(name)) is not None:
            if (run := self._get(known, found)) is not None:
                return run
            self.ids.forget(name, known)
        proposed = found[0] if found else create()
        agreed = self.ids.publish(name, proposed.info.run_id)
        if agreed == proposed.info.run_id:
            return proposed
        if not found:
            self.client.delete_run(proposed.info.run_id)
        return self.client.get_run(agreed)

    def _get(self, run_id: str, found: Sequence[Run]) -> Run | None:
        """Return an active run by its id."""
        run = next((run for run in found if run.info.run_id == run_id), None)
        try:
            run = run or self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    # --- runs ---------------------------------------------------------------------------------------------

    def _sync_children(
        self, writer: Writer, parent: Run, runs: Sequence[TrackedRun], found: Sequence[Run]
    ) -> tuple[Report, list[str], dict[str, str]]:
        """Return the report, the problems, and the MLflow ids of the runs."""
        known: dict[tuple[str | None, str | None], list[Run]] = defaultdict(list)
        for child in found:
            known[child.data.tags.get("orch.run"), child.data.tags.get("orch.generation")].append(child)
        report, problems, children = Report(), list[str](), dict[str, str]()
        for run in runs:
            try:
                own, made = self._child(writer, run, known[run.run_id, str(run.generation)], parent)
                report += made
                if own:
                    own, sent = self._sent(writer, own, run, parent)
                    report += sent
                children |= {run.run_id: own.info.run_id} if own else {}
            except Exception as error:  # noqa: BLE001 - stores of artifacts raise errors of their own
                log.warning("run %s is not tracked: %s", run.run_id, error)
                problems.append(f"{run.run_id}: {_first_line(error)}")
        return report, problems, children

    def _sent(self, writer: Writer, child: Run, run: TrackedRun, parent: Run) -> tuple[Run | None, Report]:
        """Bring a child up to date, or replace it; return the one that the run has now."""
        try:
            return child, _send(writer, child, parent, run, Seen(run.ends))
        except AbandonedError as error:
            return self._replace(writer, child, run, parent, error)

    def _replace(
        self, writer: Writer, child: Run, run: TrackedRun, parent: Run, why: AbandonedError
    ) -> tuple[Run | None, Report]:
        """Track a run again whose child has values that the run no longer has: MLflow cannot delete a value.

        The child goes to MLflow's trash, under a history that no run has.
        """
        log.info("run %s is tracked again: it was resumed, and logged another value: %s", run.run_id, why)
        self.client.set_tag(child.info.run_id, "orch.history", f"{run.history} (abandoned)")
        self.client.delete_run(child.info.run_id)
        if self.ids:
            self.ids.forget(_name_of(run), child.info.run_id)
        made, report = self._child(writer, run, [], parent)
        if made is None:
            return None, report
        writer.set_tags(made, {"metrics_diverged": str(why)})
        return made, report + Report(superseded=1) + _send(writer, made, parent, run, Seen(run.ends))

    def _child(self, writer: Writer, run: TrackedRun, known: Sequence[Run], parent: Run) -> tuple[Run | None, Report]:
        """Return the one active child of a run, creating it if needed; None if a user deleted it."""
        current = [child for child in known if child.data.tags.get("orch.history") == str(run.history)]
        active = [child for child in known if child.info.lifecycle_stage == "active"]
        ours = [child for child in active if child in current]
        name = _name_of(run)
        agreed = self.ids.known(name) if self.ids else None
        deleted = [child.info.run_id for child in current if child not in active]
        if agreed in deleted or (deleted and not ours and not agreed):
            return None, Report(superseded=self._delete(active), left_deleted=1)
        keep = self._agreed(name, ours, lambda: writer.create(_child_tags(run, parent.info.run_id), run.started_ms))
        stale = [child for child in active if child.info.run_id != keep.info.run_id]
        return keep, Report(superseded=self._delete(stale), created=int(not ours))

    def _delete(self, stale: Sequence[Run]) -> int:
        for child in stale:
            self.client.delete_run(child.info.run_id)
        return len(stale)


@dataclass(slots=True, kw_only=True)
class Follower:
    """Sends single runs to a store. It caches what it reads, so that a run with nothing new costs no call."""

    store: MlflowStore
    writer: Writer
    parent: Run
    children: dict[tuple[str, int, int], Run | None] = field(default_factory=dict)
    seen: dict[tuple[str, int, int], Seen] = field(default_factory=dict)

    def send(self, run: TrackedRun) -> Report:
        """Bring one run up to date. Raises TrackingError if the store cannot be used; then call again later."""
        with _errors(f"cannot track run {run.run_id}", self.store._fix):  # noqa: SLF001 - one noun in two classes
            key, report = (run.run_id, run.generation, run.history), Report()
            if key not in self.children:
                known = _search(self.store.client, self.writer.experiment, f"tags.`orch.run` = '{run.run_id}'")
                same = [child for child in known if child.data.tags.get("orch.generation") == str(run.generation)]
                self.children[key], report = self.store._child(self.writer, run, same, self.parent)  # noqa: SLF001 - as above
            child = self.children[key]
            if child is None:
                return report
            seen = self.seen.pop(key, None)
            if seen is None or seen.ends != run.ends:
                seen = Seen(run.ends)
            try:
                sent = _send(self.writer, child, self.parent, run, seen)
            except AbandonedError as error:
                self.children[key], sent = self.store._replace(self.writer, child, run, self.parent, error)
                return report + sent
            self.seen[key] = seen  # only now: all of it has been stored
            if child.info.status != STATUS.get(run.state, child.info.status):
                self.children[key] = self.store.client.get_run(child.info.run_id)
            return report + sent


def _send(writer: Writer, child: Run, parent: Run, run: TrackedRun, seen: Seen) -> Report:
    tags = _child_tags(run, parent.info.run_id)
    params = flatten(run.params)
    writer.set_params(child, params)
    writer.set_tags(child, tags)
    writer.set_data(child, run.data)
    report = Report()
    done = run.state == "done"
    for batch in batches(run.spools, committed(child), seen, ends=run.ends, growing=run.growing, done=done):
        report += writer.send(child, batch, tags, params)
    finished = writer.set_status(child, STATUS.get(run.state), run.ended_ms)
    report += Report(runs_finished=int(finished))
    return report + writer.log_artifacts(child, run.artifacts)  # last, so that a bad file holds up nothing else


def _name_of(run: TrackedRun) -> str:
    return f"{run.run_id}.g{run.generation}.h{run.history}"


def _noted(note: str, experiment: str, children: Mapping[str, str]) -> dict[str, str]:
    """Return the tag with a note, with its `run:` links turned into links of MLflow's UI."""
    shown = re.sub(r"\]\(run:(\w+)\)", lambda found: _link(experiment, children.get(found[1])), note)
    return {"mlflow.note.content": shown} if note else {}


def _link(experiment: str, child: str | None) -> str:
    return f"](#/experiments/{experiment}/runs/{child})" if child else "]()"


def _child_tags(run: TrackedRun, parent: str) -> dict[str, str]:
    return {
        **run.tags,
        "orch.kind": "run",
        "orch.experiment": run.experiment,
        "orch.run": run.run_id,
        "orch.generation": str(run.generation),
        "orch.history": str(run.history),
        "mlflow.runName": run.name or run.run_id,
        "mlflow.parentRunId": parent,
    }


def _summary(runs: Sequence[TrackedRun]) -> tuple[str, int | None]:
    """Return the parent's status and end: RUNNING while a run may still run, then the worst status of its runs."""
    states = {run.state for run in runs}
    if states - (STATUS.keys() - {"running"}) or ("queued" in states and len(states) > 1):
        return "RUNNING", None
    order = ("queued", "failed", "lost", "cancelled", "done")
    worst = next((state for state in order if state in states), "queued")
    return STATUS[worst], max((run.ended_ms for run in runs if run.ended_ms), default=None)


def _search(client: MlflowClient, experiment: str, where: str = "") -> list[Run]:
    """Return the runs of an experiment, including deleted ones, oldest first; `where` is an MLflow filter."""
    found: list[Run] = []
    token: str | None = ""
    while token is not None:
        page = client.search_runs([experiment], where, ViewType.ALL, max_results=5_000, page_token=token or None)
        found += page
        token = page.token or None
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


_REBUILD = (
    "free space or correct the permissions if that is the cause; the store can be deleted: it is rebuilt from the runs"
)


def _quieten() -> None:
    """Silence MLflow's log of its migrations, unless the user has enabled it."""
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def _errors(what: str, fix: str) -> Iterator[None]:
    """Turn errors of MLflow, SQLite, the disk and the network into a TrackingError."""
    try:
        yield
    except (MlflowException, sqlite3.Error, OSError) as error:
        raise TrackingError(what, why=_first_line(error), fix=fix) from error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
