"""A preview of a launch: the arrays that it would submit, and their scripts, before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from orchestrator.cluster import Cluster
from orchestrator.errors import RequestError
from orchestrator.launch.facts import Facts
from orchestrator.launch.packing import packs
from orchestrator.launch.plan import Step
from orchestrator.layout import ExperimentPaths, LaunchPaths
from orchestrator.slurm import script
from orchestrator.slurm.cluster import SlurmCluster
from orchestrator.slurm.options import SlurmOptions
from orchestrator.spec import Resources
from orchestrator.spec.experiment import Experiment
from orchestrator.system.files import listed

TOKEN = "TOKEN"  # noqa: S105 - stands for what is not a secret
"""The placeholder in a planned script for the launch's token, which is generated when the launch is published."""


def arrays(
    cluster: Cluster, acting: Sequence[Step], facts: Facts, paths: ExperimentPaths, *, canary: int
) -> tuple[script.Array, ...] | None:
    """Return the arrays that a launch of these steps would submit; None if the cluster is not Slurm."""
    if not isinstance(cluster, SlurmCluster):
        return None
    unwritten = {
        pending.snapshot.tree: pending.folders
        for pending in facts.code
        if not listed(paths.code(pending.snapshot.tree).header)
    }
    codes = {step.code: tuple(paths.python_path(step.code, unwritten=unwritten)) for step in acting}
    sizes = {digest: manifest.bytes for digest, manifest in facts.manifests.items()}
    later = {index for pack in packs(acting, canary=canary) for index in pack[1:]}  # a pack is keyed by its first run
    shapes = {
        index: cluster.shape(step.run.resources, codes[step.code], data_bytes=sizes.get(step.run.data_digest or "", 0))
        for index, step in enumerate(acting)
        if index not in later
    }
    return tuple(cluster.arrays_of(shapes))


def jobs(arrays: Iterable[script.Array]) -> Counter[Resources]:
    """Return the number of jobs of each shape."""
    return sum((Counter({array.shape.resources: len(array.indices)}) for array in arrays), Counter())


def scripts(
    experiment: Experiment, acting: Sequence[Step], launch: LaunchPaths, planned: Sequence[script.Array] | None
) -> list[tuple[tuple[Step, ...], str]]:
    """Return, for each array that a launch would submit, its steps and its sbatch script.

    A script contains the number that the launch will get unless another launch comes first, and TOKEN for its token.
    Raises RequestError for a cluster that is not Slurm.
    """
    cluster = SlurmCluster(SlurmOptions.parse(experiment.cluster)) if experiment.cluster["kind"] == "slurm" else None
    if cluster is None:
        raise RequestError(
            f"cluster={experiment.cluster['kind']} submits no scripts",
            why="only a Slurm cluster does",
            fix="orch plan --sbatch ... cluster=slurm, or a site's own profile",
        )
    runs = {pack[0]: pack for pack in packs(acting, canary=experiment.launch.canary)}
    return [
        (
            tuple(acting[index] for first in array.indices for index in runs.get(first, [first])),
            cluster.script_of(array, launch, experiment=experiment.name, token=TOKEN, after=experiment.after),
        )
        for array in planned or ()
    ]
