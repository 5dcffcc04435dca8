"""A run, and the runs of an experiment, in few words and as JSON. Pure but for the clock."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict

from orchestrator.config.credentials import masked
from orchestrator.records.experiment import ExperimentState
from orchestrator.records.record import Record, RunState
from orchestrator.report.usage import consumption
from orchestrator.spec import Objective
from orchestrator.system.units import clock


def count(runs: int) -> str:
    """Return a number of runs in words."""
    return "1 run" if runs == 1 else f"{runs} runs"


def states(experiment_state: ExperimentState) -> str:
    """Return how many runs there are, and how many in each state."""
    counts = Counter(record.state for record in experiment_state.records.values())
    each = ", ".join(f"{counts[state]} {state.value}" for state in RunState if counts[state])
    return f"{count(len(experiment_state.records))}: {each}"


def objective_of(state: ExperimentState) -> Objective | None:
    """Return the objective of the last launch."""
    return state.launches[-1].header.objective if state.launches else None


def progress(record: Record) -> str:
    """Return how far the last attempt is: its stage, or epoch and step."""
    last = record.last
    if last is None or not last.progress:
        return (last.stage if last else record.reason) if record.state is RunState.RUNNING else ""
    done = last.progress
    epochs = f"/{done['epochs']}" if done.get("epochs") else ""
    steps = f"/{done['steps']}" if done.get("steps") else ""
    epoch = f"epoch {done['epoch']}{epochs} " if done.get("epoch") is not None else ""
    return f"{'pruned: ' if record.pruned else ''}{epoch}step {done.get('step')}{steps}"


def note(record: Record) -> str:
    """Return what explains a state: what a run waits for, why it has ended, that it was suspended."""
    if record.state is RunState.RUNNING:
        seen, last, before = record.observation, record.last, record.endings[-1:]
        if urgent := _stalled(record) or (last.unsaved if last else ""):
            return urgent
        return (seen.reason if seen else "") or "".join(f"attempt {ending}" for ending in before)
    return "" if record.state is RunState.DONE else record.reason


def _stalled(record: Record) -> str:
    """Return for how long a run has made no progress, if its watcher has seen that, and there was none since."""
    last = record.last
    if last is None or last.stalling_since is None or (last.progressed or 0.0) > last.stalling_since:
        return ""
    return last.stalling or f"stalled {(time.time() - last.stalling_since) / 60:.0f} min"


def duration(record: Record) -> str:
    """Return how long the run's attempts have taken together."""
    seconds = record.seconds(time.time())
    return clock(seconds) if seconds else ""


def record_json(record: Record) -> dict[str, object]:
    """Return a run as JSON."""
    last = record.last
    return {
        "run": record.id,
        "state": record.state.value,
        "reason": record.reason,
        "point": masked(record.point),
        "launch": record.planned.launch,
        "attempt": last.number if last else None,
        "generation": record.planned.generation,
        "code": record.code,
        "node": record.node,
        "job": record.job,
        "started": record.started,
        "ended": record.ended,
        "exact": (last.exact or None) if last else None,
        "progress": dict(last.progress) if last else {},
        "metrics": dict(record.metrics),
        "best": dict(last.best) if last else {},
        "failure": asdict(record.failure) if record.failure else None,
        "usage": asdict(consumption(record, time.time())),
    }
