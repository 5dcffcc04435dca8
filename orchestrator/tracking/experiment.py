"""The object `self.logger.experiment`: accepts the calls of MLflow's client and of TensorBoard's writer.

Metrics, parameters and tags go to the spool; files go to the run's artifacts. Neither library is imported. An unknown
call is ignored with a warning, so that a module written for another logger does not fail.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self

import yaml

from orchestrator.errors import RequestError
from orchestrator.layout import AttemptPaths, RunPaths
from orchestrator.records.attempts import is_superseded
from orchestrator.system.files import make_folder, replacing
from orchestrator.tracking.pictures import Image, histogram, picture
from orchestrator.tracking.spool import SpoolWriter, is_inside, jsonable

log = logging.getLogger(__name__)

HISTOGRAM_BINS = 30
Entry = Any
"""MLflow's `Metric`, `Param` or `RunTag`."""
Step = float | None
Figure = Any
"""A figure of Matplotlib or plotly."""
Table = Any
"""A data frame, or a mapping of columns."""
Call = Callable[..., None]


class Ignored:
    """An unknown attribute of a logger: false, empty, and callable. Its first use, not `hasattr`, logs a warning."""

    __slots__ = ("_name", "_warned")

    def __init__(self, name: str, warned: set[str]) -> None:
        self._name, self._warned = name, warned

    def _used(self) -> Self:
        if self._name not in self._warned:
            self._warned.add(self._name)
            log.warning("logger: %s is ignored, because this logger does not have it", self._name)
        return self

    def __call__(self, *_: object, **__: object) -> Self:
        return self._used()

    def __getattr__(self, name: str) -> Self:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._used()

    def __getitem__(self, _: object) -> Self:
        return self._used()

    def __iter__(self) -> Iterator[object]:
        return iter(())

    def __bool__(self) -> bool:
        return False

    def __enter__(self) -> Self:
        return self._used()

    def __exit__(self, *_: object) -> None:
        pass


def of_run(method: Call) -> Call:
    """Accept a run's id before the other arguments, as for MLflow's client, or none, as for its fluent calls.

    A method with a parameter `as_client` is passed which one it was. `path` is another name of `artifact_file`.
    """
    signature = inspect.signature(method)

    def fits(*args: object, **options: object) -> bool:
        try:
            signature.bind(*args, **options)
        except TypeError:
            return False
        return True

    @functools.wraps(method)
    def call(self: RunExperiment, *args: object, **options: object) -> None:
        as_client = options.pop("run_id", None) is not None
        options.pop("synchronous", None)
        if "path" in options and "artifact_file" in signature.parameters:
            options["artifact_file"] = options.pop("path")
        if args and isinstance(args[0], str) and fits(self, *args[1:], **options):
            # The version of SpoolLogger is empty: that of other loggers is the run's id.
            is_id = args[0] in {self.run_id, ""} or not fits(self, *args, **options)
            as_client, args = as_client or is_id, args[1:] if is_id else args
        if "as_client" in signature.parameters:
            options["as_client"] = as_client
        return method(self, *args, **options)

    return call


