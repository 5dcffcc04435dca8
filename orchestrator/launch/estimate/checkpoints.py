"""How much room the checkpoints of a launch will need: what earlier runs of the same model saved, or would.

It is an estimate: a run that is interrupted keeps those of each attempt, and callbacks of one's own may save more.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import StateError
from orchestrator.launch.estimate.checkpoint_size import Models
from orchestrator.launch.plan import Step
from orchestrator.layout import ExperimentPaths
from orchestrator.records.checkpoints import saved_by
from orchestrator.records.launches import read_run_config
from orchestrator.records.planned import read_planned_run
from orchestrator.records.record import Record, RunState
from orchestrator.spec import EVALUATIONS, RunId
from orchestrator.system.units import size

KEPT = 2
"""Checkpoints that an attempt keeps: the best and the last, see worker/fit/checkpoints.py."""
_LOOKED_AT = 16  # of thousands of runs; each costs three small reads


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskForecast:
    """The space that checkpoints will need, and what is free in `folder`.

    `runs` of the steps to do are known, and need `bytes`; of the others `unknown` says the model's target.
    `saved`: how many of them are known by what earlier runs saved; the others' models were built and counted.
    """

    runs: int
    bytes: int
    largest_bytes: int
    saved: int
    unknown: Mapping[str, int]
    problem: str
    free_bytes: int
    folder: Path

    @property
    def note(self) -> str:
        """What a person should know before launching, or nothing."""
        if self.bytes <= self.free_bytes:
            return ""
        needed, free = size(self.bytes), size(self.free_bytes)
        return (
            f"the checkpoints of {self.runs} runs need about {needed}, and {self.folder} has {free} free:"
            " free some space, or choose another folder with --runs"
        )

    def to_json(self) -> dict[str, object]:
        return {
            "runs": self.runs,
            "bytes": self.bytes,
            "largest_bytes": self.largest_bytes,
            "saved": self.saved,
            "unknown": dict(self.unknown),
            "problem": self.problem,
            "free_bytes": self.free_bytes,
            "folder": str(self.folder),
        }


def disk_forecast(
    steps: Collection[Step], records: Mapping[RunId, Record], experiment: ExperimentPaths, models: Models
) -> DiskForecast:
    """Forecast what the checkpoints of these steps will need. `models` gives the sizes that no earlier run shows."""
    steps = [step for step in steps if step.run.config.get("task") not in EVALUATIONS]
    saved = _saved(experiment, records.values())
    known = [saved[target] for step in steps if (target := _target(step)) in saved]
    others = [step for step in steps if _target(step) not in saved]
    sizes = models.checkpoint_sizes([step.run.config["model"] for step in others])
    counted = [KEPT * each.bytes for each in sizes if each and each.bytes is not None]
    pairs = zip(others, sizes, strict=True)
    unknown = Counter(_target(step) for step, each in pairs if each is None or each.bytes is None)
    found = known + counted
    return DiskForecast(
        runs=len(found),
        bytes=sum(found),
        largest_bytes=max(found, default=0),
        saved=len(known),
        unknown=unknown,
        problem=next((each.problem for each in sizes if each and each.problem), ""),
        free_bytes=_free(experiment.path),
        folder=experiment.path.parent,
    )


def _free(folder: Path) -> int:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


def _target(step: Step) -> str:
    return str(step.run.config["model"].get("_target_"))


def _saved(experiment: ExperimentPaths, records: Iterable[Record]) -> dict[str, int]:
    """Return, by the model's target, the most bytes that an earlier run keeps. Some of the runs are looked at."""
    begun = [record for record in records if record.last and record.last.claim]
    looked_at = [record for record in begun if record.state is RunState.DONE] or begun
    found: dict[str, int] = {}
    for record in looked_at[:: max(1, len(looked_at) // _LOOKED_AT)]:
        if kept := _kept(experiment, record):
            target = _target_of(experiment, record)
            found[target] = max(kept, found.get(target, 0))
    return found


def _kept(experiment: ExperimentPaths, record: Record) -> int:
    number = record.last.number if record.last else 0
    sizes = [path.stat().st_size for path in saved_by(experiment.run(record.id).attempt(number))]
    return max(sum(sizes), KEPT * max(sizes)) if sizes else 0


def _target_of(experiment: ExperimentPaths, record: Record) -> str:
    launch = experiment.launch(record.planned.launch)
    try:
        model = read_run_config(launch, read_planned_run(launch, record.planned.index))["model"]
        return str(model.get("_target_"))
    except (StateError, KeyError, AttributeError):
        return ""  # the other launches can still be read
