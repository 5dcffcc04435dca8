"""Which runs of a launch share a job. Pure: the same steps and records give the same packs.

A pack's runs have resources, code and data version in common, and follow each other in the plan. A pack is named by
the index of its first run, as a run that has a job of its own is by its index.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from orchestrator.launch.plan import Step
from orchestrator.records.record import Record, RunState
from orchestrator.spec import RunId

_SECONDS = 1800.0
_MOST_RUNS = 64
_MOST_HOURS = 24.0
_UNKNOWN = 8


def sized(steps: Iterable[Step], records: Mapping[RunId, Record]) -> list[Step]:
    """Return steps whose packs all say how many runs they hold: for `auto`, by how long earlier runs have taken."""
    given = list(steps)
    if all(step.run.resources.pack is None or step.run.resources.pack.runs for step in given):
        return given
    taken = sorted(record.seconds(0.0) for record in records.values() if record.state is RunState.DONE)
    typical = taken[len(taken) // 2] if taken else None
    return [_sized(step, typical) for step in given]


def _sized(step: Step, seconds: float | None) -> Step:
    need = step.run.resources
    if need.pack is None or need.pack.runs:
        return step
    pack = replace(need.pack, runs=need.pack.at_once * rounds(seconds, need.hours))
    return replace(step, run=replace(step.run, resources=replace(need, pack=pack)))


def rounds(seconds: float | None, hours: float | None) -> int:
    """Return how many runs to execute one after another, about half an hour's worth; where nothing is known, 8.

    `seconds` is how long a run takes. With a time limit for each run, the whole is never given more than a day.
    """
    wanted = _UNKNOWN if seconds is None else int(_SECONDS / max(seconds, 1.0))
    allowed = int(_MOST_HOURS / hours) if hours else _MOST_RUNS
    return max(1, min(wanted, allowed, _MOST_RUNS))


def packs(steps: Sequence[Step], *, canary: int = 0) -> list[list[int]]:
    """Return the packs that steps make, each as the steps' indices; a step that asks for none is in none.

    Of the first `canary` steps none shares a job with those that wait for them.
    """
    found: list[list[int]] = []
    open_ones: dict[object, list[int]] = {}
    for index, step in enumerate(steps):
        need = step.run.resources
        if need.pack is None:
            continue
        key = (need, step.code, step.run.data_digest, index < canary)
        if key not in open_ones or len(open_ones[key]) == need.pack.runs:
            open_ones[key] = []
            found.append(open_ones[key])
        open_ones[key].append(index)
    return found
