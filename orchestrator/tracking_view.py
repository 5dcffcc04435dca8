"""Records -> what the tracking store is told: names, tags, notes and artifacts. Pure but for listing files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator import ledger, tracking_notes
from orchestrator.credentials import masked, masked_override
from orchestrator.layout import AttemptPaths, ExperimentPaths, RunPaths
from orchestrator.ledger import Launch, Ledger
from orchestrator.record import Record, RunState
from orchestrator.tracking import Artifact, Dataset, TrackedExperiment, TrackedRun

_STATES: Mapping[RunState, str] = {
    RunState.RUNNING: "running",
    RunState.QUEUED: "queued",
    RunState.DONE: "done",
    RunState.FAILED: "failed",
    RunState.INTERRUPTED: "lost",
    RunState.CANCELLED: "cancelled",
}


def tracked(book: Ledger) -> TrackedExperiment:
    """Return what the store is told of an experiment: runs that have begun, with everything they logged."""
    launches = {launch.number: launch for launch in book.launches}
    begun = [record for record in book.records.values() if record.last is not None]
    return replace(
        experiment_of(book.launches), note=tracking_notes.of_experiment(book),
        waits=any(record.last is None and record.state.active for record in book.records.values()),
        runs=[_tracked(book, *_begun(launches, record)) for record in begun],
    )  # fmt: skip


def _tracked(book: Ledger, launch: Launch, record: Record) -> TrackedRun:
    """Return a run with what only who knows the whole experiment can tell of it: whether somebody has hidden it."""
    run = tracked_run(book.experiment, launch, record)
    return replace(run, tags={**run.tags, "orch.hidden": str(record.id in book.hidden).lower()})


def _begun(launches: Mapping[int, Launch], record: Record) -> tuple[Launch, Record]:
    """Return a run and its launch; while a rerun waits, those of the generation before, as it ended."""
    claim = record.last.claim if record.last else None
    if record.last is None or record.begun or claim is None or claim.generation == record.planned.generation:
        return launches[record.planned.launch], record
    own = launches[claim.launch]
    wish = ledger.planned(ledger.read_line(own.paths, claim.index), own.number)
    return own, replace(record, planned=wish, state=record.last.state, reason="", observation=None)


def experiment_of(launches: Sequence[Launch]) -> TrackedExperiment:
    """Return what the store is told of an experiment by itself. Its first launch's token tells projects apart."""
    last = launches[-1].header
    ours = str(last["experiment"])
    tags = {"orch.experiment": ours, "orch.launches": str(len(launches)), "mlflow.user": str(last["user"])}
    tags |= {"mlflow.source.type": "LOCAL", "mlflow.source.name": _source(last)}
    if last.get("objective"):
        tags["orch.objective"] = f"{last['objective']['mode']} {last['objective']['metric']}"
    if last.get("sweep"):
        tags["orch.sweep"] = json.dumps(last["sweep"], default=str)
    return TrackedExperiment(
        name=str(last["tracking"].get("experiment") or ours), project=str(launches[0].header["token"]), tags=tags
    )


def tracked_run(paths: ExperimentPaths, launch: Launch, record: Record) -> TrackedRun:
    """Return what the store is told of one run that has begun."""
    line = ledger.read_line(launch.paths, record.planned.index)
    history = [paths.run(record.id).attempt(attempt.number) for attempt in record.history]
    last = record.last
    claim = last.claim if last else None
    config = masked(ledger.read_config(launch.paths, line, record.given))
    code = _code(paths, launch, record)
    data = (launch.header.get("data") or {}).get(line["data"]) or {}
    note = tracking_notes.of_run(record, launch, code, data)
    return TrackedRun(
        experiment=paths.name, run_id=record.id, name=_name(record),
        generation=claim.generation if claim else record.planned.generation,
        history=claim.history if claim else record.planned.history,
        params=config, tags=_tags(launch, record, line, code, seed=config["seed"]) | {"mlflow.note.content": note},
        state=_STATES.get(record.state, record.state.value),
        started_ms=_ms(record.started), ended_ms=_ms(record.ended),
        spools=tuple(spool for attempt in history for spool in (attempt.metrics, *attempt.system_metrics())),
        artifacts=tuple(_artifacts(paths, launch, record)), data=_dataset(line["data"], data),
    )  # fmt: skip


def _name(record: Record) -> str:
    return f"{tracking_notes.point_text(record.point) or 'run'} {record.id[:6]}"


def _code(paths: ExperimentPaths, launch: Launch, record: Record) -> Mapping[str, Any]:
    """Return the header of a run's snapshot: one that went on does so with its own code, not its latest launch's."""
    code: Mapping[str, Any] = launch.header["code"][0]
    tree = record.code.partition("+")[0]
    return code if code["tree"] == tree else ledger.read_json(paths.code(tree).header)


