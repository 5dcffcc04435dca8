"""The mapping to MLflow; the only importer of mlflow.

    MLflow experiment   an experiment of ours, tagged with its project
    parent run          one per experiment, tag orch.kind=parent, with the note
    child run           one per run and generation, found again by orch.run, orch.generation, orch.history

Whatever a sync has to remember lives in the store it describes, as tags of the child: `orch.offset.<attempt>`
(how far a spool has been sent), `orch.artifact.<name>` (what a file looked like when it was logged). So a
sync may be cut off anywhere and the next one goes on; one that finds nothing new writes nothing. MLflow's
limits shape the rest: infinities become the largest double, params cannot change (the first value stays, the
tag `orch.params_changed` names them), a start time is that of the run's creation.

Only MlflowClient is used: the fluent API would obey MLFLOW_RUN_ID and MLFLOW_EXPERIMENT_NAME.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

# Before the import, which would start a thread that reports usage over the network.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path

from orchestrator.errors import OrchError, TrackingError
from orchestrator.tracking.fields import (
    PARAM_CHARACTERS,
    TAG_CHARACTERS,
    cut_name,
    digest,
    encode,
    flatten,
    shorten,
    text,
)
from orchestrator.tracking.upload import (
    Artifact,
    Batch,
    Point,
    Report,
    TrackedExperiment,
    TrackedRun,
    batches,
    chunks,
)

log = logging.getLogger(__name__)

STATUS: Mapping[str, str] = {
    "queued": "SCHEDULED",
    "running": "RUNNING",
    "done": "FINISHED",
    "failed": "FAILED",
    "cancelled": "KILLED",
    "lost": "KILLED",
}
_ENDED = {"FINISHED", "FAILED", "KILLED"}
_OURS = "orch."
_OFFSET = "orch.offset."
_INT64 = 2**63 - 1
_LINKED = {".ckpt"}
"""Written once and large: linked into the embedded store instead of copied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MlflowStore:
    """An MLflow tracking store. `folder` is that of an embedded one, else None.

    `wait_seconds` is how long to wait for another process that is writing to the embedded store.
    """

    client: MlflowClient
    uri: str
    folder: Path | None = None
    wait_seconds: float = 60.0

    @classmethod
    def embedded(cls, folder: Path) -> MlflowStore:
        """Open the SQLite store in a folder on a local disk, and make it at the first use.

        Raises TrackingError if it cannot be used.
        """
        folder = folder.absolute()
        if set("?%") & set(str(folder)):
            raise TrackingError(
                f"cannot keep a tracking store in {folder}",
                why="a database address cannot hold the characters ? and %",
                fix="choose another folder for the runs",
            )
        with _errors(f"cannot open the tracking store {folder}"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _quieten()
            uri = f"sqlite:///{folder / 'mlflow.db'}"
            with _locked(folder, 60.0):
                _make_database(folder / "mlflow.db")
                client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            return cls(client=client, uri=uri, folder=folder)

    def sync(self, experiment: TrackedExperiment) -> Report:
        """Bring the store up to what is known of an experiment; do nothing if it is.

        A run that cannot be stored does not hold up the others. Raises TrackingError at the end if there
        was one, or if the store cannot be used.
        """
        with _errors(f"cannot track experiment {experiment.name!r}"), _locked(self.folder, self.wait_seconds):
            runs = list(experiment.runs)
            target = _Target(client=self.client, experiment=self._experiment(experiment), folder=self.folder)
            found = _search(self.client, target.experiment)
            parent = target.parent(experiment, runs, found)
            report, problems = _sync_children(target, parent, runs, found)
            target.set_status(parent, *_summary(runs))
            if problems:
                raise TrackingError(
                    f"{len(problems)} of {len(runs)} runs could not be tracked",
                    why="; ".join(problems[:3]),
                    fix="correct the cause and sync again: it goes on where it stopped",
                )
            return report

    def _experiment(self, experiment: TrackedExperiment) -> str:
        """Return the id of the MLflow experiment, made at the first use."""
        place = (self.folder / "artifacts" / experiment.name).as_uri() if self.folder else None
        found = self.client.get_experiment_by_name(experiment.name)
        if found is None:
            tags = {"orch.project": experiment.project}
            return str(self.client.create_experiment(experiment.name, artifact_location=place, tags=tags))
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the MLflow experiment {experiment.name!r} is deleted",
                why="MLflow keeps the name of a deleted experiment",
                fix=f"MLFLOW_TRACKING_URI={self.uri} mlflow experiments restore --experiment-id "
                f"{found.experiment_id}, or give this experiment another name",
            )
        if found.tags.get("orch.project") != experiment.project:
            raise TrackingError(
                f"the MLflow experiment {experiment.name!r} belongs to somebody else",
                why=f"its project is {found.tags.get('orch.project')!r}, this one is {experiment.project!r}",
                fix="give this experiment another name",
            )
        if place is not None and found.artifact_location != place:
            raise TrackingError(
                f"the tracking store {self.folder} was moved",
                why=f"it keeps its artifacts in {found.artifact_location}",
                fix=f"delete {self.folder}; the next sync rebuilds it from the runs",
            )
        return str(found.experiment_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """One MLflow experiment that is being written to."""

    client: MlflowClient
    experiment: str
    folder: Path | None

    def parent(self, experiment: TrackedExperiment, runs: Sequence[TrackedRun], found: Sequence[Run]) -> Run:
        """Return the parent run, with its tags as wanted."""
        active = [run for run in found if run.info.lifecycle_stage == "active"]
        ours = [run for run in active if run.data.tags.get("orch.kind") == "parent"]
        tags = {
            **experiment.tags,
            "orch.kind": "parent",
            "orch.experiment": experiment.name,
            "mlflow.runName": experiment.name,
            "mlflow.note.content": experiment.note,
        }
        starts = [run.started_ms for run in runs if run.started_ms]
        parent = ours[0] if ours else self.create(tags, min(starts, default=None))
        self.set_tags(parent, tags)
        return parent

    def create(self, tags: Mapping[str, str], start_ms: int | None) -> Run:
        """Create a run. Its tags come with it, or an interruption would leave one that nobody finds."""
        texts = {encode(key): text(value) for key, value in tags.items()}
        short = {key: value for key, value in texts.items() if len(value) <= TAG_CHARACTERS}
        return self.client.create_run(self.experiment, start_ms, short, tags["mlflow.runName"])

    def set_tags(self, run: Run, tags: Mapping[str, str]) -> None:
        """Set the tags that differ. The whole of one that is too long is logged first."""
        wanted = {encode(key): text(value) for key, value in {**tags, **_cut_names(tags)}.items()}
        shown = {key: shorten(value, TAG_CHARACTERS, _whole("tags", key)) for key, value in wanted.items()}
        changed = {key: value for key, value in shown.items() if run.data.tags.get(key) != value}
        self._log_long(run, "tags", {key: wanted[key] for key in changed}, TAG_CHARACTERS)
        entries = [RunTag(key, value) for key, value in changed.items()]
        for chunk in chunks(entries, lambda tag: 6 * len(tag.key + tag.value), 100):
            self.client.log_batch(run.info.run_id, tags=chunk)
        run.data.tags.update(changed)

    def set_params(self, run: Run, params: Mapping[str, str]) -> None:
        """Log the params that are new. MLflow refuses to change one, so a tag names those that differ."""
        wanted = {encode(key): value for key, value in params.items()}
        limit, stored = PARAM_CHARACTERS, run.data.params
        shown = {key: shorten(value, limit, _whole("params", key)) for key, value in wanted.items()}
        new = {key: value for key, value in shown.items() if key not in stored}
        differ = {key for key, value in shown.items() if stored.get(key, value) != value}
        self._log_long(run, "params", {key: wanted[key] for key in new}, limit)
        entries = [Param(key, value) for key, value in new.items()]
        for chunk in chunks(entries, lambda param: 6 * len(param.key + param.value), 100):
            self.client.log_batch(run.info.run_id, params=chunk)
        stored.update(new)
        self.set_tags(run, _cut_names(params))
        if differ:
            differ |= set(filter(None, run.data.tags.get("orch.params_changed", "").split(", ")))
            self.set_tags(run, {"orch.params_changed": ", ".join(sorted(differ))})

    def _log_long(self, run: Run, kind: str, values: Mapping[str, str], limit: int) -> None:
        for key, value in values.items():
            if len(value) > limit:
                self.client.log_text(run.info.run_id, value, _whole(kind, key))

    def log_artifact(self, run: Run, artifact: Artifact) -> Report:
        """Log a file or directory that is new or has changed since."""
        tag = f"orch.artifact.{artifact.name}"
        signature = artifact.signature()
        if signature is None:
            return Report(artifacts_missing=1)
        if run.data.tags.get(encode(tag)) == signature:
            return Report()
        try:
            for file, folder in artifact.files():
                self._place(run, file, folder)
        except FileNotFoundError:  # it was there a moment ago
            return Report(artifacts_missing=1)
        self.set_tags(run, {tag: signature})
        return Report(artifacts_logged=1)

    def _place(self, run: Run, file: Path, folder: str) -> None:
        if self.folder is not None and file.suffix in _LINKED:
            top = local_file_uri_to_path(run.info.artifact_uri)  # type: ignore[no-untyped-call]  # same
            place = Path(top) / folder
            place.mkdir(parents=True, exist_ok=True)
            _link(file, place / file.name)
        else:
            self.client.log_artifact(run.info.run_id, str(file), folder or None)

    def send(self, run: Run, batch: Batch, fixed: Mapping[str, str], params: Mapping[str, str]) -> Report:
        """Store one batch and commit it, the offsets last.

        `fixed` tags and `params` come from the run's record; what the run itself logs cannot overrule them.
        """
        report = sum((self.log_artifact(run, artifact) for artifact in batch.artifacts), Report())
        own = {key: value for key, value in flatten(batch.params).items() if not _configured(key, value, params)}
        self.set_params(run, {_free_name(key, value, params): value for key, value in own.items()})
        free = [key for key in batch.tags if key not in fixed and not key.startswith(_OURS)]
        tags = {key: batch.tags[key] for key in free} | _cut_names(point.key for point in batch.points)
        if batch.diverged and "metrics_diverged" not in run.data.tags:
            tags["metrics_diverged"] = batch.diverged
        self.set_tags(run, tags)
        self._commit(run, batch)
        return report + Report(metrics_sent=len(batch.points))

    def _commit(self, run: Run, batch: Batch) -> None:
        """Send the points and their offsets in one call, which stores them in this order."""
        offsets = {f"{_OFFSET}{attempt}": str(offset) for attempt, offset in batch.offsets.items()}
        tags = [RunTag(key, value) for key, value in offsets.items()]
        self.client.log_batch(run.info.run_id, metrics=[_metric(point) for point in batch.points], tags=tags)
        run.data.tags.update(offsets)

    def set_status(self, run: Run, status: str | None, ended_ms: int | None) -> bool:
        """Set a status that is known and differs; return whether the run has ended by that."""
        if status is None:
            return False
        changed = run.info.status != status
        ended = status in _ENDED
        if ended and (changed or (ended_ms and run.info.end_time != ended_ms)):
            self.client.set_terminated(run.info.run_id, status, end_time=ended_ms)
        elif changed:
            self.client.update_run(run.info.run_id, status=status)
        return ended and changed


def _sync_children(
    target: _Target, parent: Run, runs: Sequence[TrackedRun], found: Sequence[Run]
) -> tuple[Report, list[str]]:
    known: dict[tuple[str | None, str | None], list[Run]] = defaultdict(list)
    for child in found:
        known[child.data.tags.get("orch.run"), child.data.tags.get("orch.generation")].append(child)
    report, problems = Report(), list[str]()
    for run in runs:
        try:
            report += _sync_child(target, parent, run, known[run.run_id, str(run.generation)])
        except (OrchError, MlflowException, OSError) as error:
            log.warning("run %s is not tracked: %s", run.run_id, error)
            problems.append(f"{run.run_id}: {_first_line(error)}")
    return report, problems


def _sync_child(target: _Target, parent: Run, run: TrackedRun, known: Sequence[Run]) -> Report:
    tags = _child_tags(run, parent.info.run_id)
    child, report = _child(target, run, known, tags)
    if child is None:
        return report
    params = flatten(run.params)
    target.set_params(child, params)
    target.set_tags(child, tags)
    for batch in batches(run.spools, _committed(child)):
        report += target.send(child, batch, tags, params)
    finished = target.set_status(child, STATUS.get(run.state), run.ended_ms)
    report += Report(runs_finished=int(finished))
    for artifact in run.artifacts:  # last: a file that cannot be read must hold up nothing else
        report += target.log_artifact(child, artifact)
    return report


def _child(
    target: _Target, run: TrackedRun, known: Sequence[Run], tags: Mapping[str, str]
) -> tuple[Run | None, Report]:
    """Return the one active child of a run, made if need be; None if a person deleted it."""
    current = [child for child in known if child.data.tags.get("orch.history") == str(run.history)]
    active = [child for child in known if child.info.lifecycle_stage == "active"]
    keep = next((child for child in active if child in current), None)
    stale = [child for child in active if child is not keep]
    for child in stale:
        target.client.delete_run(child.info.run_id)
    report = Report(superseded=len(stale))
    if keep is None and current:
        return None, report + Report(left_deleted=1)
    if keep is None:
        return target.create(tags, run.started_ms), report + Report(created=1)
    return keep, report


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


def _committed(child: Run) -> dict[str, int]:
    tags = child.data.tags
    return {key.removeprefix(_OFFSET): int(tags[key]) for key in tags if key.startswith(_OFFSET)}


def _cut_names(names: Iterable[str]) -> dict[str, str]:
    return {key: value for name in names for key, value in cut_name(name).items()}


def _configured(key: str, value: str, params: Mapping[str, str]) -> bool:
    """Return whether a hyperparameter that Lightning saved only repeats an argument of the model or the data."""
    return any(params.get(f"{section}.{key}") == value for section in ("model", "data"))


def _free_name(key: str, value: str, taken: Mapping[str, str]) -> str:
    """Return the name of a run's own hyperparameter: its own, unless the config has another value there."""
    return key if taken.get(key, value) == value else f"hparams.{key}"


def _summary(runs: Sequence[TrackedRun]) -> tuple[str, int | None]:
    """Return the parent's status and end: RUNNING while a run of it may be, then the worst of theirs."""
    states = {run.state for run in runs}
    if states - (STATUS.keys() - {"running"}) or ("queued" in states and len(states) > 1):
        return "RUNNING", None
    order = ("queued", "failed", "lost", "cancelled", "done")
    worst = next((state for state in order if state in states), "queued")
    return STATUS[worst], max((run.ended_ms for run in runs if run.ended_ms), default=None)


def _search(client: MlflowClient, experiment: str) -> list[Run]:
    """Return all runs of an experiment, deleted ones too, oldest first."""
    found: list[Run] = []
    token: str | None = ""
    while token is not None:
        page = client.search_runs([experiment], run_view_type=ViewType.ALL, max_results=5_000, page_token=token or None)
        found += page
        token = page.token or None
    return sorted(found, key=lambda run: (run.info.start_time, run.info.run_id))


def _metric(point: Point) -> Metric:
    step = max(-_INT64, min(_INT64, point.step))
    return Metric(encode(point.key), point.value, max(0, min(_INT64, point.time_ms)), step)


def _whole(kind: str, key: str) -> str:
    """Return the artifact that holds the whole of a value which was cut."""
    return f"{kind}/{key if len(key.encode()) < 200 else digest(key)}.txt"


def _link(file: Path, target: Path) -> None:
    """Publish a file under another name by a hard link, or by a copy where the filesystem has none."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as scratch:
        partial = Path(scratch) / "file"
        try:
            os.link(file, partial)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copyfile(file, partial)
        partial.replace(target)


def _make_database(path: Path) -> None:
    """Make the database if it is not there, whole or not at all; raise if it is no database.

    MLflow itself tries for 100 seconds to open what cannot be opened, so that is found out first.
    """
    if path.exists():
        with closing(sqlite3.connect(path)) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # noqa: PLC0415 - loads SQLAlchemy

    partial = path.with_name("mlflow.db.partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode=0o600)
    store = SqlAlchemyStore(  # type: ignore[no-untyped-call]  # mlflow ships it untyped
        f"sqlite:///{partial}", (path.parent / "artifacts").as_uri()
    )
    store.engine.dispose()
    partial.replace(path)


def _quieten() -> None:
    """Silence MLflow's account of its migrations, unless somebody asked for it."""
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def _locked(folder: Path | None, wait_seconds: float) -> Iterator[None]:
    """Be the only writer of an embedded store. `flock` will do: the store is on a local disk by design."""
    if folder is None:
        yield
        return
    with (folder / "lock").open("a") as file:
        deadline = time.monotonic() + wait_seconds
        while not _try_lock(file.fileno()):
            if time.monotonic() > deadline:
                raise TrackingError(
                    f"the tracking store {folder} is busy",
                    why=f"another process has been writing to it for more than {wait_seconds:g} s",
                    fix="wait for it to end and sync again: `orch ui --once`",
                )
            time.sleep(0.05)
        yield


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _errors(what: str) -> Iterator[None]:
    """Turn what MLflow, SQLite and the disk raise into a TrackingError."""
    try:
        yield
    except (MlflowException, sqlite3.Error, OSError) as error:
        raise TrackingError(
            what,
            why=_first_line(error),
            fix="free space or correct the permissions if that is the cause; the store can be deleted: "
            "it is rebuilt from the runs",
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
