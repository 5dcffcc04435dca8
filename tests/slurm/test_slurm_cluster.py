"""The Slurm cluster keeps the contract on a real Slurm; and what is its own: arrays, its own words, its silence."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest
from cluster_contract import ClusterContract, states, wait_for_end
from processes import ROOT, tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import accounting_first, bench_of, on_both, output, plain_first

from orchestrator.cluster import Change, JobState
from orchestrator.errors import ClusterError
from orchestrator.launch.plan import Action, to_do
from orchestrator.layout import ExperimentPaths
from orchestrator.records.attempts import read_job_output
from orchestrator.records.record import RunState
from orchestrator.slurm.cluster import SlurmCluster, jobs_of
from orchestrator.slurm.options import SlurmOptions
from orchestrator.testing.launches import Bench, scripted

pytestmark = pytest.mark.slurm


@pytest.fixture(autouse=True)
def _on_slurm(slurm):
    """Run each test on the session's clusters."""


@accounting_first
class TestContract(ClusterContract):
    kind = "slurm"
    slots = 4  # one node's CPUs

    @pytest.fixture
    def cluster(self):
        return SlurmCluster(SlurmOptions(nodelist="n0", signal_seconds=1, max_requeues=0))

    @pytest.fixture
    def bench(self, cluster, tmp_path):
        folder = tmp_path / "it's a \"run's\" folder ü $(touch x) `x`" / "x"
        return Bench(paths=ExperimentPaths(folder), kind="slurm", cluster=cluster)

    def kill(self, played):
        """Kill a run's process; it is the step of the only job, and its pid counts in its node only."""
        output("scancel", "--signal=KILL", "--user=root", "--state=RUNNING")


@pytest.fixture
def bench(tmp_path):
    return bench_of(tmp_path)


@plain_first
def test_a_run_that_begins_while_slurmctld_is_restarted_waits_for_it(slurm, tmp_path):
    begins = tmp_path / "the job may call srun"
    bench = bench_of(tmp_path, nodelist="n0", setup=[f"while [ ! -e '{begins}' ]; do sleep 0.1; done"])
    run = scripted()
    paths = bench.launch([run]).paths
    (job,) = jobs_of(paths)
    wait_for(lambda: output("squeue", "--noheader", "--format=%T", f"--jobs={job.id}") == "RUNNING", "the job to begin")
    output("scontrol", "shutdown", "slurmctld")
    wait_for(lambda: slurm.status()["slurmctld"] == "stopped", "slurmctld to be gone")
    begins.touch()
    (log,) = paths.path.glob("submitit/*_0.out")
    wait_for(lambda: "srun is tried again" in log.read_text(), "srun to give up")
    slurm.restore("slurmctld")
    wait_for_end(bench)
    assert states(bench, [run]) == [RunState.DONE]
    assert len(bench.played()) == 1


@plain_first
@pytest.mark.parametrize("program", ["squeue", "scontrol"])
def test_a_slurm_that_does_not_answer_is_unknown_and_nothing_is_started(program, bench, gate, tmp_path, monkeypatch):
    runs = [scripted(gate.script(), seed=seed) for seed in range(2)]
    bench.launch(runs)
    wait_for(lambda: len(bench.played()) == 2, "both to begin")
    wait_for(lambda: states(bench, runs) == [RunState.RUNNING] * 2, "Slurm to say so")
    before = files(bench.paths.path)
    (tmp_path / program).write_text("#!/bin/sh\necho 'slurm_load_jobs error: Socket timed out' >&2\nexit 1\n")
    (tmp_path / program).chmod(0o755)
    with monkeypatch.context() as broken:
        broken.setenv("PATH", str(tmp_path), prepend=":")
        wait_for(lambda: states(bench, runs) == [UNKNOWN_IF[program]] * 2, "what was known to be old")
        if program == "squeue":
            told = {record.reason for record in bench.records().values()}
            assert all(re.fullmatch(SILENT, reason) for reason in told), told
        assert bench.launch(runs).paths is None
    assert files(bench.paths.path) == before
    gate.open()
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 2


SILENT = r"squeue does not answer: slurm_load_jobs error: Socket timed out \(\d+ s ago it said running\)"
UNKNOWN_IF = {"squeue": RunState.UNKNOWN, "scontrol": RunState.RUNNING}  # scontrol is not asked about jobs


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.suffix not in {".out", ".pyc"})


