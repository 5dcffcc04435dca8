"""Records -> descriptions for the tracking store: names, tags, notes, artifacts. Pure, except for listing files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.config.credentials import masked, masked_override, masked_script
from orchestrator.layout import BEST, AttemptPaths, ExperimentPaths, RunPaths
from orchestrator.records.checkpoints import best_of, latest
from orchestrator.records.experiment import ExperimentState
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import Launch, read_run_config
from orchestrator.records.planned import PlannedRun, read_planned_run
from orchestrator.records.record import Record, RunState
from orchestrator.system.files import listed, read_json, read_text
from orchestrator.tracking import Artifact, Dataset, TrackedExperiment, TrackedRun
from orchestrator.tracking import notes as tracking_notes
from orchestrator.tracking.upload import source_of

_STATES: Mapping[RunState, str] = {
    RunState.RUNNING: "running",
    RunState.QUEUED: "queued",
    RunState.DONE: "done",
    RunState.FAILED: "failed",
    RunState.INTERRUPTED: "lost",
    RunState.CANCELLED: "cancelled",
}


def tracked(state: ExperimentState) -> TrackedExperiment:
    """Return the description of an experiment for the store: runs that have begun, with everything they logged."""
    launches = {launch.number: launch for launch in state.launches}
    begun = [record for record in state.records.values() if record.last is not None]
    return replace(
        experiment_of(state.launches),
        note=tracking_notes.of_experiment(state),
        waits=any(record.last is None and record.state.active for record in state.records.values()),
        runs=[_tracked(state, *_begun(launches, record)) for record in begun],
    )


def _tracked(state: ExperimentState, launch: Launch, record: Record) -> TrackedRun:
    """Return a run, with the tag that says whether it is hidden, which needs the whole experiment's state."""
    run = tracked_run(state.experiment, launch, record)
    return replace(run, tags={**run.tags, "orch.hidden": str(record.id in state.hidden).lower()})


def _begun(launches: Mapping[int, Launch], record: Record) -> tuple[Launch, Record]:
    """Return a run and its launch; while a rerun waits, those of the previous generation, as it ended."""
    claim = record.last.claim if record.last else None
    if record.last is None or record.begun or claim is None or claim.generation == record.planned.generation:
        return launches[record.planned.launch], record
    own = launches[claim.launch]
    planned = read_planned_run(own.paths, claim.index)
    return own, replace(record, planned=planned, state=record.last.state, reason="", observation=None)


def experiment_of(launches: Sequence[Launch]) -> TrackedExperiment:
    """Return the description of an experiment without its runs. Its first launch's token distinguishes projects."""
    last = launches[-1].header
    ours = last.experiment
    tags = {"orch.experiment": ours, "orch.launches": str(len(launches)), "mlflow.user": last.user}
    tags |= {"mlflow.source.type": "LOCAL", "mlflow.source.name": _source(last)}
    if last.objective:
        tags["orch.objective"] = f"{last.objective.mode} {last.objective.metric}"
    if last.sweep:
        tags["orch.sweep"] = json.dumps(masked(last.sweep), default=str)
    return TrackedExperiment(name=str(last.tracking.get("experiment") or ours), project=launches[0].token, tags=tags)


def tracked_run(paths: ExperimentPaths, launch: Launch, record: Record) -> TrackedRun:
    """Return the description of one run that has begun."""
    planned = read_planned_run(launch.paths, record.planned.index)
    history = [paths.run(record.id).attempt(attempt.number) for attempt in record.history]
    last = record.last
    claim = last.claim if last else None
    config = masked(read_run_config(launch.paths, planned, record.given))
    code = _code(paths, launch, record)
    data = launch.header.data.get(planned.data or "", {})
    note = tracking_notes.of_run(record, launch, code, data)
    return TrackedRun(
        experiment=paths.name,
        run_id=record.id,
        name=_name(record),
        generation=claim.generation if claim else record.planned.generation,
        history=claim.history if claim else record.planned.history,
        params=config,
        tags=_tags(launch, record, planned, code, seed=config["seed"]) | {"mlflow.note.content": note},
        state=_STATES.get(record.state, record.state.value),
        started_ms=_ms(record.started),
        ended_ms=_ms(record.ended),
        spools=tuple(spool for attempt in history for spool in (attempt.metrics, *attempt.system_metrics())),
        ends={source_of(paths.run(record.id).attempt(n).metrics): end for n, end in record.counted.items()},
        artifacts=tuple(_artifacts(paths, launch, record)),
        data=_dataset(planned.data, data),
    )


def _name(record: Record) -> str:
    return f"{tracking_notes.point_text(record.point) or 'run'} {record.id[:6]}"


def _code(paths: ExperimentPaths, launch: Launch, record: Record) -> Mapping[str, object]:
    """Return the header of a run's snapshot: a resumed run keeps its own code, not its latest launch's."""
    code: Mapping[str, object] = launch.header.code[0]
    tree = record.code.partition("+")[0]
    return code if code["tree"] == tree else read_json(paths.code(tree).header)


