"""Writing one run to MLflow: its tags, params, metrics, artifacts and status. Stored values are not written again.

Limits of MLflow: infinities become the largest double; params cannot change (the first value stays, and the tag
`orch.params_changed` names the key); a start time can be set only when the run is created.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Before the import, which would start a thread that reports usage over the network.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Dataset as MlflowDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path

from orchestrator.system.files import make_folder, replacing
from orchestrator.tracking.fields import (
    PARAM_CHARACTERS,
    TAG_CHARACTERS,
    cut_name,
    decode,
    digest,
    encode,
    flatten,
    shorten,
    text,
)
from orchestrator.tracking.upload import LARGEST_STEP, Artifact, Batch, Dataset, Point, Report, chunks

_ENDED = {"FINISHED", "FAILED", "KILLED"}
_OURS = "orch."
_OFFSET = "orch.offset."
_DATASET = "orch.dataset"
_DIGEST_CHARACTERS, _SOURCE_CHARACTERS = 36, 65_535
_LINKED = {".ckpt"}
"""Suffixes of files that are large and written once: linked into the embedded store instead of copied."""
_TOO_LARGE = re.compile(r"\b413\b|too large", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """Writes to one MLflow experiment. `linked`: its artifacts are on this machine, and large ones are hard links."""

    client: MlflowClient
    experiment: str
    linked: bool

    def create(self, tags: Mapping[str, str], start_ms: int | None) -> Run:
        """Create a run together with its tags, so that an interruption leaves no run that cannot be found."""
        texts = {encode(key): text(value) for key, value in tags.items()}
        short = {key: value for key, value in texts.items() if len(value) <= TAG_CHARACTERS}
        return self.client.create_run(self.experiment, start_ms, short, tags["mlflow.runName"])

    def set_tags(self, run: Run, tags: Mapping[str, str]) -> None:
        """Set the tags that differ. The full value of one that is too long is first logged as an artifact."""
        wanted = {encode(key): text(value) for key, value in {**tags, **_cut_names(tags)}.items()}
        shown = {key: shorten(value, TAG_CHARACTERS, _whole("tags", key)) for key, value in wanted.items()}
        changed = {key: value for key, value in shown.items() if run.data.tags.get(key) != value}
        self._log_long(run, "tags", {key: wanted[key] for key in changed}, TAG_CHARACTERS)
        entries = [RunTag(key, value) for key, value in changed.items()]
        for chunk in chunks(entries, lambda tag: 6 * len(tag.key + tag.value), 100):
            self.client.log_batch(run.info.run_id, tags=chunk)
        run.data.tags.update(changed)

    def set_params(self, run: Run, params: Mapping[str, str]) -> None:
        """Log the new params. MLflow refuses to change one, so a tag names those that differ."""
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

    def log_artifacts(self, run: Run, artifacts: Sequence[Artifact]) -> Report:
        """Log files and directories that are new or have changed; large files last, one by one."""
        small = [artifact for artifact in artifacts if artifact.path.suffix not in _LINKED]
        groups = [small, *([artifact] for artifact in artifacts if artifact.path.suffix in _LINKED)]
        return sum((self._log_group(run, group) for group in groups), Report())

    def _log_group(self, run: Run, artifacts: Sequence[Artifact]) -> Report:
        """Log artifacts, and then record all of them as logged in one call."""
        signatures: dict[str, str] = {}
        missing = 0
        for artifact in artifacts:
            tag, signature = f"orch.artifact.{artifact.name}", artifact.signature()
            if signature is not None and run.data.tags.get(encode(tag)) == signature:
                continue
            if signature is not None and self._log_whole(run, artifact):
                signatures[tag] = signature
            else:
                missing += 1
        self.set_tags(run, signatures)
        return Report(artifacts_logged=len(signatures), artifacts_missing=missing)

    def _log_whole(self, run: Run, artifact: Artifact) -> bool:
        """Log one artifact; return False if a file was deleted meanwhile."""
        if artifact.content is not None:
            self.client.log_text(run.info.run_id, artifact.content, artifact.name)
            return True
        try:
            for file, folder in artifact.files():
                self._place(run, file, folder)
        except FileNotFoundError:
            return False
        return True

    def set_data(self, run: Run, data: Dataset | None) -> None:
        """Show the data version as the run's input, once."""
        if data is None or run.data.tags.get(_DATASET) == data.digest:
            return
        shown = MlflowDataset(
            name=shorten(data.name, 500, "config.yaml"),
            digest=data.digest[:_DIGEST_CHARACTERS],
            source_type=data.source_type,
            source=data.source[:_SOURCE_CHARACTERS],
            profile=data.profile,
        )
        tagged = DatasetInput(shown, [InputTag("mlflow.data.context", "training")])
        self.client.log_inputs(run.info.run_id, [tagged])
        self.set_tags(run, {_DATASET: data.digest})

    def _place(self, run: Run, file: Path, folder: str) -> None:
        if self.linked and file.suffix in _LINKED:
            top = local_file_uri_to_path(run.info.artifact_uri)  # type: ignore[no-untyped-call]  # same
            place = Path(top) / folder
            make_folder(place)
            _link(file, place / file.name)
        else:
            self.client.log_artifact(run.info.run_id, str(file), folder or None)

    def send(self, run: Run, batch: Batch, fixed: Mapping[str, str], params: Mapping[str, str]) -> Report:
        """Store one batch and commit it, the offsets last.

        `fixed` tags and `params` come from the run's record; values logged by the run itself cannot replace them.
        """
        report = self.log_artifacts(run, batch.artifacts)
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
        offsets = {encode(f"{_OFFSET}{source}"): str(offset) for source, offset in batch.offsets.items()}
        tags = [RunTag(key, value) for key, value in offsets.items()]
        self._log(run, [_metric(point) for point in batch.points], tags)
        run.data.tags.update(offsets)

    def _log(self, run: Run, metrics: Sequence[Metric], tags: Sequence[RunTag]) -> None:
        """Log points, then tags; in halves if a proxy on the way accepts less than MLflow's megabyte."""
        try:
            self.client.log_batch(run.info.run_id, metrics=metrics, tags=tags)
        except MlflowException as error:
            if len(metrics) < 2 or not _TOO_LARGE.search(str(error)):
                raise
            middle = len(metrics) // 2
            self._log(run, metrics[:middle], [])
            self._log(run, metrics[middle:], tags)

    def set_status(self, run: Run, status: str | None, ended_ms: int | None) -> bool:
        """Set the status if it is known and differs; return whether this ended the run."""
        if status is None:
            return False
        changed = run.info.status != status
        ended = status in _ENDED
        if ended and (changed or (ended_ms and run.info.end_time != ended_ms)):
            self.client.set_terminated(run.info.run_id, status, end_time=ended_ms)
        elif changed:
            self.client.update_run(run.info.run_id, status=status)
        return ended and changed


