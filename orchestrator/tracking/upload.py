"""From spools to a store: the description of runs, and a history's new lines as batches.

Pure, except for reading spools and file sizes; independent of MLflow. A *history* is the attempts that
continue one another, starting with one that began from scratch. It is a chain: of an attempt that another one has
resumed from counts what it logged up to that checkpoint. Of values with one (key, step) the first counts.

What an attempt logs is sent at once, also what a kill makes void. A resumed run nearly always logs the same again,
which is not sent again; where it does not, the store has a branch that was abandoned, and all is sent again.
"""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Self, TypeVar

from orchestrator.errors import RequestError
from orchestrator.system.files import lies_in
from orchestrator.tracking.spool import ArtifactLine, Metrics, Params, Record, Tags, is_inside, read

T = TypeVar("T")

BATCH_POINTS = 900
"""MLflow accepts 1,000 entries a call; the rest is left for the tags that commit them."""

BATCH_BYTES = 900_000
"""MLflow accepts 1 MB a call."""


SYSTEM = "system/"
"""The prefix of a node's own metrics, as MLflow's UI expects; no objective uses them."""

LARGEST_STEP = 2**63 - 1

ENDED = frozenset({"done", "failed", "cancelled", "lost"})
"""States of runs whose last attempt no longer writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file or directory to show with a run, and the folder of the run's artifacts that it belongs in.

    With `content` it is that text, and only the name of `path` is used.
    """

    path: Path
    folder: str = ""
    content: str | None = None

    def __post_init__(self) -> None:
        if not is_inside(self.folder):
            raise RequestError(f"artifact folder {self.folder!r} leaves the run", fix="use a relative folder")

    def signature(self) -> str | None:
        """Return a text that changes when the files change; None if there are none."""
        if self.content is not None:
            return _digest(self.content)
        try:
            if self.path.is_dir():
                rows = (f"{file.relative_to(self.path)}\0{_stamp(file)}\n" for file, _ in self.files())
                return _digest("".join(rows))
            return _stamp(self.path)
        except FileNotFoundError:
            return None

    def files(self) -> list[tuple[Path, str]]:
        """Return the files, each with its folder."""
        if not self.path.is_dir():
            return [(self.path, self.folder)]
        top = self.path.parent
        found = sorted(file for file in self.path.rglob("*") if file.is_file())
        return [(file, str(self.folder / file.parent.relative_to(top))) for file in found]

    @property
    def name(self) -> str:
        return f"{self.folder}/{self.path.name}" if self.folder else self.path.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A data version as MLflow shows it with a run; `source` and `profile` are JSON, by the kind of source."""

    name: str
    digest: str
    source_type: str
    source: str
    profile: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """The description of one run and generation for a store.

    `history` is the number of the attempt that began the current history from scratch, `spools` are the
    metric logs of that history's attempts, oldest first (`.../a003/metrics.jsonl`: the folder names the
    attempt), and `ends` says, by `source_of`, how many bytes of one count where not all do. `params` is the
    resolved config, nested; `tags` may carry `mlflow.user` and `mlflow.source.*`.
    `state` is queued, running, done, failed, cancelled or lost; any other leaves the status unchanged.
    """

    experiment: str
    run_id: str
    generation: int
    history: int
    name: str
    params: Mapping[str, object]
    tags: Mapping[str, str]
    state: str
    started_ms: int | None = None
    ended_ms: int | None = None
    spools: tuple[Path, ...] = ()
    ends: Mapping[str, int] = field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()
    data: Dataset | None = None

    @property
    def growing(self) -> Path | None:
        """The folder of the attempt that still writes; None if none does."""
        return self.spools[-1].parent if self.spools and self.state not in ENDED else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedExperiment:
    """An experiment and all its runs that have begun; `waits`: others have not. `project` distinguishes projects.

    In its note, `](run:ID)` links to the run with that id.
    """

    name: str
    project: str
    note: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    runs: Iterable[TrackedRun] = ()
    waits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The counts of one sync; all zero if the store was up to date, except that the last two are counted each time.

    `superseded` runs belong to a history that began again from scratch, `left_deleted` ones were deleted by a user.
    """

    created: int = 0
    superseded: int = 0
    metrics_sent: int = 0
    artifacts_logged: int = 0
    runs_finished: int = 0
    artifacts_missing: int = 0
    left_deleted: int = 0

    def __add__(self, other: Self) -> Report:
        return Report(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Report)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One value of one metric."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass(slots=True)
class Batch:
    """New lines of a history that are sent together; `offsets` (by `source_of`) commit them."""

    points: list[Point] = field(default_factory=list)
    params: dict[str, object] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: list[Artifact] = field(default_factory=list)
    diverged: str | None = None
    offsets: dict[str, int] = field(default_factory=dict)
    size: int = 0

    def holds(self, points: Sequence[Point], size: int) -> bool:
        return len(self.points) + len(points) <= BATCH_POINTS and self.size + size <= BATCH_BYTES


class AbandonedError(Exception):
    """A store has values that a resumed run does not have; the text names one, as `key@step`."""


