"""Records -> what the tracking store is told: names, tags, notes and artifacts. Pure but for listing files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator import ledger
from orchestrator.credentials import masked, masked_override
from orchestrator.layout import ExperimentPaths
from orchestrator.ledger import Launch, Ledger
from orchestrator.record import Record, RunState
from orchestrator.tracking import Artifact, TrackedExperiment, TrackedRun

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
        experiment_of(book.launches), note=_note(book),
        waits=any(record.last is None and record.state.active for record in book.records.values()),
        runs=[tracked_run(book.experiment, *_begun(launches, record)) for record in begun],
    )  # fmt: skip


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
    return TrackedExperiment(
        name=str(last["tracking"].get("experiment") or ours), project=str(launches[0].header["token"]),
        tags={"orch.experiment": ours},
    )  # fmt: skip


def tracked_run(paths: ExperimentPaths, launch: Launch, record: Record) -> TrackedRun:
    """Return what the store is told of one run that has begun."""
    line = ledger.read_line(launch.paths, record.planned.index)
    history = [paths.run(record.id).attempt(attempt.number) for attempt in record.history]
    last = record.last
    claim = last.claim if last else None
    config = masked(ledger.read_config(launch.paths, line))
    return TrackedRun(
        experiment=paths.name, run_id=record.id, name=_name(record),
        generation=claim.generation if claim else record.planned.generation,
        history=claim.history if claim else record.planned.history,
        params=config, tags=_tags(paths, launch, record, line, config),
        state=_STATES.get(record.state, record.state.value),
        started_ms=_ms(record.started), ended_ms=_ms(record.ended),
        spools=tuple(attempt.metrics for attempt in history), artifacts=tuple(_artifacts(paths, record)),
    )  # fmt: skip


def _name(record: Record) -> str:
    values = " ".join(f"{key.split('.')[-1]}={value}" for key, value in masked(record.planned.point).items())
    return f"{values or 'run'} {record.id[:6]}"


def _tags(
    paths: ExperimentPaths, launch: Launch, record: Record, line: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, str]:
    code, tree = launch.header["code"][0], record.code.partition("+")[0]
    if code["tree"] != tree:  # a run that went on does so with its own code, not with its latest launch's
        code = ledger.read_json(paths.code(tree).header)
    point = " ".join(f"{key}={value}" for key, value in masked(record.planned.point).items())
    tags = {
        "orch.launch": f"{launch.number:04d}", "orch.point": point, "orch.code": record.code,
        "orch.seed": str(config["seed"]),
        "orch.git.tree": str(code["tree"]), "orch.data": str(line["data"] or ""),
        "orch.state": record.state.value, "orch.attempts": str(len(record.attempts)),
        "mlflow.user": str(launch.header["user"]), "mlflow.source.type": "LOCAL",
        "mlflow.source.name": f"orch launch {' '.join(map(masked_override, launch.header['overrides']))}".strip(),
    }  # fmt: skip
    if code.get("commit"):
        tags |= {"mlflow.source.git.commit": code["commit"], "orch.git.dirty": str(code["dirty"]).lower()}
    if record.failure:
        tags["orch.failure"] = record.failure.signature
    return tags


def _artifacts(paths: ExperimentPaths, record: Record) -> list[Artifact]:
    run = paths.run(record.id)
    found = [Artifact(path=run.config)]
    found += [Artifact(path=attempt.log, folder=f"logs/{attempt.path.name}") for attempt in run.attempts()]
    best = record.last.best.get("checkpoint") if record.last and record.state is RunState.DONE else None
    if best:
        found.append(Artifact(path=run.path / Path(best), folder="checkpoints"))
    return [artifact for artifact in found if artifact.path.exists()]


def _note(book: Ledger) -> str:
    """Return the parent's note: its launches, and its runs by state."""
    states = Counter(record.state.value for record in book.records.values())
    rows = [_row(launch) for launch in book.launches]
    summary = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    return "\n".join([f"**{summary}**", "", "| launch | who | overrides | why |", "|---|---|---|---|", *rows])


def _row(launch: Launch) -> str:
    overrides = " ".join(map(masked_override, launch.header["overrides"]))
    cells: Sequence[str] = (f"{launch.number:04d}", launch.header["user"], overrides, launch.header["message"])
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _ms(seconds: float | None) -> int | None:
    return round(seconds * 1000) if seconds is not None else None
