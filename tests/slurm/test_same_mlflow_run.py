"""A run on a real Slurm that sends itself to a real MLflow server: one child, whatever becomes of its job."""

from __future__ import annotations

import pytest
from cluster_contract import Gate, wait_for_end
from faulty_server import mlflow_server
from mlflow import MlflowClient
from processes import tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import in_campaign, output

from orchestrator.config import schema
from orchestrator.launch.launch import WORKER
from orchestrator.layout import ExperimentPaths
from orchestrator.records.record import RunState
from orchestrator.slurm.cluster import SlurmCluster
from orchestrator.slurm.options import SlurmOptions
from orchestrator.testing.launches import Bench, trained

pytestmark = pytest.mark.slurm
STEPS = 100


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with mlflow_server(tmp_path_factory.mktemp("mlflow server")) as address:
        yield address


@pytest.fixture
def bench(slurm, server, tmp_path):
    tracking = schema.tracking({"kind": "server", "uri": server, "experiment": str(tmp_path), "end_seconds": 60})
    options = SlurmOptions(partition="preemptible", nodelist="n0")
    paths = ExperimentPaths(tmp_path / "it's a run's folder" / "x")
    return Bench(paths=paths, kind="slurm", cluster=SlurmCluster(options), tracking=tracking)


@in_campaign
def test_a_preempted_run_goes_on_in_the_same_mlflow_run(bench, server, tmp_path):
    gate, client = Gate(tmp_path / "open"), MlflowClient(server)
    run = trained(gate.script(seconds=1.0), steps=STEPS)

    def child():
        """Return the only child there is; None as long as there is none."""
        found = client.get_experiment_by_name(str(tmp_path))
        runs = client.search_runs([found.experiment_id]) if found else []
        children = [each for each in runs if each.data.tags["orch.kind"] == "run"]
        assert len(children) <= 1
        return children[0] if children else None

    def says(status, attempt):
        seen = child()
        return seen and seen.info.status == status and len(bench.paths.run(run.id).attempts()) == attempt

    bench.launch([run], worker=WORKER)
    wait_for(lambda: says("RUNNING", 1) and child().data.metrics.get("ranks"), "the server to know it, with a metric")
    first = child().info.run_id
    urgent = ["--partition=urgent", "--nodelist=n0", "--exclusive", "--output=/dev/null", "--wrap=sleep 3600"]
    job = output("sbatch", "--parsable", *urgent)
    wait_for(lambda: says("SCHEDULED", 1), "the server to hear that it waits for its job")
    output("scancel", job)
    wait_for(lambda: says("RUNNING", 2), "it to be RUNNING again")
    gate.open()
    wait_for_end(bench)
    record = bench.records()[run.id]
    assert record.state is RunState.DONE
    assert [attempt.state for attempt in record.attempts] == [RunState.INTERRUPTED, RunState.DONE]
    wait_for(lambda: says("FINISHED", 2), "the server to hear of its end")
    history = client.get_metric_history(first, "ranks")
    assert sorted(metric.step for metric in history) == list(range(STEPS))


def test_each_node_of_a_run_has_system_metrics_of_its_own_in_the_same_mlflow_run(slurm, server, tmp_path):
    name = f"{tmp_path} nodes"
    tracking = schema.tracking({"kind": "server", "uri": server, "experiment": name, "system_metrics": 1})
    paths = ExperimentPaths(tmp_path / "x")
    bench = Bench(paths=paths, kind="slurm", cluster=SlurmCluster(SlurmOptions()), tracking=tracking)
    run = trained({"seconds": 0.2}, steps=6, nodes=2, gpus_per_node=1)
    bench.launch([run], worker=WORKER)
    wait_for_end(bench)
    assert bench.records()[run.id].state is RunState.DONE
    client = MlflowClient(server)

    def seen():
        """Return the names of a node's metric, by the nodes that have it."""
        found = client.get_experiment_by_name(name)
        children = client.search_runs([found.experiment_id], "tags.`orch.kind` = 'run'") if found else []
        names = [key.split("/") for each in children for key in each.data.metrics if key.startswith("system/")]
        return {node for _, node, metric in names if metric == "cpu_utilization_percentage"}

    nodes = {path.name.split(".")[1] for path in paths.run(run.id).attempt(1).system_metrics()}
    assert len(nodes) == 2
    wait_for(lambda: seen() == nodes, "the metrics of both nodes to arrive")
