"""From composed points to runs with ids: one run per point of a sweep, or per trial of an adaptive one. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.config.credentials import described
from orchestrator.errors import ConfigError
from orchestrator.identity import canonical, document, run_id, search_id, trial_id
from orchestrator.spec import RunId
from orchestrator.spec.experiment import Experiment, Run
from orchestrator.spec.search import Search, Trial

if TYPE_CHECKING:
    from orchestrator.config.experiment import ComposedExperiment, ComposedPoint, ComposedSearch
    from orchestrator.data import Manifest


def experiment_of(composed: ComposedExperiment, manifests: Mapping[str, Manifest]) -> Experiment:
    """Return the experiment that a composed one becomes, once the digests of its data versions are known."""
    wanted = composed.search
    runs = _trials(composed, wanted, manifests) if wanted else _grid(composed, manifests)
    return Experiment(
        name=composed.name,
        runs=runs,
        objective=composed.objective,
        cluster=composed.cluster,
        tracking=composed.tracking,
        snapshot=composed.snapshot,
        launch=composed.launch,
        checkpoint=composed.checkpoint,
        tags=composed.tags,
        env="refuse" if composed.env == "refuse" else "warn",
        choices=composed.choices,
        sweep=composed.sweep,
        overrides=composed.overrides,
        notes=composed.notes,
        ask_above=composed.ask_above,
        after=composed.after,
    )


def _grid(composed: ComposedExperiment, manifests: Mapping[str, Manifest]) -> tuple[Run, ...]:
    """Return one run per point. Raises ConfigError for two that are the same."""
    runs: dict[RunId, Run] = {}
    for point in composed.points:
        digest = _digest(point, manifests)
        run = Run(
            id=run_id(_document(point, digest)),
            point=point.point,
            config=point.config,
            resources=point.resources,
            data_digest=digest,
        )
        if run.id in runs:
            raise ConfigError(
                f"points {described(runs[run.id].point)} and {described(run.point)} are the same run",
                why="they resolve to the same model, data, trainer, seed and task",
                fix="remove one of the values, or sweep a key that changes what is computed",
            )
        runs[run.id] = run
    return tuple(runs.values())


def _trials(composed: ComposedExperiment, wanted: ComposedSearch, manifests: Mapping[str, Manifest]) -> tuple[Run, ...]:
    """Return one run per trial of an adaptive sweep. A larger `n` only adds trials: it does not enter their ids."""
    first, definition = composed.points[0], wanted.definition
    digest = _digest(first, manifests)
    templates = tuple(
        replace(each, config=point.config) for each, point in zip(wanted.templates, composed.points, strict=False)
    )
    search = Search(
        id="",
        space=definition.space,
        sampler=definition.sampler,
        pruner=definition.pruner,
        seed=definition.seed,
        objectives=definition.objectives,
        templates=templates,
    )
    written = search.to_json()
    documents = [
        {**kept, "config": _document(point, digest)}
        for kept, point in zip(written["templates"], composed.points, strict=False)
    ]
    said = {key: value for key, value in written.items() if key not in {"id", "templates"}}
    search = replace(search, id=search_id(documents, said))
    return tuple(
        Run(
            id=trial_id(search.id, number),
            point={"trial": number},
            config=templates[0].config,
            resources=first.resources,
            data_digest=digest,
            trial=Trial(search=search, number=number),
        )
        for number in range(definition.n)
    )


def _document(point: ComposedPoint, digest: str | None) -> dict[str, object]:
    return document(point.config, data_digest=digest, world_size=point.resources.world_size)


def _digest(point: ComposedPoint, manifests: Mapping[str, Manifest]) -> str | None:
    """Return the digest of the data version that a point names."""
    version = point.config["data"].get("version")
    return manifests[canonical(version)].digest if version else None
