"""The Slurm cluster keeps the contract on a real Slurm; and what is its own: arrays, its own words, its silence."""

from __future__ import annotations

import pytest
from cluster_contract import ClusterContract
from processes import ROOT, tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import output

from orchestrator.layout import ExperimentPaths
from orchestrator.slurm.cluster import SlurmCluster
from orchestrator.slurm.options import SlurmOptions
from orchestrator.testing.launches import Bench

pytestmark = pytest.mark.slurm


@pytest.fixture(autouse=True)
def _on_slurm(slurm):
    """Run each test on the session's cluster."""


class TestContract(ClusterContract):
    kind = "slurm"
    slots = 4  # one node's CPUs

    @pytest.fixture
    def cluster(self):
        return SlurmCluster(SlurmOptions(nodelist="n0", signal_seconds=1))

    @pytest.fixture
    def bench(self, cluster, tmp_path):
        folder = tmp_path / "it's a \"run's\" folder ü $(touch x) `x`" / "x"
        return Bench(paths=ExperimentPaths(folder), kind="slurm", cluster=cluster, options={"max_requeues": 0})

    def kill(self, played):
        """Kill a run's process; it is the step of the only job, and its pid counts in its node only."""
        output("scancel", "--signal=KILL", "--user=root", "--state=RUNNING")
