"""A node's own metrics: measured beside the run, in a file of their own, under the names that MLflow's UI expects."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from orchestrator.layout import ExperimentPaths
from orchestrator.local.inline import Inline
from orchestrator.records.experiment import read_experiment
from orchestrator.testing.launches import Bench, scripted
from orchestrator.tracking import Metrics, read
from orchestrator.tracking.node import Node
from orchestrator.worker.monitor.node import period

MEGA = 10**6


class NVMLError(Exception):
    pass


class Gpus:
    """NVIDIA's bindings on a machine of three GPUs, of which the last tells nothing of its power."""

    NVMLError = NVMLError

    def nvmlDeviceGetCount(self):
        return 3

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetUUID(self, handle):
        return f"GPU-{handle}abc".encode()

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=(handle + 1) * MEGA, total=10 * MEGA)

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=handle * 10)

    def nvmlDeviceGetPowerUsage(self, handle):
        if handle == 2:
            raise NVMLError
        return 50_000

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        return 200_000


def test_names_are_those_of_mlflows_own_system_metrics(tmp_path):
    expected = set()
    for monitor in (CPUMonitor(), DiskMonitor(), NetworkMonitor()):
        monitor.collect_metrics()
        expected |= set(monitor.aggregate_metrics())
    assert set(Node(tmp_path).measure()) == expected


@pytest.mark.parametrize(
    ("visible", "memory"),
    [(None, [1.0, 2.0, 3.0]), ("2,0", [3.0, 1.0]), ("GPU-1", [2.0]), ("", []), ("7", [])],
)
def test_the_runs_own_gpus_are_measured_in_its_order(tmp_path, visible, memory):
    found = Node(tmp_path, Gpus(), visible).measure()
    numbers = range(sum(name.endswith("_utilization_percentage") and name.startswith("gpu_") for name in found))
    assert [found[f"gpu_{n}_memory_usage_megabytes"] for n in numbers] == memory
    if visible is None:
        assert found["gpu_0_power_usage_percentage"] == 25.0
        assert "gpu_2_power_usage_watts" not in found
        assert found["gpu_2_memory_usage_percentage"] == 30.0


@pytest.mark.parametrize(
    ("tracking", "seconds"),
    [
        ({"kind": "embedded", "system_metrics": True}, 10),
        ({"kind": "server", "system_metrics": 3}, 3),
        ({"kind": "embedded", "system_metrics": 0.1}, 1),
        ({"kind": "embedded", "system_metrics": False}, None),
        ({"kind": "none", "system_metrics": True}, None),
        ({"kind": "embedded"}, None),
    ],
)
def test_how_often_a_node_is_measured(tracking, seconds):
    assert period(tracking) == seconds


@pytest.mark.usefixtures("tidy")
def test_a_run_that_goes_on_goes_on_in_its_nodes_curves_too(tmp_path):
    """Each attempt has a file of its own; steps, seconds since the first began, never repeat."""
    bench = Bench(
        paths=ExperimentPaths(tmp_path / "runs" / "e"),
        kind="inline",
        cluster=Inline(),
        tracking={"kind": "none-but-measured", "system_metrics": 1},
    )
    run = scripted({"steps": 3, "seconds": 0.6, "ends": ["kill", "done"]})
    for _ in range(2):
        bench.launch([run])
        bench.cluster.run()
    attempts = bench.paths.run(run.id).attempts()
    assert len(attempts) == 2
    steps = []
    for attempt in attempts:
        (file,) = attempt.system_metrics()
        lines = [record for record, _ in read(file) if isinstance(record, Metrics)]
        assert all(name.startswith("system/") for line in lines for name in line.values)
        steps += [line.step for line in lines]
    assert len(steps) >= 2
    assert steps == sorted(set(steps))
    assert read_experiment(bench.paths, {"inline": bench.cluster}).records[run.id].state.value == "done"
