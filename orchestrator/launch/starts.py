"""Where a run starts from: the checkpoint of another run, or a file. Resolved at launch, found again on the node.

    run:3fa2/best                  the best checkpoint of the run whose id begins so, in any experiment
    run:pretrain/3fa2/last         the last one, of a run of this experiment
    weights/resnet.ckpt            a file

What is frozen names the weights: a run by its whole id, its generation and which of its checkpoints; a file by the
hash of its content. Its path does not enter the identity.

To load a checkpoint can run code that it names. Of a run that is not this user's, and of a file, only weights and plain
values are loaded, unless the user trusts its maker (`init_from_trusted`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ConfigError, StateError, nearest
from orchestrator.layout import ExperimentPaths, RunsRoot, cache_dir
from orchestrator.records.attempts import read_attempt
from orchestrator.records.checkpoints import best_of, latest_of
from orchestrator.records.experiment import read_experiment
from orchestrator.records.launches import read_run_config
from orchestrator.records.ownership import why_read_only
from orchestrator.records.planned import read_planned_run
from orchestrator.records.record import Attempt, Record, RunState
from orchestrator.spec import STARTS, Config, RunId
from orchestrator.system.cache import Answers
from orchestrator.system.files import names_in
from orchestrator.system.processes import ProgramError, ask

if TYPE_CHECKING:
    from orchestrator.config.experiment import ComposedExperiment, ComposedPoint

WHICH = ("best", "last")
_EXAMPLE = "run:3fa2c81b/best, run:EXPERIMENT/3fa2c81b/last, or the path of a checkpoint"
_RUN = re.compile(r"run:(?:(?P<experiment>[A-Za-z0-9][A-Za-z0-9._-]*)/)?(?P<id>[0-9a-f]{2,12})/(?P<which>\w+)")
_CHUNK = 2**20

Start = Mapping[str, Any]
"""What is frozen: `run, experiment, generation, checkpoint`, or `path, sha256`.