@plain_first
def test_what_a_run_waits_for_is_in_its_status(tmp_path, gate):
    bench = bench_of(tmp_path, nodelist="n0", throttle=1)
    runs = [scripted(gate.script(), seed=0), scripted(gate.script(), seed=1), scripted(cpus_per_node=4, seed=2)]
    bench.launch(runs)
    wait_for(lambda: len(bench.played()) == 1, "one to begin")
    wait_for(lambda: bench.records()[runs[1].id].reason == "JobArrayTaskLimit", "the throttle's word")
    wait_for(lambda: bench.records()[runs[2].id].reason == "Resources", "the scheduler's word")
    assert bench.records()[runs[0].id].node == "n0"


@plain_first
def test_a_held_job_waits_until_it_is_released_and_is_not_started_again(tmp_path):
    bench, run = bench_of(tmp_path, extra={"hold": True}), scripted()
    (job,) = jobs_of(bench.launch([run]).paths)
    assert states(bench, [run]) == [RunState.QUEUED]
    assert bench.launch([run]).paths is None
    wait_for(lambda: bench.records()[run.id].reason in {"JobHeldUser", "JobHeldAdmin"}, "Slurm to say so")
    output("scontrol", "release", f"{job.id}_0")
    wait_for_end(bench)
    assert states(bench, [run]) == [RunState.DONE]


@on_both
def test_a_job_that_dies_in_its_setup_lines_is_failed_with_what_it_printed(tmp_path):
    bench = bench_of(tmp_path, setup=["echo 'no such module: cuda/99' >&2", "exit 7"])
    run = scripted()
    bench.launch([run])
    wait_for_end(bench)
    record = bench.records()[run.id]
    assert (record.state, record.reason) == (RunState.FAILED, "exit status 7 before training")
    assert record.failure.message == "no such module: cuda/99"
    assert record.failure.traceback == "no such module: cuda/99\n"
    assert to_do(bench.launch([run]).steps)[0].action is Action.RETRY


