"""The one act: freeze what a launch needs, publish its plan, and hand it to the cluster.

Everything is checked before; what was gathered (code, data, environment) comes in as `Facts`. Two launches
at the same moment both plan, but only one publishes a given number: the other plans again, against it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from orchestrator import ledger
from orchestrator.cluster import Cluster, Waiting
from orchestrator.data import Manifest
from orchestrator.environment import Environment
from orchestrator.errors import StateError
from orchestrator.layout import ExperimentPaths, LaunchPaths
from orchestrator.packing import packs, sized
from orchestrator.plan import Rerun, Step, make_plan, to_do
from orchestrator.record import Record
from orchestrator.snapshot import Pending, write
from orchestrator.spec import Config, Experiment, RunId, Search
from orchestrator.waiting import hand_over

_TRIES = 100
_SCALARS = frozenset({str, int, float, bool, type(None)})
WORKER = ("-m", "orchestrator.worker")
"""What Python is given on the node, before the launch and the task's index. The tests have one of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found out before launching. `code`: the project's tree, then those of editable installs."""

    code: tuple[Pending, ...]
    environment: Environment
    manifests: Mapping[str, Manifest]

    @property
    def code_id(self) -> str:
        return "+".join(pending.snapshot.tree for pending in self.code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """What a launch did: the steps of its plan, and its folder; None where nothing was to be done.

    `waiting`: what the cluster had no room for, and will go on with. `records` is what was known before, `notes` what
    the cluster has to say.
    """

    steps: tuple[Step, ...]
    paths: LaunchPaths | None
    records: Mapping[RunId, Record]
    notes: tuple[str, ...] = ()
    waiting: Waiting | None = None


def launch(
    experiment: Experiment,
    facts: Facts,
    paths: ExperimentPaths,
    *,
    cluster: Cluster,
    cluster_of: Mapping[str, Cluster],
    message: str = "",
    rerun: Rerun = "never",
    only: Callable[[Step], bool] = lambda _: True,
    confirm: Callable[[Sequence[Step]], None] = lambda _: None,
    worker: Sequence[str] = WORKER,
) -> Launched:
    """Launch what is missing of an experiment. `confirm` sees the steps before anything is written, and may raise.

    Raises RequestError where the cluster can never run it, StateError where our files cannot be written, and
    ClusterError where the cluster refuses it; whatever was published by then is taken up by the next launch.
    """
    for _ in range(_TRIES):
        book = ledger.read(paths, cluster_of)
        if hand_over(book, cluster_of):
            book = ledger.read(paths, cluster_of)
        steps = make_plan(experiment.runs, book.records, code=facts.code_id, rerun=rerun)
        acting = sized((step for step in to_do(steps) if only(step)), book.records)
        if not acting:
            return Launched(steps=steps, paths=None, records=book.records)
        notes = cluster.check({step.run.resources for step in acting}, paths.path, data_of(acting, facts.manifests))
        confirm(steps)
        with ledger.writing(paths.path):
            _freeze(facts, paths)
        bases, lines = _write_plan(acting)
        searches = _searches(acting)
        header = _header(experiment, facts, message, worker, tasks=len(acting))
        shared = packs(acting, canary=header["launch"]["canary"])
        published = ledger.publish(paths, book.next_number, header, bases, lines, searches=searches, packs=shared)
        if published is not None:
            try:
                with ledger.writing(published.path):
                    waiting = cluster.submit(published)
            finally:
                _complete(published)  # where it was refused, what it took is its own to know; the rest is free again
            return Launched(steps=steps, paths=published, records=book.records, notes=notes, waiting=waiting)
    raise StateError(
        f"{experiment.name} could not be launched", why=f"others launched it {_TRIES} times meanwhile",
        fix="look at `orch status`, then try again",
    )  # fmt: skip


def _complete(published: LaunchPaths) -> None:
    """Say that this process is through; without that the launch counts as through once this process has ended."""
    with suppress(OSError):
        published.complete.touch(mode=0o600)


def data_of(steps: Iterable[Step], manifests: Mapping[str, Manifest]) -> dict[str, int]:
    """Return the bytes of each data version that steps need, by what a person calls it."""
    digests = dict.fromkeys(step.run.data_digest for step in steps if step.run.data_digest)
    return {manifests[digest].name: manifests[digest].bytes for digest in digests}


def _freeze(facts: Facts, paths: ExperimentPaths) -> None:
    if paths.path.parent.is_dir():
        ledger.check_private(paths.path.parent)
    ledger.make_private(paths.path)
    ledger.check_private(paths.path)
    for pending in facts.code:
        write(pending, paths.code(pending.snapshot.tree))
    for digest, manifest in facts.manifests.items():
        if not paths.manifest(digest).exists():
            ledger.make_private(paths.manifest(digest).parent)
            manifest.write(paths.manifest(digest))


def _header(experiment: Experiment, facts: Facts, message: str, worker: Sequence[str], *, tasks: int) -> dict[str, Any]:
    options = experiment.launch if experiment.launch.canary < tasks else replace(experiment.launch, canary=0)
    return {
        "experiment": experiment.name, "message": message, "argv": sys.argv[1:],
        "overrides": list(experiment.overrides), "choices": dict(experiment.choices), "sweep": experiment.sweep,
        "objective": asdict(experiment.objective) if experiment.objective else None,
        "cluster": dict(experiment.cluster), "tracking": dict(experiment.tracking), "env": experiment.env,
        "snapshot": asdict(experiment.snapshot), "launch": options.to_json(), "tags": list(experiment.tags),
        "after": list(experiment.after),
        "environment": facts.environment.to_json(), "python": sys.executable, "worker": list(worker),
        "code": [pending.snapshot.to_json() for pending in facts.code],
        "data": {digest: manifest.summary for digest, manifest in facts.manifests.items()},
    }  # fmt: skip


def _write_plan(steps: Sequence[Step]) -> tuple[list[Config], list[dict[str, Any]]]:
    """Return few base configs, and per step a line that says how its own differs from one of them."""
    bases: list[Config] = []
    lines = []
    for index, step in enumerate(steps):
        base, changes = _nearest_base(bases, step.run.config)
        lines.append(
            {
                "index": index, "run": step.run.id, "action": step.action.value, "reason": step.reason,
                "attempt": step.attempt, "generation": step.generation, "history": step.history,
                "code": step.code, "data": step.run.data_digest, "base": base, "set": changes,
                "point": dict(step.run.point), "resources": step.run.resources.to_json(),
                **({"search": step.run.trial.search.id, "trial": step.run.trial.number} if step.run.trial else {}),
            }
        )  # fmt: skip
    return bases, lines


def _searches(steps: Iterable[Step]) -> list[Search]:
    """Return the adaptive sweeps that steps are trials of."""
    return list({step.run.trial.search.id: step.run.trial.search for step in steps if step.run.trial}.values())


def _nearest_base(bases: list[Config], config: Config) -> tuple[int, list[tuple[list[str], Any]]]:
    for number, base in enumerate(bases):
        changes = difference(base, config)
        if changes is not None:
            return number, changes
    bases.append(config)
    return len(bases) - 1, []


def difference(base: Any, config: Any) -> list[tuple[list[str], Any]] | None:
    """Return the leaves to set in `base` to get `config`; None where their keys differ. Lists are leaves.

    Leaves are compared as JSON, as ids are: 1 is not 1.0, nor true, and 0.0 is not -0.0.
    """
    if base is config:
        return []
    if not isinstance(base, dict) or not isinstance(config, dict):
        if isinstance(base, dict) or isinstance(config, dict):
            return None
        return [] if _same_leaf(base, config) else [([], config)]
    if base.keys() != config.keys():
        return None
    changes: list[tuple[list[str], Any]] = []
    for key in base:
        inner = difference(base[key], config[key])
        if inner is None:
            return None
        changes += [([key, *path], value) for path, value in inner]
    return changes


def _same_leaf(one: Any, other: Any) -> bool:
    if type(one) is type(other) and type(one) in _SCALARS:
        return repr(one) == repr(other)
    return one is other or json.dumps(one) == json.dumps(other)