def _tags(
    launch: Launch, record: Record, line: Mapping[str, Any], code: Mapping[str, Any], *, seed: int
) -> dict[str, str]:
    header, point = launch.header, masked(record.point)
    tags = {
        "orch.launch": f"{launch.number:04d}", "orch.code": record.code,
        "orch.point": " ".join(f"{key}={value}" for key, value in point.items()),
        "orch.seed": str(seed), "orch.git.tree": str(code["tree"]), "orch.data": str(line["data"] or ""),
        "orch.state": record.state.value, "orch.attempts": str(len(record.attempts)),
        "mlflow.user": str(header["user"]), "mlflow.source.type": "LOCAL",
        "mlflow.source.name": _source(header),
    }  # fmt: skip
    if code.get("commit"):
        tags |= {"mlflow.source.git.commit": code["commit"], "orch.git.dirty": str(code["dirty"]).lower()}
    if code.get("branch"):
        tags["mlflow.source.git.branch"] = code["branch"]
    if record.failure:
        tags["orch.failure"] = record.failure.signature
    if record.pruned:
        tags["orch.pruned"] = record.reason
    return tags


def _source(header: Mapping[str, Any]) -> str:
    """Return what MLflow shows as a run's source: the command that launched it."""
    return f"orch launch {' '.join(map(masked_override, header['overrides']))}".strip()


_URI_KEYS = ("url", "folder")
_KNOWN_SOURCES = {"s3": "s3", "directory": "local"}
"""What MLflow calls a source that it knows, too; it can load from those."""


def _dataset(digest: str | None, origin: Mapping[str, Any]) -> Dataset | None:
    """Return a data version as MLflow shows it: what a person asked for by name, and all that it resolved to."""
    if not digest:
        return None
    name = str(origin.get("path") or origin.get("url") or "data")
    sizes = {key: origin[key] for key in ("files", "bytes") if key in origin}
    told = {key: value for key, value in origin.items() if key not in {"repair", "remotes", *sizes}}
    uri = next((str(origin[key]) for key in _URI_KEYS if origin.get(key)), None)
    kind = str(origin.get("source") or "unknown")
    return Dataset(
        name=name, digest=digest, source_type=_KNOWN_SOURCES.get(kind, kind), profile=json.dumps(sizes),
        source=json.dumps({**({"uri": uri} if uri else {}), **told, "digest": digest}, default=str),
    )  # fmt: skip


# --- artifacts --------------------------------------------------------------------------------------------


def _artifacts(paths: ExperimentPaths, launch: Launch, record: Record) -> list[Artifact]:
    run, header = paths.run(record.id), launch.header
    found = [Artifact(path=run.config), *_logs(run.attempts()), *_launched(launch, record)]
    found += [Artifact(path=paths.code(tree).diff, folder=f"code{_suffix(n)}") for n, tree in _trees(record)]
    policy = str(header["tracking"].get("checkpoints", "best"))
    found += [Artifact(path=path, folder="checkpoints") for path in _checkpoints(run, record, policy)]
    return [artifact for artifact in found if artifact.content is not None or artifact.path.exists()]


def _logs(attempts: Sequence[AttemptPaths]) -> list[Artifact]:
    return [Artifact(path=log, folder=f"logs/{attempt.path.name}") for attempt in attempts for log in attempt.logs()]


def _trees(record: Record) -> list[tuple[int, str]]:
    return list(enumerate(record.code.split("+")))


def _suffix(number: int) -> str:
    return f"/{number}" if number else ""


def _launched(launch: Launch, record: Record) -> list[Artifact]:
    """Return what a run was launched with: the overrides, the Python environment, and the script of its job."""
    header = launch.header
    environment = header.get("environment") or {}
    packages = [f"{name}=={version}\n" for name, version in sorted(environment.get("distributions", {}).items())]
    overrides = "".join(f"{masked_override(text)}\n" for text in header["overrides"])
    found = [Artifact(path=Path("overrides.txt"), folder="launch", content=overrides)]
    if packages:
        text = f"# Python {environment['python']}, {environment['platform']}\n" + "".join(packages)
        found.append(Artifact(path=Path("environment.txt"), folder="launch", content=text))
    job = record.last.claim.job.partition("_")[0] if record.last and record.last.claim else ""
    if job:
        found.append(Artifact(path=launch.paths.script(job), folder="launch"))
    return found


def _checkpoints(run: RunPaths, record: Record, policy: str) -> list[Path]:
    """Return the checkpoints to show, by policy: best, last, all or none. They are those of a run that has ended."""
    if policy == "none" or record.state.active or record.last is None:
        return []
    found: dict[str, Path] = {}
    for attempt in (run.attempt(attempt.number) for attempt in record.history):
        found |= {path.name: path for path in sorted(attempt.checkpoints.glob("*.ckpt"))}
    kept = record.last.best.get("checkpoint")
    if kept:
        found["best.ckpt"] = run.path / str(kept)
    if record.state is not RunState.DONE:
        found.pop("best.ckpt", None)  # of what: it is not known yet
    wanted = found.keys() if policy == "all" else {f"{policy}.ckpt"}
    return [path for name, path in found.items() if name in wanted]


def _ms(seconds: float | None) -> int | None:
    return round(seconds * 1000) if seconds is not None else None
