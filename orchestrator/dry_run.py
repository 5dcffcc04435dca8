"""The plan of a launch: its steps, and the resources it would request. Nothing is written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from orchestrator.cluster import Capacity, Scratch
from orchestrator.clusters import cluster_for
from orchestrator.launch.estimate import (
    DataTotal,
    DiskForecast,
    Models,
    ShapeTotal,
    data_totals,
    disk_forecast,
    shape_totals,
)
from orchestrator.launch.facts import Facts
from orchestrator.launch.launch import data_of
from orchestrator.launch.packing import sized
from orchestrator.launch.plan import Rerun, Step, make_plan, to_do
from orchestrator.layout import LaunchPaths, cache_dir
from orchestrator.prepare import Prepared, search_path
from orchestrator.project import Project
from orchestrator.refresh import read
from orchestrator.slurm import preview, script


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a launch would do now: its steps, and the resources it would request.

    `acting` are the steps that start runs, `launch` is the folder that it would get, `arrays` what it would submit
    (None: the cluster has no arrays).
    """

    steps: tuple[Step, ...]
    acting: tuple[Step, ...]
    launch: LaunchPaths
    arrays: tuple[script.Array, ...] | None
    shapes: tuple[ShapeTotal, ...]
    data: tuple[DataTotal, ...]
    capacity: Capacity
    checkpoints: DiskForecast
    notes: tuple[str, ...]


def plan(project: Project, prepared: Prepared, *, rerun: Rerun = "never", measure_models: bool = False) -> Plan:
    """Return what a launch would do now. `measure_models`: build models whose checkpoint size no earlier run shows."""
    experiment, facts = prepared.experiment, prepared.facts
    paths, cluster = project.runs.experiment(experiment.name), cluster_for(experiment.cluster)
    state = read(project, experiment.name)
    steps = make_plan(experiment.runs, state.records, code=facts.code_id, rerun=rerun)
    acting = sized(to_do(steps), state.records)
    needs = {step.run.resources for step in acting}
    notes = cluster.check(needs, paths.path, data_of(acting, facts.manifests)) if acting else ()
    capacity = cluster.capacity() if acting else Capacity(scratch=Scratch(where=""))  # no query without steps
    arrays = preview.arrays(cluster, acting, facts, paths, canary=experiment.launch.canary) if acting else None
    counted = None if arrays is None else Counter(array.shape.resources for array in arrays)
    jobs = None if arrays is None else preview.jobs(arrays)
    checkpoints = disk_forecast(acting, state.records, paths, models(project, facts, measure=measure_models))
    return Plan(
        steps=steps,
        acting=tuple(acting),
        launch=paths.launch(state.next_number),
        arrays=arrays,
        capacity=capacity,
        shapes=shape_totals(acting, arrays=counted, jobs=jobs, default_hours=capacity.hours),
        data=data_totals(acting, facts.manifests),
        checkpoints=checkpoints,
        notes=(*notes, *([checkpoints.note] if checkpoints.note else [])),
    )


def scripts(prepared: Prepared, planned: Plan) -> list[tuple[tuple[Step, ...], str]]:
    """Return the scripts that a launch would pass to sbatch, each with the steps of its array. Raises RequestError."""
    return preview.scripts(prepared.experiment, planned.acting, planned.launch, planned.arrays)


def models(project: Project, facts: Facts, *, measure: bool) -> Models:
    """Return a forecast of the models' checkpoint sizes; with `measure`, models never trained are built for it."""
    return Models(
        project=project.folder,
        search_path=search_path(project),
        measure=measure,
        code=f"{facts.code_id} {facts.environment.digest}",
        cache=cache_dir() / "checkpoints",
    )
