"""What a cluster could not do yet: the next `orch` command hands over what waits, and puts its jobs right."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.cluster import Cluster
from orchestrator.records.experiment import ExperimentState


def submit_pending(state: ExperimentState, cluster_of: Mapping[str, Cluster]) -> int:
    """Hand over what waits in the launches of an experiment; return how many runs were taken."""
    numbers = {record.planned.launch for record in state.records.values() if record.awaits_cluster}
    launches = [launch for launch in state.launches if launch.number in numbers]
    return sum(cluster_of[launch.header.cluster_kind].submit_pending(launch.paths) for launch in launches)
