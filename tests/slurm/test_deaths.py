"""Runs that die on a real Slurm without a word: whoever looks next puts status, index and MLflow right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from cluster_contract import Gate
from processes import ROOT, of_this_test, tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import accounting_first, output, plain_first

from orchestrator.layout import RunsRoot
from orchestrator.project import Project
from orchestrator.records.attempts import read_marks
from orchestrator.records.record import RunState
from orchestrator.slurm.cluster import SlurmCluster, jobs_of
from orchestrator.slurm.options import SlurmOptions
from orchestrator.testing.launches import Bench, scripted
from orchestrator.tracking import stores

pytestmark = [
    pytest.mark.slurm,
    # MLflow's own tables use a loader that SQLAlchemy 2.1 deprecates.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]
MINUTE = 1 / 60


class Desk:
    """A folder for runs, and the terminal of somebody who looks at them."""

    def __init__(self, folder):
        self.folder, self.gate = folder, Gate(folder / "open")
        self.project = Project(folder=folder, runs=RunsRoot(folder / "it's runs"))

    def bench(self, name, *, tracking="none", **options):
        cluster = SlurmCluster(SlurmOptions(signal_seconds=1, **options))
        paths = self.project.runs.experiment(name)
        return Bench(paths=paths, kind="slurm", cluster=cluster, tracking={"kind": tracking})

    def orch(self, *words):
        argv = [sys.executable, "-m", "orchestrator", *words, "--runs", str(self.project.runs.path)]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(argv, cwd=self.folder, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def run(self, name, run):
        """Return what status says of a run, as JSON."""
        found = json.loads(self.orch("status", name, "--json"))["runs"]
        return SimpleNamespace(**next(one for one in found if one["run"] == run.id))

    def children(self, name):
        """Return the states of an experiment's child runs in MLflow, by our run id."""
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.project.runs.mlflow / 'mlflow.db'}")
        runs = client.search_runs([client.get_experiment_by_name(name).experiment_id])
        return {run.data.tags["orch.run"]: run.info.status for run in runs if "orch.run" in run.data.tags}


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path)
    yield desk
    desk.gate.open()
    wait_for(lambda: not syncing(), "the syncs in the background to end")


def syncing():
    return [each for each in of_this_test() if "orchestrator.tracking.sidecar" in (each.info["cmdline"] or [])]


def job_of(bench, run):
    return bench.records()[run.id].job


def began(bench, *runs):
    ids = {run.id for run in runs}
    wait_for(lambda: ids <= {played.run for played in bench.played()}, f"{bench.paths.name} to begin")
    wait_for(lambda: all(bench.records()[run.id].state is RunState.RUNNING for run in runs), "Slurm to say so")


def forget(folder, monkeypatch):
    """Have squeue forget everything."""
    (folder / "squeue").write_text("#!/bin/sh\n")
    (folder / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))


@accounting_first
def test_a_run_that_died_without_a_word_is_put_right_by_whoever_looks_next(slurm, desk, monkeypatch):
    deaf = desk.gate.script(deaf=True)
    cancelled, timed, hog = (
        scripted(deaf, seed=1),
        scripted(deaf, seed=2, hours=MINUTE),
        scripted({"ends": ["hog"]}, seed=3, mem_gb_per_node=0.2, cpus_per_node=1),
    )
    lost, late = scripted(deaf, seed=4), scripted(seed=5, cpus_per_node=4, hours=MINUTE)
    here, there = (
        desk.bench(name, tracking="embedded", nodelist=node) for name, node in (("here", "n0"), ("there", "n1"))
    )
    waits = desk.bench("waits", nodelist="n0", extra={"deadline": "now+75seconds"})
    for bench, runs in ((there, [lost]), (here, [timed, cancelled])):  # the one with a time limit last: it is short
        bench.launch(runs)
        began(bench, *runs)
        stores.sync(desk.project, bench.paths.name)
    assert {*desk.children("here").values(), *desk.children("there").values()} == {"RUNNING"}
    waits.launch([late])
    here.launch([timed, cancelled, hog])
    wait_for(lambda: any(played.run == hog.id for played in here.played()), "the hog to begin")

    output("scancel", job_of(here, cancelled))
    output("scontrol", "update", f"JobId={job_of(there, lost)}", "Requeue=0")
    slurm.crash("n1")
    try:
        everything = {"here": {"interrupted": 3}, "there": {"interrupted": 1}, "waits": {}}
        wait_for(lambda: json.loads(desk.orch("status", "--json")) == everything, "the overview to be right")
    finally:
        slurm.restore("n1")
    wait_for(lambda: desk.run("waits", late).state == "interrupted", "the deadline")

    for again in (False, True):  # what was written down is still known when Slurm has forgotten
        if again:
            forget(desk.folder, monkeypatch)
        assert desk.run("here", cancelled).reason == "cancelled in Slurm"
        assert desk.run("here", timed).reason == "time limit"
        assert desk.run("here", hog).reason == "out of memory: killed by Slurm"
        assert desk.run("there", lost).reason == "its node failed"
        assert {desk.run("here", run).state for run in (cancelled, timed, hog)} == {"interrupted"}
        if not again:
            assert desk.run("waits", late).reason == "deadline"
    assert "out of memory: killed by Slurm" in desk.orch("status", "here")
    took = desk.run("here", timed)
    assert took.ended - took.started < 300
    assert desk.run("here", hog).usage["memory_gb"] > 0.01  # at least what it had when it began

    wait_for(lambda: set(desk.children("here").values()) == {"KILLED"}, "MLflow to be told")
    wait_for(lambda: set(desk.children("there").values()) == {"KILLED"}, "MLflow to be told")
    assert len(desk.children("here")) == 3
    for bench in (here, there):
        marks = Counter(state for _, state in read_marks(bench.paths).values())
        assert set(marks) == {"interrupted"}
        wait_for(lambda paths=bench.paths: not paths.unsynced.exists(), "nothing to be left to tell")


