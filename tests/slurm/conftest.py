"""The real Slurm that tests run on: one cluster for the session, an empty queue for each test."""

import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from real_slurm import output, processes_of, wait_for

from orchestrator.slurm.devcluster import DevCluster, Options, available


@contextmanager
def running_devcluster(options):
    """Bring up a cluster in a folder of its own, and delete all of it afterwards. Skips, with the reason, elsewhere."""
    if (reason := available(accounting=options.accounting)) is not None:
        pytest.skip(f"no real Slurm here: {reason}")
    # Not in pytest's own folder, whose name is too long for sockets; below /tmp, to be bound back into the nodes.
    with tempfile.TemporaryDirectory(prefix="dc-", dir="/tmp") as folder:
        cluster = DevCluster(Path(folder) / "state")
        try:
            cluster.up(options)
            yield cluster
        finally:
            cluster.down()
        assert not processes_of(cluster)


@contextmanager
def empty_queue(cluster):
    """Point Slurm's commands of this process at a cluster; its jobs are gone and its nodes idle afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environ().items():
            patch.setenv(name, value)
        yield cluster
        output("scancel", "--user=root", "--state=RUNNING", "--signal=KILL", "--full")  # some ignore all others
        output("scancel", "--user=root")
        wait_for(lambda: not output("squeue", "--noheader") and all(each.state == "IDLE" for each in cluster.nodes()))


@pytest.fixture(scope="session")
def devcluster(tmp_path_factory):
    """A cluster of four nodes with two fake GPUs each, without accounting. All nodes see pytest's folders."""
    shares = (str(tmp_path_factory.getbasetemp()),)
    with running_devcluster(Options(nodes=4, gpus=2, grace_seconds=4, kill_wait_seconds=6, shares=shares)) as cluster:
        yield cluster


@pytest.fixture
def slurm(devcluster):
    """The session's cluster with an empty queue; Slurm's commands in this test talk to it."""
    with empty_queue(devcluster) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def accounted_devcluster(tmp_path_factory):
    """A cluster of two nodes with accounting, and 64 MB of /tmp on each."""
    shares = (str(tmp_path_factory.getbasetemp()),)
    with running_devcluster(Options(nodes=2, tmp_mb=64, accounting=True, shares=shares)) as cluster:
        yield cluster


@pytest.fixture
def accounted_slurm(accounted_devcluster):
    """The session's cluster with accounting, with an empty queue; Slurm's commands in this test talk to it."""
    with empty_queue(accounted_devcluster) as cluster:
        yield cluster
