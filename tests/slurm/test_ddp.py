"""Several ranks on a real Slurm: they train as one, log once, and one that dies takes the run with it, soon."""

from __future__ import annotations

import pytest
from cluster_contract import wait_for_end
from processes import tidy  # noqa: F401 - a fixture

from orchestrator import tracking
from orchestrator.launch import WORKER
from orchestrator.layout import ExperimentPaths
from orchestrator.record import RunState
from orchestrator.slurm.cluster import SlurmCluster
from orchestrator.slurm.options import SlurmOptions
from orchestrator.testing.launches import Bench, trained

pytestmark = pytest.mark.slurm
SHAPES = {"1 x 2": (1, 2), "1 x 4": (1, 4), "2 x 2": (2, 2)}


@pytest.fixture
def bench(slurm, tmp_path):
    paths = ExperimentPaths(tmp_path / "it's a run's folder" / "x")
    return Bench(paths=paths, kind="slurm", cluster=SlurmCluster(SlurmOptions()))


def logged(bench, run, attempt=1):
    """Return the (step, ranks) that an attempt logged."""
    records = [record for record, _ in tracking.read(bench.paths.run(run.id).attempt(attempt).metrics)]
    return [(one.step, one.values["ranks"]) for one in records if isinstance(one, tracking.Metrics)]


@pytest.mark.parametrize("shape", SHAPES)
def test_all_ranks_train_and_one_logs(shape, bench):
    nodes, gpus = SHAPES[shape]
    run = trained(steps=6, nodes=nodes, gpus_per_node=gpus, cpus_per_node=gpus)
    bench.launch([run], worker=WORKER)
    wait_for_end(bench)
    record = bench.records()[run.id]
    assert record.state is RunState.DONE, record
    assert [ranks for _, ranks in logged(bench, run)] == [nodes * gpus] * 6
    attempt = bench.paths.run(run.id).attempt(1)
    names = {path.name for path in attempt.path.iterdir()}
    assert {name for name in names if name.startswith(("events", "metrics"))} == {"events.jsonl", "metrics.jsonl"}
    assert {name for name in names if name.startswith("log")} == {"log", *(f"log.rank{i}" for i in range(1, nodes * gpus))}
    assert sorted(path.name for path in attempt.checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]
    assert len(bench.paths.run(run.id).attempts()) == 1


@pytest.mark.parametrize("does", ["raise", "exit", "kill"])
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_dead_rank_fails_the_run_in_seconds(does, nodes, bench):
    run = trained({"does": does, "seconds": 0.1}, steps=10_000, nodes=nodes, gpus_per_node=2 // nodes)
    bench.launch([run], worker=WORKER)
    wait_for_end(bench)
    record = bench.records()[run.id]
    print(record)
    assert record.state is RunState.FAILED
    assert record.reason
    assert record.failure.traceback
    assert logged(bench, run)[-1][0] <= 3
