"""Use a real Slurm from a test: commands that must succeed, clusters, jobs and their processes."""

import os
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from processes import wait_for

from orchestrator.layout import ExperimentPaths
from orchestrator.slurm.cluster import SlurmCluster
from orchestrator.slurm.devcluster import DevCluster, available
from orchestrator.slurm.options import SlurmOptions
from orchestrator.testing.launches import Bench


def output(*argv, cwd="/"):
    """Run a program that must succeed, and return its output, stripped."""
    done = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv} ended with {done.returncode}: {done.stderr}"
    return done.stdout.strip()


def bench_of(folder, **options):
    """Return an experiment below a folder, on Slurm with these options of `cluster`."""
    cluster = SlurmCluster(SlurmOptions.parse(options))
    return Bench(paths=ExperimentPaths(folder / "a run's folder" / "x"), kind="slurm", cluster=cluster)


def submit(folder, body, *options):
    """Submit a shell script whose job writes to `<folder>/log`, and return the job's id."""
    script = folder / f"job {time.monotonic_ns()}.sh"
    script.write_text(f"#!/bin/bash\n{body}\n")
    log = ("--open-mode=append", f"--output={folder}/log")
    return output("sbatch", "--parsable", *log, *options, str(script), cwd=folder)


def job_state(job):
    """Return a job's state according to squeue; empty for a job that has ended."""
    return output("squeue", "--noheader", "--states=PD,R,CG,S,CF", f"--jobs={job}", "--format=%T")


def processes_with(text):
    """Return the processes of this machine, other than this one, that have a text in their command line."""
    found = [(each, " ".join(each.info["cmdline"] or ())) for each in psutil.process_iter(["cmdline"])]
    return [each for each, line in found if text in line and each.pid != os.getpid()]


def processes_of(cluster):
    """Return the processes started with a cluster's SLURM_CONF: its daemons, their children, and its jobs."""
    conf, found = str(cluster.slurm_conf), psutil.process_iter(["environ", "status"])
    alive = [each for each in found if each.info["status"] != psutil.STATUS_ZOMBIE and each.pid != os.getpid()]
    return [each for each in alive if (each.info["environ"] or {}).get("SLURM_CONF") == conf]


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
        output("scancel", "--user=root", "--state=RUNNING", "--signal=KILL", "--full")  # some ignore others
        output("scancel", "--user=root")
        wait_for(
            lambda: not output("squeue", "--noheader") and all(each.state == "IDLE" for each in cluster.nodes()),
            "an empty queue and idle nodes",
        )


on_both = pytest.mark.parametrize("accounting", [False, True], ids=["plain", "accounting"])
"""Runs a test on a Slurm without and on one with accounting."""

in_campaign = pytest.mark.campaign("slurm")
plain_first, accounting_first = (
    pytest.mark.parametrize(
        "accounting",
        [pytest.param(each, marks=() if each == first else in_campaign) for each in (False, True)],
        ids=["plain", "accounting"],
    )
    for first in (False, True)
)
"""The same, but only the campaign runs it with accounting."""
