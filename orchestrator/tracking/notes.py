"""Notes for people: an experiment with its progress, and how to run a run again. Pure: records in, text out."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

import yaml

from orchestrator.config.credentials import masked, masked_override
from orchestrator.config.quoting import as_override
from orchestrator.records.experiment import ExperimentState
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import Launch
from orchestrator.records.record import Record, RunState
from orchestrator.spec import Objective

_LAUNCHES = 30
"""The launches shown: a note has at most 8,000 characters; earlier ones are in their own folders."""
_SWEEP_CHARACTERS = 2_000


def of_experiment(state: ExperimentState) -> str:
    """Return the note of an experiment: its runs by state, the best one, its sweep and its launches."""
    header = state.launches[-1].header
    parts = [f"**{_counts(state)}**", *_best(state, header), *_sweep(header), _launches(state.launches)]
    return "\n\n".join(parts)


def best(records: Sequence[Record], objective: Objective) -> tuple[Record, float] | None:
    """Return the best finished run by an objective, and its value; None if no run has finished with a value."""
    done = [record for record in records if record.state is RunState.DONE]
    valued = [(record, value) for record in done if (value := record.best_value(objective.metric)) is not None]
    if not valued:
        return None
    pick = max if objective.mode == "max" else min
    return pick(valued, key=lambda pair: pair[1])


def objective_of(header: LaunchHeader) -> Objective | None:
    """Return the objective of a launch."""
    return header.objective


def point_text(point: Mapping[str, object], separator: str = " ") -> str:
    """Return a point as short text: the last part of each key, and its value."""
    return separator.join(f"{key.split('.')[-1]}={value}" for key, value in masked(point).items())


def _counts(experiment_state: ExperimentState) -> str:
    states = Counter(record.state.value for record in experiment_state.shown)
    hidden = (
        [f"{len(experiment_state.records) - len(experiment_state.shown)} hidden"]
        if len(experiment_state.shown) < len(experiment_state.records)
        else []
    )
    return ", ".join([*(f"{count} {state}" for state, count in sorted(states.items())), *hidden])


def _best(state: ExperimentState, header: LaunchHeader) -> list[str]:
    objective = objective_of(header)
    found = best(state.shown, objective) if objective else None
    if objective is None or found is None:
        return []
    record, value = found
    name = _cell(point_text(record.point) or "run")
    return [
        f"Best `{objective.metric}` ({objective.mode}): **{value:.6g}** by [{name} {record.id[:6]}](run:{record.id})"
    ]


def _sweep(header: LaunchHeader) -> list[str]:
    if not header.sweep:
        return []
    text = yaml.safe_dump(
        json.loads(json.dumps(masked(header.sweep), default=str)), sort_keys=False, width=100
    ).rstrip()
    shown = text if len(text) <= _SWEEP_CHARACTERS else f"{text[:_SWEEP_CHARACTERS]}\n# ... in full in launch.json"
    return [f"```yaml\nsweep:\n{_indented(shown)}\n```"]


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))


def _launches(launches: Sequence[Launch]) -> str:
    shown = launches[-_LAUNCHES:]
    earlier = [f"\n{len(launches) - len(shown)} earlier launches are not shown."] if len(shown) < len(launches) else []
    rows = ["| launch | who | overrides | why |", "|---|---|---|---|", *map(_row, reversed(shown)), *earlier]
    return "\n".join(rows)


def _row(launch: Launch) -> str:
    header = launch.header
    cells = (
        f"{launch.number:04d}",
        header.user,
        shlex.join(map(masked_override, header.overrides)),
        header.message,
    )
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("[", "\\[").replace("\n", " ")


# --- a run ------------------------------------------------------------------------------------------------


def of_run(record: Record, launch: Launch, code: Mapping[str, object], data: Mapping[str, object]) -> str:
    """Return the note of a run: the commands that run it again from a clone of the project.

    `code` is its snapshot's header, `data` the origin of its data version (empty if it has none).
    """
    lines = [*_checkout(code), shlex.join(["orch", "run", *map(masked_override, again(record, launch.header, data))])]
    return "\n".join(["To run this again:", "", "```sh", *lines, "```"])


def again(record: Record, header: LaunchHeader, data: Mapping[str, object]) -> list[str]:
    """Return the overrides that compose this one run: those of its launch, with its point instead of the sweep.

    For a trial they compose a separate run, with the values that the trial was given.
    """
    point = record.given or record.point
    prefixes = {_key(text): text[: len(text) - len(text.lstrip("+"))] for text in header.overrides}
    kept = [text for text in header.overrides if _key(text) not in point and not _of_sweep(_key(text))]
    groups = header.choices
    chosen = [
        as_override(key, str(value) if key in groups else value, prefix=prefixes.get(key, ""), plain=True)
        for key, value in point.items()
    ]
    swept = header.sweep or any(_of_sweep(_key(text)) for text in header.overrides)
    dropped = ["sweep=none"] if swept else []
    return [*kept, *chosen, *_resources(record, header), *_revision(header, point, data), *dropped]


def _resources(record: Record, header: LaunchHeader) -> list[str]:
    """Return the resources that a sweep's rules set, lost without it: the number of processes is in the id."""
    rules = header.sweep.get("resources") or []
    keys = sorted({key for rule in rules for key in rule.get("set", {})})
    asked = record.planned.resources.to_json()
    return [as_override(f"resources.{key}", asked[key], plain=True) for key in keys if key in asked]


def _revision(header: LaunchHeader, point: Mapping[str, object], data: Mapping[str, object]) -> list[str]:
    """Return the pin of a data version that was named by a branch, a tag or HEAD."""
    named, commit = data.get("rev"), data.get("commit")
    if not commit or named == commit or any(_key(text).startswith("data.version") for text in header.overrides):
        return []
    return [] if any(key.startswith("data.version") for key in point) else [f"data.version.rev={commit}"]


def _key(text: str) -> str:
    return text.lstrip("+~").partition("=")[0]


def _of_sweep(key: str) -> bool:
    return key == "sweep" or key.startswith("sweep.")


def _checkout(code: Mapping[str, object]) -> list[str]:
    if not code.get("commit"):
        return [f"# the code is kept as tree {code['tree']}: it was not in a git repository"]
    patch = ["git apply uncommitted.diff   # this run's artifact code/uncommitted.diff"] if code.get("dirty") else []
    return [f"git checkout {code['commit']}", *patch]