class Seen:
    """The first value of each (key, step) of a history, as far as its spools have been read; 16 bytes a point.

    `early` holds what was sent and does not count any more, until the history has the same value.
    """

    def __init__(self, ends: Mapping[str, int] | None = None) -> None:
        self.ends = dict(ends or {})
        self.offsets: dict[str, int] = {}
        self.early: dict[tuple[str, int], float] = {}
        self._series: dict[str, tuple[array[int], array[float]]] = {}

    def first(self, key: str, step: int, value: float) -> float | None:
        """Return the value that (key, step) had before; None if this is the first, which is kept."""
        steps, values = self._series.setdefault(key, (array("q"), array("d")))
        step = max(-LARGEST_STEP, min(LARGEST_STEP, step))  # as MLflow stores it
        at = len(steps) if not steps or step > steps[-1] else bisect_left(steps, step)
        if at < len(steps) and steps[at] == step:
            return values[at]
        steps.insert(at, step)
        values.insert(at, value)
        return None

    def expect(self, key: str, step: int, value: float) -> None:
        """Note a value that was sent, and that the history has not had yet."""
        steps, values = self._series.get(key, (array("q"), array("d")))
        at = bisect_left(steps, step)
        if at < len(steps) and steps[at] == step and _same(values[at], value):
            return
        self.early.setdefault((key, step), value)


def source_of(spool: Path) -> str:
    """Return the name under which a spool's offset is committed: `a003`, or for node metrics `a003.system.NODE`."""
    return spool.parent.name if spool.name == "metrics.jsonl" else f"{spool.parent.name}.{spool.stem}"


def batches(
    spools: Sequence[Path],
    committed: Mapping[str, int],
    seen: Seen | None = None,
    *,
    ends: Mapping[str, int] | None = None,
    growing: Path | None = None,
    done: bool = False,
) -> Iterator[Batch]:
    """Yield the lines of one history's spools beyond the committed offsets (by `source_of`), as batches.

    Commit a batch's offsets only once all of it has been stored. `seen` is what an earlier call for the same history
    and `ends` has read; all of that was stored, and is not read again. `growing` is the folder of the attempt that
    still writes. Raises AbandonedError for a value that was committed and that the history does not have; where it
    only lacks it, once it is `done`.
    """
    ends = ends or {}
    starts = {spool: committed.get(source_of(spool), 0) for spool in spools}
    seen = seen if seen is not None and seen.ends == ends else Seen(ends)
    new = [spool for spool, start in starts.items() if _end(spool, ends) > start]
    if not new and not any(start > ends.get(source_of(spool), start) for spool, start in starts.items()):
        return
    _read_committed(starts, seen)
    batch = Batch()
    for spool in new:
        source = source_of(spool)
        for record, end in read(spool, starts[spool], end=ends.get(source), growing=spool.parent == growing):
            points, diverged = _new_points(record, seen)
            for part in chunks(points, _bytes, BATCH_POINTS):
                size = sum(map(_bytes, part))
                if not batch.holds(part, size):
                    yield batch
                    batch = Batch()
                batch.points += part
                batch.size += size
            _take(batch, record, spool)
            batch.diverged = batch.diverged or diverged
            batch.offsets[source] = seen.offsets[source] = end
    if batch.offsets:
        yield batch
    if done and seen.early:
        raise AbandonedError("{}@{}".format(*next(iter(seen.early))))


def _end(spool: Path, ends: Mapping[str, int]) -> int:
    return min(_size(spool), ends.get(source_of(spool), LARGEST_STEP))


def _read_committed(starts: Mapping[Path, int], seen: Seen) -> None:
    """Read what was sent: first what counts of it, then the rest."""
    early: list[tuple[Path, int, int]] = []
    for spool, start in starts.items():
        source = source_of(spool)
        known, end = seen.offsets.get(source, 0), min(start, seen.ends.get(source, start))
        if known < end:
            for record, _ in read(spool, known, end=end):
                _new_points(record, seen)
        if end < start and known < start:
            early.append((spool, end, start))
        seen.offsets[source] = start
    for spool, end, start in early:
        for record, _ in read(spool, end, end=start):
            if isinstance(record, Metrics):
                for key, value in record.values.items():
                    seen.expect(key, record.step, value)


def _new_points(record: Record, seen: Seen) -> tuple[list[Point], str | None]:
    """Return a record's points that were not seen before, and the first key that contradicts an earlier value.

    Raises AbandonedError for one that was sent with another value, which does not count any more.
    """
    points: list[Point] = []
    diverged = None
    if not isinstance(record, Metrics):
        return [], None
    for key, value in record.values.items():
        first = seen.first(key, record.step, value)
        if first is not None:
            if not (_same(first, value) or key.startswith(SYSTEM)):
                diverged = diverged or f"{key}@{record.step}"
            continue
        sent = seen.early.pop((key, record.step), None) if seen.early else None
        if sent is None:
            points.append(Point(key=key, value=value, time_ms=record.time_ms, step=record.step))
        elif not _same(sent, value):
            raise AbandonedError(f"{key}@{record.step}")
    return points, diverged


def _same(a: float, b: float) -> bool:
    return a == b or (a != a and b != b)  # noqa: PLR0124 - NaN repeats NaN


def _take(batch: Batch, record: Record, spool: Path) -> None:
    match record:
        case Params(values=values):
            batch.params.update(values)
        case Tags(values=values):
            batch.tags.update(values)
        case ArtifactLine(path=path, folder=folder) if lies_in(spool.parent / path, spool.parent.parent):
            batch.artifacts.append(Artifact(path=spool.parent / path, folder=folder))


def chunks(items: Iterable[T], size_of: Callable[[T], int], count: int) -> Iterator[list[T]]:
    """Split into lists of at most `count` items and BATCH_BYTES bytes; a larger item gets a list of its own."""
    chunk: list[T] = []
    size = 0
    for item in items:
        if chunk and (len(chunk) == count or size + size_of(item) > BATCH_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += size_of(item)
    if chunk:
        yield chunk


def _bytes(point: Point) -> int:
    """Return the most bytes that a point can take in a request: JSON writes some characters as six."""
    return 120 + 6 * len(point.key)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _stamp(file: Path) -> str:
    status = file.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"
