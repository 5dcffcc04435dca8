"""The one act: freeze what a launch needs, publish its plan, and hand it to the cluster.

Everything is checked before; what was gathered (code, data, environment) comes in as `Facts`. Two launches
at the same moment both plan, but only one publishes a given number: the other plans again, against it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from orchestrator.cluster import Cluster, Waiting
from orchestrator.data import Manifest
from orchestrator.errors import StateError
from orchestrator.launch.facts import Facts
from orchestrator.launch.packing import packs, sized
from orchestrator.launch.pending import submit_pending
from orchestrator.launch.plan import Rerun, Step, make_plan, to_do
from orchestrator.layout import ExperimentPaths, LaunchPaths
from orchestrator.records.experiment import read_experiment
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import publish_launch
from orchestrator.records.ownership import require
from orchestrator.records.planned import PlannedRun
from orchestrator.records.record import Record
from orchestrator.snapshot import write
from orchestrator.spec import Config, RunId
from orchestrator.spec.experiment import Experiment
from orchestrator.spec.search import Search
from orchestrator.system.files import check_private, listed, make_private, reporting_write_errors

_TRIES = 100
_SCALARS = frozenset({str, int, float, bool, type(None)})
WORKER = ("-m", "orchestrator.worker")
"""What Python is given on the node, before the launch and the task's index. The tests have one of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """What a launch did: the steps of its plan, and its folder; None where nothing was to be done.

    `waiting`: what the cluster could not take yet, and will be handed later. `records` is what was known before,
    `notes` what the cluster has to say.
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

    Raises RequestError where the cluster can never run it, StateError where our files cannot be written or the
    experiment is not this user's, and
    ClusterError where the cluster refuses it; whatever was published by then is taken up by the next launch.
    """
    for _ in range(_TRIES):
        state = read_experiment(paths, cluster_of)
        if state.launches:
            require(paths, state.launches)
        if submit_pending(state, cluster_of):
            state = read_experiment(paths, cluster_of)
        steps = make_plan(experiment.runs, state.records, code=facts.code_id, rerun=rerun)
        acting = sized((step for step in to_do(steps) if only(step)), state.records)
        if not acting:
            return Launched(steps=steps, paths=None, records=state.records)
        notes = cluster.check({step.run.resources for step in acting}, paths.path, data_of(acting, facts.manifests))
        confirm(steps)
        with reporting_write_errors(paths.path):
            _freeze(facts, paths)
        bases, planned = _planned(acting, state.next_number)
        searches = _searches(acting)
        header = _header(experiment, facts, message, worker, tasks=len(acting))
        shared = packs(acting, canary=header.launch.canary)
        published = publish_launch(paths, state.next_number, header, bases, planned, searches=searches, packs=shared)
        if published is not None:
            try:
                with reporting_write_errors(published.path):
                    waiting = cluster.submit(published)
            finally:
                _complete(published)  # where it was refused, what it took is its own to know; the rest is free again
            return Launched(steps=steps, paths=published, records=state.records, notes=notes, waiting=waiting)
    raise StateError(
        f"{experiment.name} could not be launched",
        why=f"others launched it {_TRIES} times meanwhile",
        fix="look at `orch status`, then try again",
    )


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
        check_private(paths.path.parent)
    make_private(paths.path)
    check_private(paths.path)
    for pending in facts.code:
        write(pending, paths.code(pending.snapshot.tree))
    for digest, manifest in facts.manifests.items():
        if not listed(paths.manifest(digest)):
            make_private(paths.manifest(digest).parent)
            manifest.write(paths.manifest(digest))


def _header(experiment: Experiment, facts: Facts, message: str, worker: Sequence[str], *, tasks: int) -> LaunchHeader:
    options = experiment.launch if experiment.launch.canary < tasks else replace(experiment.launch, canary=0)
    return LaunchHeader(
        experiment=experiment.name,
        message=message,
        argv=tuple(sys.argv[1:]),
        overrides=experiment.overrides,
        choices=experiment.choices,
        sweep=experiment.sweep,
        objective=experiment.objective,
        cluster=experiment.cluster,
        tracking=experiment.tracking,
        env=experiment.env,
        snapshot=experiment.snapshot,
        launch=options,
        checkpoint=experiment.checkpoint,
        tags=experiment.tags,
        after=experiment.after,
        environment=facts.environment.to_json(),
        python=sys.executable,
        worker=tuple(worker),
        code=tuple(pending.snapshot.to_json() for pending in facts.code),
        data={digest: manifest.summary for digest, manifest in facts.manifests.items()},
    )


def _planned(steps: Sequence[Step], launch: int) -> tuple[list[Config], list[PlannedRun]]:
    """Return few base configs, and per step a planned run that says how its own differs from one of them."""
    bases: list[Config] = []
    planned = []
    for index, step in enumerate(steps):
        base, changes = _nearest_base(bases, step.run.config)
        trial = step.run.trial
        planned.append(
            PlannedRun(
                run=step.run.id,
                launch=launch,
                index=index,
                action=step.action.value,
                attempt=step.attempt,
                generation=step.generation,
                history=step.history,
                code=step.code,
                point=step.run.point,
                resources=step.run.resources,
                reason=step.reason,
                data=step.run.data_digest,
                base=base,
                changes=changes,
                search=trial.search.id if trial else None,
                trial=trial.number if trial else None,
            )
        )
    return bases, planned


def _searches(steps: Iterable[Step]) -> list[Search]:
    """Return the adaptive sweeps that steps are trials of."""
    return list({step.run.trial.search.id: step.run.trial.search for step in steps if step.run.trial}.values())


def _nearest_base(bases: list[Config], config: Config) -> tuple[int, list[tuple[list[str], object]]]:
    for number, base in enumerate(bases):
        changes = difference(base, config)
        if changes is not None:
            return number, changes
    bases.append(config)
    return len(bases) - 1, []


def difference(base: object, config: object) -> list[tuple[list[str], object]] | None:
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
    changes: list[tuple[list[str], object]] = []
    for key in base:
        inner = difference(base[key], config[key])
        if inner is None:
            return None
        changes += [([key, *path], value) for path, value in inner]
    return changes


def _same_leaf(one: object, other: object) -> bool:
    if type(one) is type(other) and type(one) in _SCALARS:
        return repr(one) == repr(other)
    return one is other or json.dumps(one) == json.dumps(other)