class RunExperiment:
    """Stores what a run logs: metrics, parameters and tags in the spool, files among the run's artifacts.

    The path of a file is relative to the artifacts, such as `plots/confusion.png`; logging it again replaces it. A
    value with a step is kept for each step; one without gets the step of Lightning's latest metrics, or a later one. A
    failed write of a file is logged as a warning and does not end the training.
    """

    def __init__(self, writer: SpoolWriter, attempt: AttemptPaths) -> None:
        self.run_id = attempt.path.parent.name
        self.experiment_id = attempt.path.absolute().parents[2].name
        self.log_dir = str(attempt.path)
        self.step = 0
        self.writer = writer
        self.artifacts = RunPaths(attempt.path.parent).artifacts
        self._attempt = attempt
        self.is_kept = writer.path != Path(os.devnull)  # on other ranks the spool is os.devnull
        self._warned: set[str] = set()
        self._steps: dict[str, int] = {}
        self._taken: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Ignored:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return Ignored(name, self._warned)

    # --- MLflow's -------------------------------------------------------------------------------------------

    @of_run
    def log_text(self, text: str, artifact_file: str) -> None:
        self._save(artifact_file, lambda file: file.write_text(text, encoding="utf-8", errors="backslashreplace"))

    @of_run
    def log_dict(self, dictionary: object, artifact_file: str) -> None:
        """Save a tree as YAML if the name has its suffix, else as JSON."""
        is_yaml = artifact_file.endswith((".yaml", ".yml"))
        write = (
            functools.partial(yaml.safe_dump, sort_keys=False) if is_yaml else functools.partial(json.dumps, indent=2)
        )
        self.log_text(write(jsonable(dictionary)), artifact_file)

    @of_run
    def log_figure(self, figure: Figure, artifact_file: str, *, save_kwargs: Mapping[str, Any] | None = None) -> None:
        """Save a matplotlib figure (in the format of the suffix) or a plotly one (as `.html`)."""
        if hasattr(figure, "savefig"):
            self._save(artifact_file, lambda file: figure.savefig(file, **(save_kwargs or {})))
        else:
            name = artifact_file if artifact_file.endswith((".html", ".htm")) else f"{artifact_file}.html"
            self._save(name, lambda file: figure.write_html(file, **(save_kwargs or {})))

    @of_run
    def log_image(
        self, image: Image, artifact_file: str | None = None, key: str = "image", step: Step = None, **_: object
    ) -> None:
        """Save an image: PIL, an array (height, width[, channels]) or a tensor (channels, height, width).

        Integers are 0..255, floats 0..1. With a `key` instead of a name, one image is kept for each step.
        """
        self._save(artifact_file or self._at(f"images/{key}", step, ".png"), picture(image).save)

    @of_run
    def log_table(self, data: Table, artifact_file: str) -> None:
        """Save a table, a mapping of columns or a data frame, as JSON; more rows of the same name are appended."""
        table = data.to_dict(orient="split") if hasattr(data, "to_dict") else None
        columns = list(table["columns"] if table else data)
        rows = table["data"] if table else list(zip(*map(_listed, data.values()), strict=True))
        try:
            earlier = json.loads((self.artifacts / _checked(artifact_file)).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            earlier = {}
        rows = [*(earlier["data"] if earlier.get("columns") == columns else []), *rows]
        self.log_dict({"columns": columns, "data": rows}, artifact_file)

    @of_run
    def log_artifact(
        self,
        local_path: Path | str,
        artifact_file: str | None = None,
        *,
        artifact_path: str | None = None,
        as_client: bool = False,
    ) -> None:
        """Save a copy of a file: as `artifact_file`, or under its own name in the folder `artifact_path`.

        In a call with a run's id, the folder is the second argument, as in MLflow.
        """
        source = Path(local_path)
        if as_client:
            artifact_path, artifact_file = artifact_path or artifact_file, None
        if source.is_dir():
            self.log_artifacts(source, artifact_path or artifact_file or source.name)
            return
        target = artifact_file or str(PurePosixPath(artifact_path or "") / source.name)
        with source.open("rb") as content:
            self._save(target, lambda file: _fill(file, content))

    @of_run
    def log_artifacts(self, local_dir: Path | str, artifact_path: str | None = None) -> None:
        """Save copies of all files in a folder."""
        folder = Path(local_dir)
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.log_artifact(file, str(PurePosixPath(artifact_path or "") / file.relative_to(folder).as_posix()))

    @of_run
    def set_tag(self, key: str, value: object) -> None:
        self.writer.tags({key: value})

    @of_run
    def set_tags(self, tags: Mapping[str, object]) -> None:
        self.writer.tags(tags)

    @of_run
    def log_param(self, key: str, value: object) -> None:
        self.writer.params({key: value})

    @of_run
    def log_params(self, params: Mapping[str, object]) -> None:
        self.writer.params(params)

    @of_run
    def log_metric(
        self,
        key: str,
        value: object,
        third: float | None = None,
        fourth: float | None = None,
        *,
        as_client: bool = False,
        **named: float | None,
    ) -> None:
        """Log a number. As in MLflow, time and step follow in a call with a run's id, otherwise the step."""
        time_ms, step = (third, fourth) if as_client else (None, third)
        self._metrics({key: value}, named.get("step", step), named.get("timestamp", time_ms))

    @of_run
    def log_metrics(
        self, metrics: Mapping[str, object], step: Step = None, timestamp: float | None = None, **_: object
    ) -> None:
        self._metrics(metrics, step, timestamp)

    @of_run
    def log_batch(
        self, metrics: Iterable[Entry] = (), params: Iterable[Entry] = (), tags: Iterable[Entry] = ()
    ) -> None:
        """Log objects of MLflow: its `Metric`, `Param` and `RunTag`."""
        for metric in metrics:
            # MLflow's step is 0 if none was given; later values at step 0 would be dropped.
            step = metric.step or (None if metric.key in self._steps else 0)
            self._metrics({metric.key: metric.value}, step, metric.timestamp)
        for write, entries in ((self.writer.params, params), (self.writer.tags, tags)):
            if values := {entry.key: entry.value for entry in entries}:
                write(values)

    # --- TensorBoard's --------------------------------------------------------------------------------------

    def add_scalar(
        self, tag: str, scalar_value: object, global_step: Step = None, walltime: float | None = None, **_: object
    ) -> None:
        self._metrics({tag: scalar_value}, global_step, walltime and walltime * 1000)

    def add_scalars(
        self,
        main_tag: str,
        tag_scalar_dict: Mapping[str, object],
        global_step: Step = None,
        walltime: float | None = None,
    ) -> None:
        values = {f"{main_tag}/{tag}": value for tag, value in tag_scalar_dict.items()}
        self._metrics(values, global_step, walltime and walltime * 1000)

    def add_image(
        self, tag: str, img_tensor: Image, global_step: Step = None, *_: object, dataformats: str = "CHW", **__: object
    ) -> None:
        self._save(self._at(tag, global_step, ".png"), picture(img_tensor, dataformats).save)

    def add_images(
        self, tag: str, img_tensor: Image, global_step: Step = None, *_: object, dataformats: str = "NCHW", **__: object
    ) -> None:
        """Save several images as one, side by side."""
        self.add_image(tag, img_tensor, global_step, dataformats=dataformats)

    def add_figure(self, tag: str, figure: Figure, global_step: Step = None, close: bool = True, **_: object) -> None:
        """Save a matplotlib figure, or a list of them, and close it as TensorBoard does."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        step = self._step(tag, global_step)
        for each in _listed(figure):
            self.log_figure(each, self._at(tag, step, ".png"))
            if close and pyplot:
                pyplot.close(each)

    def add_text(self, tag: str, text_string: str, global_step: Step = None, *_: object, **__: object) -> None:
        self.log_text(str(text_string), self._at(tag, global_step, ".txt"))

    def add_histogram(
        self, tag: str, values: object, global_step: Step = None, bins: object = None, *_: object, **__: object
    ) -> None:
        """Append counts and bin edges as a line of `histograms/<tag>.jsonl`."""
        path = f"histograms/{_named(tag)}.jsonl"
        found = histogram(values, bins if isinstance(bins, int) else HISTOGRAM_BINS)
        line = json.dumps({"step": self._step(path, global_step), **found})
        self._save(path, lambda file: _fill_after(self.artifacts / path, file, line))

    def add_hparams(
        self,
        hparam_dict: Mapping[str, object],
        metric_dict: Mapping[str, object],
        *_: object,
        global_step: Step = None,
        **__: object,
    ) -> None:
        self.writer.params(hparam_dict)
        self._metrics(metric_dict, global_step)

    def add_graph(self, model: object, *_: object, **__: object) -> None:
        """Save a model's layers as text, since MLflow cannot show graphs."""
        self.log_text(f"{model}\n", "model.txt")

    def get_logdir(self) -> str:
        return self.log_dir

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        """Do nothing: the run may log more values."""

    # --- those of Weights & Biases' logger ------------------------------------------------------------------

    def log(self, data: Mapping[str, object], step: Step = None, *_: object, **__: object) -> None:
        """Log the numbers of a mapping."""
        self._metrics(data, step)

    def add_pictures(self, key: str, images: object, step: Step = None) -> None:
        """Save one file per image: PIL, arrays, tensors, or names of files."""
        step = self._step(key, step)
        for image in _listed(images):
            if isinstance(image, str | Path):
                self.log_artifact(image, self._at(key, step, Path(image).suffix))
            else:
                self._save(self._at(key, step, ".png"), picture(image).save)

    def add_table(self, key: str, columns: object, data: object, dataframe: Table, step: Step = None) -> None:
        """Save a table as JSON, given as rows with column names or as a data frame."""
        table = {"columns": columns, "data": data} if dataframe is None else dataframe.to_dict(orient="split")
        self.log_dict(table, self._at(key, step, ".json"))

    # --- how it is kept -------------------------------------------------------------------------------------

    def _metrics(self, values: Mapping[str, object], step: Step, time_ms: float | None = None) -> None:
        for name, value in values.items():
            self.writer.metrics({name: value}, self._step(name, step), None if time_ms is None else int(time_ms))

    def _step(self, name: str, step: Step) -> int:
        """Return the step to log a name at: an unused one, because a store keeps only the first value of a step."""
        free = max(self.step, self._steps.get(name, -1) + 1)
        found = free if step is None or not math.isfinite(step) else int(step)
        self._steps[name] = found
        return found

    def _at(self, tag: str, step: Step, suffix: str) -> str:
        """Return the path of an artifact logged at a step; another one at the same step gets a different path."""
        path = f"{_named(tag)}/step-{self._step(tag, step):06d}"
        self._taken[path] += 1
        number = self._taken[path] - 1
        return f"{path}-{number}{suffix}" if number else f"{path}{suffix}"

    def _save(self, path: str, write: Callable[[Path], object]) -> None:
        target = self.artifacts / _checked(path)
        if not self.is_kept:
            return
        if is_superseded(self._attempt):
            log.warning("artifact %s is not saved: a later attempt of the run has been claimed", path)
            return
        try:
            make_folder(target.parent)
            with replacing(target, suffix=target.suffix) as partial:  # savefig reads the suffix
                write(partial)
        except OSError as error:
            log.warning("artifact %s is not saved: %s", path, error)
        else:
            folder = PurePosixPath(path).parent
            self.writer.artifact(target, "" if folder == PurePosixPath() else str(folder))


def _checked(path: str) -> str:
    if not PurePosixPath(path).name or not is_inside(path):
        raise RequestError(
            f"{path!r} is not a valid path of an artifact",
            why="it must be relative to the run's artifacts and stay inside them",
            fix="use a path such as 'plots/confusion.png'",
        )
    return path


def _named(tag: object) -> str:
    """Return a tag as a path inside the artifacts."""
    return "/".join(part for part in PurePosixPath(str(tag)).parts if part not in {"/", "//", ".."}) or "unnamed"


def _listed(values: Table) -> list[Any]:
    return list(values) if isinstance(values, list | tuple) or hasattr(values, "tolist") else [values]


def _fill(file: Path, content: BinaryIO) -> None:
    with file.open("wb") as target:
        shutil.copyfileobj(content, target)


def _fill_after(earlier: Path, file: Path, line: str) -> None:
    """Write the content of an earlier file, and one more line."""
    if earlier.exists():
        shutil.copyfile(earlier, file)
    with file.open("a", encoding="utf-8") as target:
        target.write(f"{line}\n")
