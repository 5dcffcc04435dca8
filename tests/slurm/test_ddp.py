"""Several ranks on a real Slurm: they train as one, log once, and one that dies takes the run with it, soon."""

from __future__ import annotations

import pytest
from cluster_contract import wait_for_end
from conftest import empty_queue, running_devcluster
from processes import tidy  # noqa: F401 - a fixture

from orchestrator import tracking
from orchestrator.launch import WORKER
from orchestrator.layout import ExperimentPaths
from orchestrator.record import RunState
from orchestrator.slurm.cluster import SlurmCluster
from orchestrator.slurm.devcluster import Options
from orchestrator.slurm.options import SlurmOptions
from orchestrator.testing.launches import Bench, trained

pytestmark = pytest.mark.slurm


@pytest.fixture
def bench(slurm, tmp_path):
    return bench_in(tmp_path)


def bench_in(folder):
    paths = ExperimentPaths(folder / "it's a run's folder" / "x")
    return Bench(paths=paths, kind="slurm", cluster=SlurmCluster(SlurmOptions()))


@pytest.fixture
def wide_slurm(tmp_path_factory):
    """A cluster of one node with four GPUs."""
    shares = (str(tmp_path_factory.getbasetemp()),)
    with running_devcluster(Options(nodes=1, gpus=4, shares=shares)) as cluster, empty_queue(cluster):
        yield cluster


def logged(bench, run, attempt=1):
    """Return the (step, ranks) that an attempt logged."""
    records = [record for record, _ in tracking.read(bench.paths.run(run.id).attempt(attempt).metrics)]
    return [(one.step, one.values["ranks"]) for one in records if isinstance(one, tracking.Metrics)]


@pytest.mark.parametrize("nodes", [1, 2])
def test_two_ranks_on_each_node_train_and_one_logs(nodes, bench):
    assert_all_ranks_train_and_one_logs(bench, nodes=nodes, gpus=2)


def test_four_ranks_on_one_node_train_and_one_logs(wide_slurm, tmp_path):
    assert_all_ranks_train_and_one_logs(bench_in(tmp_path), nodes=1, gpus=4)


def assert_all_ranks_train_and_one_logs(bench, *, nodes, gpus):
    run = trained(steps=6, nodes=nodes, gpus_per_node=gpus, cpus_per_node=gpus)
    bench.launch([run], worker=WORKER)
    wait_for_end(bench)
    record = bench.records()[run.id]
    assert record.state is RunState.DONE, record.reason
    assert logged(bench, run) == [(step, nodes * gpus) for step in range(6)]
    assert record.last.usage["memory_bytes"] > gpus * 250e6  # of all ranks of a node: one takes less than twice that
    attempt = bench.paths.run(run.id).attempt(1)
    names = {path.name for path in attempt.path.iterdir()}
    assert {name for name in names if name.startswith(("events", "metrics"))} == {"events.jsonl", "metrics.jsonl"}
    logs = {"log", *(f"log.rank{rank}" for rank in range(1, nodes * gpus))}
    assert {name for name in names if name.startswith("log")} == logs
    assert sorted(path.name for path in attempt.checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert len(bench.paths.run(run.id).attempts()) == 1


@pytest.mark.parametrize("does", ["raise", "exit", "kill"])
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_dead_rank_fails_the_run_in_seconds(does, nodes, bench):
    run = trained({"does": does, "seconds": 0.1}, steps=10_000, nodes=nodes, gpus_per_node=2 // nodes)
    bench.launch([run], worker=WORKER)
    wait_for_end(bench)
    record = bench.records()[run.id]
    assert record.state is RunState.FAILED
    assert record.reason
    if does == "raise":  # what the others say who lose their connection is no cause
        assert record.reason.startswith("ArithmeticError at net.py:")
    assert logged(bench, run)[-1][0] <= 3