def _tags(launch: Launch, record: Record, planned: PlannedRun, code: Mapping[str, Any], *, seed: int) -> dict[str, str]:
    header, point = launch.header, masked(record.point)
    tags = {
        "orch.launch": f"{launch.number:04d}",
        "orch.code": record.code,
        "orch.point": " ".join(f"{key}={value}" for key, value in point.items()),
        "orch.seed": str(seed),
        "orch.git.tree": str(code["tree"]),
        "orch.data": str(planned.data or ""),
        "orch.state": record.state.value,
        "orch.attempts": str(len(record.attempts)),
        "mlflow.user": header.user,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": _source(header),
    }
    if code.get("commit"):
        tags |= {"mlflow.source.git.commit": code["commit"], "orch.git.dirty": str(code["dirty"]).lower()}
    if code.get("branch"):
        tags["mlflow.source.git.branch"] = code["branch"]
    if record.failure:
        tags["orch.failure"] = record.failure.signature
    if record.pruned:
        tags["orch.pruned"] = record.reason
    if record.endings:
        tags["orch.attempts.ended"] = "; ".join(record.endings)
    return tags


def _source(header: LaunchHeader) -> str:
    """Return the command that launched a run, which MLflow shows as its source."""
    return f"orch launch {' '.join(map(masked_override, header.overrides))}".strip()


_URI_KEYS = ("url", "folder")
_KNOWN_SOURCES = {"s3": "s3", "directory": "local"}
"""MLflow's names for the kinds of source that it also supports, and can load from."""


def _dataset(digest: str | None, origin: Mapping[str, Any]) -> Dataset | None:
    """Return a data version as MLflow shows it: the name that the user gave, and all that it resolved to."""
    if not digest:
        return None
    origin = masked(origin)
    name = str(origin.get("path") or origin.get("url") or "data")
    sizes = {key: origin[key] for key in ("files", "bytes") if key in origin}
    told = {key: value for key, value in origin.items() if key not in {"repair", "remotes", *sizes}}
    uri = next((str(origin[key]) for key in _URI_KEYS if origin.get(key)), None)
    kind = str(origin.get("source") or "unknown")
    return Dataset(
        name=name,
        digest=digest,
        source_type=_KNOWN_SOURCES.get(kind, kind),
        profile=json.dumps(sizes),
        source=json.dumps({**({"uri": uri} if uri else {}), **told, "digest": digest}, default=str),
    )


# --- artifacts --------------------------------------------------------------------------------------------


def _artifacts(paths: ExperimentPaths, launch: Launch, record: Record) -> list[Artifact]:
    run, header = paths.run(record.id), launch.header
    found = [Artifact(path=run.config), *_logs(run.attempts()), *_launched(launch, record)]
    found += [Artifact(path=paths.code(tree).diff, folder=f"code{_suffix(n)}") for n, tree in _trees(record)]
    policy = str(header.tracking.get("checkpoints", "best"))
    found += [Artifact(path=path, folder="checkpoints") for path in _checkpoints(run, record, policy)]
    return [artifact for artifact in found if artifact.content is not None or artifact.path.exists()]


def _logs(attempts: Sequence[AttemptPaths]) -> list[Artifact]:
    return [Artifact(path=log, folder=f"logs/{attempt.path.name}") for attempt in attempts for log in attempt.logs()]


def _trees(record: Record) -> list[tuple[int, str]]:
    return list(enumerate(record.code.split("+")))


def _suffix(number: int) -> str:
    return f"/{number}" if number else ""


def _launched(launch: Launch, record: Record) -> list[Artifact]:
    """Return the artifacts of a run's launch: the overrides, the Python environment, and the script of its job."""
    header = launch.header
    environment = header.environment
    packages = [f"{name}=={version}\n" for name, version in sorted(environment.get("distributions", {}).items())]
    overrides = "".join(f"{masked_override(text)}\n" for text in header.overrides)
    found = [Artifact(path=Path("overrides.txt"), folder="launch", content=overrides)]
    if packages:
        text = f"# Python {environment['python']}, {environment['platform']}\n" + "".join(packages)
        found.append(Artifact(path=Path("environment.txt"), folder="launch", content=text))
    job = record.last.claim.job.partition("_")[0] if record.last and record.last.claim else ""
    if job:
        found += _script(launch.paths.script(job))
    return found


def _script(path: Path) -> list[Artifact]:
    """Return the script of a job, without the credentials that its setup lines may contain."""
    try:
        text = read_text(path, errors="replace")
    except OSError:
        return []
    shown = masked_script(text)
    return [Artifact(path=path, folder="launch", content=None if shown == text else shown)]


def _checkpoints(run: RunPaths, record: Record, policy: str) -> list[Path]:
    """Return the checkpoints to show, by policy: best, last, all or none. A run that has not ended has none."""
    if policy == "none" or record.state.active or record.last is None:
        return []
    attempts = [run.attempt(attempt.number) for attempt in record.history]
    best = _best(run, record, attempts) if record.state is RunState.DONE else None  # before that, the best is not known
    chosen = {"best": best, "last": latest(attempts)}
    if policy != "all":
        return [path for path in (chosen.get(policy),) if path]
    users = {path.name: path for attempt in attempts for path in _users(attempt)}
    return list((users | {path.name: path for path in chosen.values() if path}).values())


def _best(run: RunPaths, record: Record, attempts: Sequence[AttemptPaths]) -> Path | None:
    """Return the best checkpoint by the objective; without an objective, the latest."""
    if record.last and (kept := best_of(run, record.last.best)):
        return kept
    old = [attempt.checkpoints / BEST for attempt in attempts if not listed(attempt.state)]
    return next((path for path in reversed(old) if listed(path)), latest(attempts))


def _users(attempt: AttemptPaths) -> list[Path]:
    """Return the checkpoints of the user's own callbacks; in runs of version 0.1, they include the engine's best."""
    found = sorted(attempt.checkpoints.glob("*.ckpt"))
    return found if listed(attempt.state) else [path for path in found if path.name != BEST]


def _ms(seconds: float | None) -> int | None:
    return round(seconds * 1000) if seconds is not None else None
