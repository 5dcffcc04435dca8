"""The real Slurm that tests run on: a cluster without and one with accounting for the session, alike in all else.

Each test gets an empty queue. What is asked of Slurm, and what Slurm says, may depend on whether there is accounting:
the cluster contract, Slurm's own words, launchers that die, launching from within a job, impossible shapes, runs that
die, and what several ranks do when one dies run on both (`on_both`). What happens within a job, on a node or before
Slurm is asked (signals in a training, staging, frozen code, preflight's arithmetic, debug runs) is the same on both,
and runs on the one without; what `sacct` itself says of each signal, accounts, QOS and the limits of associations need
the other (`accounted_slurm`).
"""

import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import wait_for
from real_slurm import output, processes_of

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
        wait_for(
            lambda: not output("squeue", "--noheader") and all(each.state == "IDLE" for each in cluster.nodes()),
            "an empty queue and idle nodes",
        )


def alike(tmp_path_factory, *, accounting):
    """A cluster of four nodes with two fake GPUs each. All nodes see pytest's folders."""
    shares = (str(tmp_path_factory.getbasetemp()),)
    options = Options(nodes=4, gpus=2, grace_seconds=4, kill_wait_seconds=12, accounting=accounting, shares=shares)
    return running_devcluster(options)


@pytest.fixture(scope="session")
def devcluster(tmp_path_factory):
    with alike(tmp_path_factory, accounting=False) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def accounted_devcluster(tmp_path_factory):
    with alike(tmp_path_factory, accounting=True) as cluster:
        yield cluster


@pytest.fixture
def accounting():
    """Whether `slurm` has accounting; `on_both` says both."""
    return False


@pytest.fixture
def slurm(accounting, request):
    """One of the session's clusters, with an empty queue; Slurm's commands in this test talk to it."""
    with empty_queue(request.getfixturevalue("accounted_devcluster" if accounting else "devcluster")) as cluster:
        yield cluster


@pytest.fixture
def accounted_slurm(accounted_devcluster):
    """The session's cluster with accounting, with an empty queue; Slurm's commands in this test talk to it."""
    with empty_queue(accounted_devcluster) as cluster:
        yield cluster


on_both = pytest.mark.parametrize("accounting", [False, True], ids=["plain", "accounting"])
"""Marks what runs on a Slurm without and on one with accounting."""