def committed(child: Run) -> dict[str, int]:
    """Return the committed offset of each spool, by `source_of`."""
    tags = child.data.tags
    return {decode(key).removeprefix(_OFFSET): int(tags[key]) for key in tags if key.startswith(_OFFSET)}


def _cut_names(names: Iterable[str]) -> dict[str, str]:
    return {key: value for name in names for key, value in cut_name(name).items()}


def _configured(key: str, value: str, params: Mapping[str, str]) -> bool:
    """Return whether a hyperparameter saved by Lightning only repeats an argument of the model or the data."""
    return any(params.get(f"{section}.{key}") == value for section in ("model", "data"))


def _free_name(key: str, value: str, taken: Mapping[str, str]) -> str:
    """Return the name for a run's own hyperparameter: unchanged, unless the config has another value of that name."""
    return key if taken.get(key, value) == value else f"hparams.{key}"


def _metric(point: Point) -> Metric:
    step = max(-LARGEST_STEP, min(LARGEST_STEP, point.step))
    return Metric(encode(point.key), point.value, max(0, min(LARGEST_STEP, point.time_ms)), step)


def _whole(kind: str, key: str) -> str:
    """Return the artifact with the full text of a value that was cut."""
    return f"{kind}/{key if len(key.encode()) < 200 else digest(key)}.txt"


def _link(file: Path, target: Path) -> None:
    """Publish a file under another name by a hard link, or by a copy if the filesystem does not support links."""
    with replacing(target) as partial:
        partial.unlink()
        try:
            os.link(file, partial)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copyfile(file, partial)
    partial.unlink(missing_ok=True)  # rename(2) does nothing if both are links to one file
