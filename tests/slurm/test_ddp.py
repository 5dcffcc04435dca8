"""Several ranks on a real Slurm: they train as one, log once, and one that dies takes the run with it, soon."""

from __future__ import annotations

from itertools import product

import pytest
from cluster_contract import Gate, wait_for_end
from processes import tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import empty_queue, in_campaign, output, processes_with, running_devcluster

from orchestrator import tracking
from orchestrator.launch.launch import WORKER
from orchestrator.layout import ExperimentPaths
from orchestrator.records.checkpoints import saved_by
from orchestrator.records.record import RunState
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


@pytest.mark.parametrize("nodes", [pytest.param(1, marks=in_campaign), 2])
def test_two_ranks_on_each_node_train_and_one_logs(nodes, bench):
    assert_all_ranks_train_and_one_logs(bench, nodes=nodes, gpus=2)


@in_campaign
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
    assert [path.name for path in saved_by(attempt)] == ["step-6.ckpt"]
    assert not attempt.checkpoints.exists()
    assert len(bench.paths.run(run.id).attempts()) == 1


DEATHS = list(product([False, True], ["raise", "exit", "kill"], [1, 2]))
PAIRS = ((False, "raise", 1), (False, "exit", 2), (False, "kill", 1), (True, "raise", 2), (True, "kill", 2))


@pytest.mark.parametrize(
    ("accounting", "does", "nodes"),
    [pytest.param(*death, marks=() if death in PAIRS else in_campaign) for death in DEATHS],
)
def test_a_dead_rank_ends_the_run_in_seconds_and_only_a_killed_one_is_no_failure(does, nodes, bench):
    run = trained({"does": does, "seconds": 0.1}, steps=10_000, nodes=nodes, gpus_per_node=2 // nodes)
    bench.launch([run], worker=WORKER)
    wait_for_end(bench)
    record = bench.records()[run.id]
    assert record.state is (RunState.INTERRUPTED if does == "kill" else RunState.FAILED)
    assert record.reason
    if does == "raise":  # what the others say who lose their connection is no cause
        assert record.reason.startswith("ArithmeticError at net.py:")
    assert logged(bench, run)[-1][0] <= 3


def test_a_rank_that_is_killed_sooner_than_others_when_slurm_stops_the_job_is_no_failure(bench, tmp_path):
    """The others lose their connection then, and have time to say so: from SIGTERM to SIGKILL (KillWait)."""
    kill = tmp_path / "kill"
    run = trained({"does": "hang", "until": str(kill)}, steps=6, nodes=2, gpus_per_node=1)
    bench.launch([run], worker=WORKER)
    wait_for(kill.with_name("kill hung").exists, "rank 1 to hang, and rank 0 to wait for it")
    output("scontrol", "requeue", bench.records()[run.id].job)
    kill.touch()
    wait_for_end(bench)
    record = bench.records()[run.id]
    assert (record.state, record.reason) == (RunState.DONE, "")
    assert [attempt.state for attempt in record.attempts] == [RunState.INTERRUPTED, RunState.DONE]
    assert record.attempts[0].reason == "requeued in Slurm, stopped by SIGTERM"


@in_campaign
def test_a_run_goes_on_when_one_of_its_nodes_is_shut_down(bench, slurm, tmp_path):
    """In order, as for a reboot: first all processes there get SIGTERM, of which Slurm knows nothing."""
    gate = Gate(tmp_path / "open")
    run = trained(gate.script(seconds=0.6), steps=60, nodes=2, gpus_per_node=1)
    bench.launch([run], worker=WORKER)
    wait_for(lambda: bench.paths.run(run.id).attempt(1).metrics.exists() and len(logged(bench, run)) > 25, "epoch 2")
    (rank,) = [each for each in processes_with(str(bench.paths.path)) if each.environ().get("SLURM_PROCID") == "1"]
    node = rank.environ()["SLURMD_NODENAME"]
    rank.terminate()
    wait_for(lambda: bench.records()[run.id].state is RunState.QUEUED, "the run to save itself, and requeue")
    output("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=reboot")
    slurm.crash(node)
    try:
        gate.open()
        wait_for_end(bench)
    finally:
        slurm.restore(node)
    record = bench.records()[run.id]
    assert (record.state, record.reason) == (RunState.DONE, "")
    assert [attempt.state for attempt in record.attempts] == [RunState.INTERRUPTED, RunState.DONE]
    assert [step for number in (1, 2) for step, _ in logged(bench, run, number)] == list(range(60))
