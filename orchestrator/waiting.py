"""Runs whose cluster had no room for them: whoever looks hands them over, as far as there is room by then."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.cluster import Cluster
from orchestrator.ledger import Ledger
from orchestrator.record import RunState


def hand_over(book: Ledger, cluster_of: Mapping[str, Cluster]) -> int:
    """Hand over what waits in the launches of an experiment; return how many runs were taken."""
    numbers = {record.planned.launch for record in book.records.values() if record.state is RunState.WAITING}
    launches = [launch for launch in book.launches if launch.number in numbers]
    return sum(cluster_of[launch.header["cluster"]["kind"]].go_on(launch.paths) for launch in launches)