`weights_only` is true where nothing but weights and plain values may be loaded.
"""
_PROBE = Path(__file__).with_name("unpickle_probe.py")
_PROBE_SECONDS = 600.0
_SAFE_TORCH = (2, 10)


def resolve(key: str, text: str, *, runs: RunsRoot, project: Path, after: Collection[str], trusted: bool) -> Start:
    """Return what a text stands for, frozen; `trusted`: its maker is.

    The checkpoint has to be there, or its run is one of an experiment in `after`. Raises ConfigError.
    """
    start = _resolve(key, text, runs=runs, project=project, after=after)
    if trusted or ("run" in start and not why_read_only(runs.experiment(start["experiment"]))):
        return start
    path = None
    with suppress(StateError):  # its run is not done yet
        path = locate(start, runs)
    _check_plain(key, text, path)
    return {**start, "weights_only": True}


def _check_plain(key: str, text: str, path: Path | None) -> None:
    """Raise ConfigError for a checkpoint that holds more than weights and plain values; None: it is still to come."""
    if problem := _unsafe_torch() or (path and _more_than_plain(path)):
        raise ConfigError(
            f"{key} is {text!r}, of which only weights and plain values may be loaded",
            why=f"{problem}; loading it could run any code, and you have not made it here as a run",
            fix="init_from_trusted=true, if you trust who made it; or ask them for the state dict alone",
        )


def _unsafe_torch() -> str:
    """Return why no checkpoint of others can be loaded safely here: older versions of torch can be deceived."""
    version = metadata.version("torch")
    major, minor, *_ = re.findall(r"\d+", version)
    safe = (int(major), int(minor)) >= _SAFE_TORCH
    problem = f"torch {version} can be made to run code even so (CVE-2025-32434, CVE-2026-24747)"
    return "" if safe else f"{problem}; torch {'.'.join(map(str, _SAFE_TORCH))} and newer cannot"


def _more_than_plain(path: Path) -> str:
    """Return what a checkpoint holds besides weights and plain values, or nothing. The answer is kept."""
    answers, question = Answers(cache_dir() / "starts"), ("plain", *_version_of(path))
    problem = answers.read(*question)
    if problem is None:
        try:
            problem = ask([str(_PROBE)], str(path), timeout_s=_PROBE_SECONDS)
        except ProgramError as error:
            return error.reason
        answers.write(problem, *question)
    return str(problem)


def _resolve(key: str, text: str, *, runs: RunsRoot, project: Path, after: Collection[str]) -> Start:
    if not text.startswith("run:"):
        return _file(key, project / Path(text).expanduser())
    found = _RUN.fullmatch(text)
    if found is None or found["which"] not in WHICH:
        hint = nearest(found["which"], WHICH) if found else ""
        raise ConfigError(f"{key} is {text!r}{hint}", why=f"it reads {_EXAMPLE}", fix=f"{key}=run:3fa2c81b/best")
    experiment, run_id = _named(key, text, found, runs, after)
    record = read_experiment(experiment, {}, only={run_id}).records[run_id]
    start = {
        "run": run_id,
        "experiment": experiment.name,
        "generation": record.planned.generation,
        "checkpoint": found["which"],
    }
    if record.state is RunState.DONE:
        try:
            locate(start, runs)
        except StateError as error:
            raise ConfigError(f"{key} is {text!r}: {error.what}", why=error.why, fix=error.fix) from error
    elif experiment.name not in after:
        raise ConfigError(
            f"{key} is {text!r}, and that run is {_state(record)}",
            why="it can only start from a run that is done",
            fix=f"wait for it with after={experiment.name}, or choose another",
        )
    return start


def locate(start: Start, runs: RunsRoot) -> Path:
    """Return the checkpoint of a frozen start. Raises StateError where it is not there."""
    if "path" in start:
        path = Path(start["path"])
        if not path.is_file():
            raise StateError(f"{path} is gone", why="the run was launched to start from it", fix="put it back")
        return path
    experiment = runs.experiment(start["experiment"])
    label = f"{experiment.name}/{start['run'][:8]}"
    done = [each for each in _attempts(experiment, start) if each.state is RunState.DONE]
    if not done:
        raise StateError(
            f"{label} is not done",
            why=f"its {start['checkpoint']} checkpoint is where this run starts",
            fix=f"orch status {experiment.name}; once it is done, orch retry",
        )
    folder, last = experiment.run(start["run"]), done[-1]
    if start["checkpoint"] == "best" and not last.best:
        raise StateError(
            f"{label} has no best checkpoint",
            why="it had no objective, or never logged its metric",
            fix=f"run:{start['run'][:8]}/last",
        )
    best = start["checkpoint"] == "best"
    found = best_of(folder, last.best) if best else latest_of(folder.attempt(last.number))
    if found is None or not found.is_file():
        missing = f"file {last.best['checkpoint']}" if best else "last checkpoint"
        raise StateError(
            f"{label} has no {missing}", why="it was removed, or never saved", fix="choose another checkpoint"
        )
    return found


def check_more_to_train(start: Start, trainer: Config, runs: RunsRoot) -> None:
    """Raise ConfigError if a run would continue one that has already trained as long as this one may."""
    if "run" not in start:
        return
    experiment = runs.experiment(start["experiment"])
    record = read_experiment(experiment, {}, only={start["run"]}).records[RunId(start["run"])]
    launch = experiment.launch(record.planned.launch)
    earlier = read_run_config(launch, read_planned_run(launch, record.planned.index), record.given)["trainer"]
    limits = ("max_epochs", "max_steps", "max_time")
    if all(earlier.get(key) == trainer.get(key) for key in limits):
        reached = ", ".join(f"{key}={trainer[key]}" for key in limits if trainer.get(key) not in (None, -1))
        raise ConfigError(
            f"resume_from: {start['run'][:8]} has trained all there is to train",
            why=f"it had {reached}, too",
            fix=f"trainer.max_epochs={2 * (trainer.get('max_epochs') or 1)}",
        )


def check_content(start: Start, path: Path) -> None:
    """Raise StateError if a file is not the one that was frozen."""
    if "sha256" in start and _sha256(path) != start["sha256"]:
        raise StateError(
            f"{path} has changed since the launch",
            why="the run's id stands for what it was",
            fix="put it back, or launch again: that makes another run",
        )


def _file(key: str, path: Path) -> Start:
    path = path.absolute()
    if not path.is_file():
        raise ConfigError(
            f"{key} is {str(path)!r}, and there is no such file", why=f"it is {_EXAMPLE}", fix="correct it"
        )
    return {"path": str(path), "sha256": _known_sha256(path)}


def _named(
    key: str, text: str, found: re.Match[str], runs: RunsRoot, after: Collection[str]
) -> tuple[ExperimentPaths, RunId]:
    """Return the experiment and the run that a reference means; runs that have not begun are known by `after`."""
    hits = list(_matching(found, runs, after))
    if len(hits) != 1:
        some = ", ".join(f"run:{experiment.name}/{run}/{found['which']}" for experiment, run in hits[:3])
        raise ConfigError(
            f"{key} is {text!r}: {len(hits) or 'no'} runs have such an id",
            why=f"they are {some}" if hits else f"none of the runs that have begun under {runs.path}",
            fix="write more of it" if hits else "orch status NAME lists the runs of an experiment",
        )
    return hits[0]


def _matching(found: re.Match[str], runs: RunsRoot, after: Collection[str]) -> Iterator[tuple[ExperimentPaths, RunId]]:
    for experiment in runs.experiments():
        if found["experiment"] in (None, experiment.name):
            begun = None if experiment.name in after else _begun(experiment, found["id"])
            known = read_experiment(experiment, {}, only=begun).records if begun != set() else ()
            yield from ((experiment, run) for run in sorted(known) if run.startswith(found["id"]))


def _begun(experiment: ExperimentPaths, prefix: str) -> set[str]:
    return {name for name in names_in(experiment.runs) if name.startswith(prefix)}


def _attempts(experiment: ExperimentPaths, start: Start) -> Iterator[Attempt]:
    folder = experiment.run(start["run"])
    for paths in folder.attempts():
        attempt = read_attempt(folder, paths)
        if attempt.claim and attempt.claim.generation == start["generation"]:
            yield attempt


def _state(record: Record) -> str:
    return "not done" if record.state is RunState.UNKNOWN else record.state.value


def _known_sha256(path: Path) -> str:
    """Return the hash of a file's content; of one that was hashed before and has not changed, from the cache."""
    answers, question = Answers(cache_dir() / "starts"), _version_of(path)
    known = answers.read(*question)
    if known is None:
        known = _sha256(path)
        answers.write(known, *question)
    return str(known)


def _version_of(path: Path) -> tuple[object, ...]:
    """Return what changes where the content of a file does."""
    stat = path.stat()
    return (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def freeze(composed: ComposedExperiment, *, runs: RunsRoot, project: Path) -> ComposedExperiment:
    """Return a composed experiment whose points name for good the weights they start from. Raises ConfigError."""
    known: dict[tuple[str, str], Start] = {}

    def frozen(point: ComposedPoint) -> ComposedPoint:
        found: dict[str, Any] = {key: point.config[key] for key in STARTS if key in point.config}
        for key, text in found.items():
            if (key, text) not in known:
                known[key, text] = resolve(
                    key, text, runs=runs, project=project, after=composed.after, trusted=composed.init_from_trusted
                )
            found[key] = known[key, text]
            if key == "resume_from":
                check_more_to_train(found[key], point.config["trainer"], runs)
        return replace(point, config={**point.config, **found}) if found else point

    return replace(composed, points=tuple(map(frozen, composed.points)))