@plain_first
def test_a_suspended_run_says_so_and_is_still_running(slurm, desk):
    bench, run = desk.bench("x"), scripted(desk.gate.script())
    bench.launch([run])
    began(bench, run)
    output("scontrol", "suspend", job_of(bench, run))
    wait_for(lambda: "  suspended" in desk.orch("status", "x"), "status to say so")
    assert (desk.run("x", run).state, desk.run("x", run).reason) == ("running", "suspended")
    assert desk.run("x", run).node in {"n0", "n1", "n2", "n3"}
    output("scontrol", "resume", job_of(bench, run))
    desk.gate.open()
    wait_for(lambda: desk.run("x", run).state == "done", "the run to go on")


@plain_first
def test_logs_follow_a_run_across_its_attempts(slurm, desk):
    bench, run = desk.bench("x"), scripted(desk.gate.script(steps=2))
    bench.launch([run])
    began(bench, run)
    argv = [sys.executable, "-m", "orchestrator", "logs", "-f", "x", "--runs", str(desk.project.runs.path)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    follower = subprocess.Popen(argv, cwd=desk.folder, env=environ, stdout=subprocess.PIPE, text=True)
    try:
        output("scontrol", "requeue", job_of(bench, run))
        wait_for(lambda: len(bench.played()) == 2, "the second attempt")
        desk.gate.open()
        told, _ = follower.communicate(timeout=600)
    finally:
        follower.kill()
        follower.wait()
    assert "stopped by SIGTERM" in told
    assert [line for line in told.splitlines() if line.startswith("step")] == ["step 1", "step 2"]
    assert follower.returncode == 0


@plain_first
def test_a_run_whose_node_crashed_and_that_goes_on_counts_only_what_it_ran(slurm, desk):
    bench, run = desk.bench("x"), scripted(desk.gate.script(steps=2))
    bench.launch([run])
    began(bench, run)
    node, job = desk.run("x", run).node, jobs_of(bench.paths.launch(1))[0].id
    slurm.crash(node)
    try:
        wait_for(lambda: len(bench.played()) == 2, f"job {job} to start again")
        wait_for(lambda: desk.run("x", run).attempt == 2, "status to say so")
    finally:
        slurm.restore(node)
    attempts = json.loads(desk.orch("show", run.id, "--json"))["attempts"]
    assert [attempt["state"] for attempt in attempts] == ["interrupted", "running"]
    assert attempts[0]["reason"] == "killed with its node, or by Slurm; its job was started again"
    record = bench.records()[run.id]
    assert record.attempts[0].ended < record.attempts[1].claim.time
    assert record.seconds(time.time()) <= time.time() - record.attempts[0].claim.time
    desk.gate.open()
    wait_for(lambda: desk.run("x", run).state == "done", "the run to end")


@plain_first
def test_a_requeued_run_that_is_cancelled_while_it_waits_is_no_longer_scheduled_in_mlflow(slurm, desk):
    bench, run = desk.bench("x", tracking="embedded"), scripted(desk.gate.script())
    bench.launch([run])
    began(bench, run)
    job = job_of(bench, run)
    output("scontrol", "requeuehold", job)
    wait_for(lambda: desk.run("x", run).state == "queued", "it to wait to go on")
    stores.sync(desk.project, "x")
    assert desk.children("x") == {run.id: "SCHEDULED"}
    desk.orch("cancel", "x")
    wait_for(lambda: desk.children("x") == {run.id: "KILLED"}, "MLflow to be told")