@on_both
def test_a_job_that_slurm_ended_before_its_run_began_says_so(tmp_path):
    bench, run = bench_of(tmp_path, setup=["echo in its setup; sleep 600"]), scripted()
    paths = bench.launch([run]).paths
    job = f"{jobs_of(paths)[0].id}_0"
    wait_for(lambda: read_job_output(paths, job) == "in its setup\n", "the job to begin")
    output("scancel", job)
    wait_for_end(bench)
    record = bench.records()[run.id]
    assert (record.state, record.reason, record.attempts) == (RunState.INTERRUPTED, "cancelled in Slurm", ())
    argv = [sys.executable, "-m", "orchestrator", "logs", "x", "--runs", str(bench.paths.path.parent)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert told.stdout.startswith("in its setup\n"), told.stderr


@on_both
def test_what_is_known_of_a_dead_run_is_kept_when_slurm_has_forgotten_its_job(tmp_path, monkeypatch):
    bench = bench_of(tmp_path)
    runs = [scripted({"ends": ["exit"]}), scripted({"ends": ["kill"]}), scripted()]
    bench.launch(runs)
    wait_for_end(bench)
    known = states(bench, runs)
    assert known == [RunState.FAILED, RunState.INTERRUPTED, RunState.DONE]
    (tmp_path / "squeue").write_text("#!/bin/sh\n")  # it has forgotten everything
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert states(bench, runs) == known
    assert bench.records()[runs[0].id].failure.signature == "exit status 3"


@on_both
@pytest.mark.parametrize("forgets", [False, True])
def test_how_runs_ended_is_known_once_squeue_has_forgotten(forgets, accounting, tmp_path, gate, monkeypatch):
    bench = bench_of(tmp_path)
    runs = [scripted({"ends": ["raise"]}), scripted({"ends": ["exit"]}), scripted(), scripted(gate.script(), seed=3)]
    paths = bench.launch(runs).paths
    wait_for(lambda: any(played.run == runs[3].id for played in bench.played()), "the last to begin")
    job = jobs_of(paths)[0]
    output("scancel", f"{job.id}_3")
    wait_for_end(bench)
    if forgets:
        (tmp_path / "squeue").write_text("#!/bin/sh\n")
        (tmp_path / "squeue").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        asked = ("sacct", "-nX", "--format=State%20", f"--jobs={job.id}")
        wait_for(lambda: not accounting or "CANCELLED" in output(*asked), "sacct to know")
    assert states(bench, runs) == [RunState.FAILED, RunState.FAILED, RunState.DONE, RunState.INTERRUPTED]
    assert "cancelled in Slurm" in bench.records()[runs[3].id].reason


@plain_first
def test_ten_watchers_ask_slurm_about_once_a_second(bench, gate, tmp_path, monkeypatch):
    run = scripted(gate.script())
    bench.launch([run])
    real = shutil.which("squeue")
    (tmp_path / "squeue").write_text(f'#!/bin/sh\necho >> "$0.calls"\nexec {real} "$@"\n')
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    began = time.monotonic()
    for _ in range(30):
        bench.records()
    calls = len((tmp_path / "squeue.calls").read_text())
    assert 1 <= calls <= 2 + (time.monotonic() - began)


# --- a job is more than its number -------------------------------------------------------------------------


def rewrite(path, **changes):
    """Change what a lease says."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def stranger(tmp_path):
    """An array of the same user's that has nothing to do with us."""
    job = output("sbatch", "--parsable", "--array=0-3", "--begin=now+1hour", "--wrap=true").strip()
    yield job
    output("scancel", job)


@plain_first
def test_an_array_with_a_number_of_ours_is_not_taken_for_ours(tmp_path, gate, stranger):
    """As after Slurm has lost its state, and counts its jobs anew."""
    bench, run = bench_of(tmp_path), scripted(gate.script())
    launch = bench.launch([run]).paths
    wait_for(bench.played, "the run to begin")
    bench.cancel(run)
    wait_for_end(bench)
    lease = launch.leases()[-1]
    lease.jobs.write_text(json.dumps([{**entry, "job": stranger} for entry in json.loads(lease.jobs.read_text())]))
    (seen,) = bench.cluster.observe(launch, [0]).values()
    assert (seen.state, stranger in seen.job) == (JobState.ENDED, False)  # the run's own claim says which job it was
    said = ("squeue", "--noheader", "--array", f"--jobs={stranger}", "--format=%i %T %l %r")
    before = output(*said)
    assert before.count("PENDING") == 4
    bench.cluster.cancel(launch, [0])
    bench.cluster.hold(launch, [0])
    bench.cluster.change(launch, [0], Change(hours=3.0))
    assert output(*said) == before


def test_what_sacct_says_of_another_job_of_that_number_is_not_believed(stand_in, tmp_path, monkeypatch):
    bench, run = bench_of(tmp_path), scripted({"ends": ["kill"]})
    job = jobs_of(bench.launch([run]).paths)[0].name(0)
    wait_for_end(bench)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))  # without squeue's answer of a moment ago
    stand_in("squeue", "exit 0")
    stand_in("sacct", f"echo '{job}|COMPLETED|None|n1|1795392067|a-strangers'")
    bench.paths.launch(1).exit_status(job).unlink()
    (seen,) = bench.cluster.observe(bench.paths.launch(1), [0]).values()
    assert (seen.state, seen.reason) == (JobState.ENDED, "Slurm no longer knows its job")
    stand_in("sacct", f"echo '{job}|TIMEOUT|None|n1|1795392067|x.0001'")
    (seen,) = bench.cluster.observe(bench.paths.launch(1), [0]).values()
    assert (seen.state, seen.reason) == (JobState.ENDED, "time limit")


@plain_first
def test_a_site_may_replace_comments(tmp_path, gate):
    bench, run = bench_of(tmp_path), scripted(gate.script())
    bench.launch([run])
    wait_for(bench.played, "the run to begin")
    job = bench.records()[run.id].job
    output("scontrol", "update", f"JobId={job}", "Comment=project 7")
    wait_for(lambda: "project 7" in output("squeue", "--noheader", "--format=%k"), "Slurm to have it")
    assert bench.records()[run.id].state is RunState.RUNNING
    bench.cancel(run)
    wait_for_end(bench)
    assert bench.records()[run.id].state is RunState.CANCELLED


@on_both
def test_jobs_of_another_cluster_are_unknown_here_and_nothing_is_done_to_them(tmp_path, gate):
    """Two clusters with one home: here nothing is known of the other's jobs, and their numbers are other jobs'."""
    bench, run = bench_of(tmp_path), scripted(gate.script())
    launch = bench.launch([run]).paths
    wait_for(bench.played, "the run to begin")
    here = json.loads(launch.leases()[-1].claim.read_text())["cluster"]
    assert f"ClusterName             = {here}" in output("scontrol", "show", "config")
    rewrite(launch.leases()[-1].claim, cluster="elsewhere")
    record = bench.records()[run.id]
    assert record.state is RunState.UNKNOWN
    assert record.reason.startswith("on cluster elsewhere: squeue does not answer")
    assert not to_do(bench.launch([run]).steps)
    with pytest.raises(ClusterError, match="squeue failed"):
        bench.cancel(run)
    assert len(bench.played()) == 1
    rewrite(launch.leases()[-1].claim, cluster=here)
    gate.open()
    wait_for_end(bench)
