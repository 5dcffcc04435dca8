"""A large launch really goes through: each run ends in one final state, none is lost, none is run twice.

The campaign `scale` does so with 500, `make scale` with 10,000 or as many as you like; both print what it took. In the
middle of it slurmctld is restarted, while jobs end, and the same is launched again.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter

import pytest
from processes import tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import empty_queue, output, running_devcluster

from orchestrator.layout import ExperimentPaths
from orchestrator.records.record import RunState
from orchestrator.slurm.cluster import SlurmCluster, jobs_of
from orchestrator.slurm.devcluster import Options
from orchestrator.slurm.options import SlurmOptions
from orchestrator.testing.launches import Bench, scripted

pytestmark = [pytest.mark.slurm, pytest.mark.campaign("scale"), pytest.mark.campaign("scale-10000")]

RUNS = int(os.environ.get("SCALE_RUNS", "60"))
ENDS = {3: ("raise", RunState.FAILED), 7: ("kill", RunState.INTERRUPTED)}
"""How the runs end whose seeds leave such a remainder by 25; all others are done."""
STILL_SECONDS = 300
"""When nothing has begun or ended for so long, it never will."""


@pytest.fixture
def wide_slurm(tmp_path_factory):
    """A cluster of few CPUs, as this machine has, whose queue holds everything in some arrays."""
    shares = (str(tmp_path_factory.getbasetemp()),)
    options = Options(
        nodes=4, cpus=2, gpus=0, max_array_size=max(2, RUNS // 3), max_job_count=max(10_000, 3 * RUNS), shares=shares
    )
    with running_devcluster(options) as cluster, empty_queue(cluster):
        yield cluster


def test_a_large_launch_ends_in_one_final_state_a_run(wide_slurm, tmp_path, report):
    bench = Bench(
        paths=ExperimentPaths(tmp_path / "it's large" / "x"), kind="slurm", cluster=SlurmCluster(SlurmOptions())
    )
    expected = {run.id: state for run, state in map(run_of, range(RUNS))}
    runs = [run for run, _ in map(run_of, range(RUNS))]

    began = time.monotonic()
    launched = bench.launch(runs)
    report(f"launch of {RUNS} runs", time.monotonic() - began)
    assert launched.waiting is None
    assert sum(len(job.indices) for job in jobs_of(launched.paths)) == RUNS

    wait_until_begun(bench, RUNS // 3)
    output("scontrol", "shutdown", "slurmctld")
    wait_for(lambda: wide_slurm.status()["slurmctld"] == "stopped", "slurmctld to have saved its state")
    wide_slurm.restore("slurmctld")
    report("a third, and slurmctld is back", time.monotonic() - began)
    again = [run for run in runs if expected[run.id] is RunState.DONE]  # the others it would rightly start again
    assert bench.launch(again).paths is None, "a second launch took some for lost"

    wait_until_begun(bench, RUNS)
    report("all have begun", time.monotonic() - began)
    records = wait_for_end(bench)
    report(f"all {RUNS} runs ended", time.monotonic() - began)
    assert {run: record.state for run, record in records.items()} == expected
    assert set(Counter(played.run for played in bench.played()).values()) == {1}
    assert len(bench.played()) == RUNS
    assert {tuple(attempt.number for attempt in record.attempts) for record in records.values()} == {(1,)}
    finals = Counter(name.split(".")[0] for name in os.listdir(bench.paths.index) if not name.endswith(".running"))
    assert finals == dict.fromkeys((run for run, state in expected.items() if state is not RunState.INTERRUPTED), 1)
    assert len(bench.paths.launches()) == 1


def run_of(seed):
    """Return a run of one step, and the state in which it is to end."""
    ends, state = ENDS.get(seed % 25, ("done", RunState.DONE))
    return scripted({"ends": [ends]}, seed=seed), state


def wait_until_begun(bench, count):
    """Wait until so many runs have begun, as long as there is any news."""
    folder, seen, since = bench.paths.path / "played", 0, time.monotonic()
    while seen < count:
        found = len(os.listdir(folder)) if folder.exists() else 0
        if found != seen:
            seen, since = found, time.monotonic()
        assert time.monotonic() - since < STILL_SECONDS, f"{seen} of {count} runs have begun, and no more do; {queue()}"
        time.sleep(0.5)


def queue():
    """Return what Slurm says of the jobs that are left."""
    return output("scontrol", "--oneliner", "show", "jobs")


def wait_for_end(bench):
    """Return the records once nothing waits or runs."""
    end = time.monotonic() + STILL_SECONDS
    while True:
        records = bench.records()
        left = Counter(record.state.value for record in records.values() if record.state.active)
        if not left:
            return records
        assert time.monotonic() < end, f"all have begun, and do not end: {left}"
        time.sleep(1)


@pytest.fixture
def report(capsys):
    """Give a function that tells, in `make scale`, how long something took."""

    def say(what, seconds):
        if "SCALE_RUNS" in os.environ:
            with capsys.disabled():
                sys.stdout.write(f"\n{what}: {seconds:.1f} s")

    return say
