"""The real Slurm that tests run on: a cluster without and one with accounting for the session, alike in all else.

Each test gets an empty queue. What is asked of Slurm, and what Slurm says, may depend on whether there is accounting:
the cluster contract, Slurm's own words, launchers that die, launching from within a job, impossible shapes, runs that
die, and what several ranks do when one dies run on both (`on_both`). What happens within a job, on a node or before
Slurm is asked (signals in a training, staging, frozen code, preflight's arithmetic, debug runs) is the same on both,
and runs on the one without; what `sacct` itself says of each signal, accounts, QOS and the limits of associations need
the other (`accounted_slurm`). Of what is told twice, `make test` tells the less likely to differ once
(`plain_first`, `accounting_first`); the campaign `slurm` tells the rest.
"""

import os
import shutil

import pytest
from cluster_contract import Gate
from real_slurm import empty_queue, running_devcluster

from orchestrator.slurm.devcluster import Options


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


@pytest.fixture
def gate(tmp_path):
    """What runs of a test wait for: it is opened at the test's end, if not before."""
    gate = Gate(tmp_path / "open")
    yield gate
    gate.open()


@pytest.fixture
def stand_in(tmp_path):
    """What puts a program of ours before Slurm's of that name; `{real}` in its text is Slurm's."""
    folder = tmp_path / "site's programs"
    folder.mkdir()

    before = os.environ["PATH"]

    def make(name, text):
        program = folder / name
        program.write_text(f"#!/bin/bash\n{text.replace('{real}', shutil.which(name, path=before) or '')}\n")
        program.chmod(0o755)
        return program

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder), prepend=":")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # what others have answered is not known
        yield make
