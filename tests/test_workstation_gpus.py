"""GPU slots of a workstation, on a machine without GPUs: runs get numbers, and train on the CPU."""

from __future__ import annotations

import pytest
from cluster_contract import wait_for_end

from orchestrator.launch import WORKER
from orchestrator.layout import ExperimentPaths
from orchestrator.local.workstation import Workstation
from orchestrator.record import RunState
from orchestrator.testing.launches import Bench, trained

pytestmark = pytest.mark.usefixtures("tidy")


@pytest.fixture
def bench(tmp_path):
    cluster = Workstation(cpus=8, devices=[0, 1, 2, 3], grace_seconds=5.0)
    return Bench(paths=ExperimentPaths(tmp_path / "runs" / "x"), kind="workstation", cluster=cluster)


def test_runs_of_two_and_four_gpus_train_on_as_many_ranks(bench):
    runs = [trained(seed=gpus, gpus_per_node=gpus) for gpus in (2, 4)]
    bench.launch(runs, worker=WORKER)
    wait_for_end(bench)
    records = bench.records()
    assert {record.state for record in records.values()} == {RunState.DONE}, records
    assert [records[run.id].metrics["ranks"] for run in runs] == [2.0, 4.0]
