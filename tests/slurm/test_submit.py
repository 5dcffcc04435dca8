"""Submitting to a real Slurm: never twice, in any environment, within its limits, and nothing of a text is executed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from itertools import product

import pytest
from cluster_contract import Gate, states, wait_for_end
from processes import ROOT, tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import empty_queue, in_campaign, on_both, output, running_devcluster

from orchestrator.errors import RequestError
from orchestrator.launch.plan import to_do
from orchestrator.layout import ExperimentPaths
from orchestrator.records.launches import SILENT_SECONDS, read_launch
from orchestrator.records.record import RunState
from orchestrator.slurm import leases
from orchestrator.slurm.cluster import SlurmCluster, jobs_of
from orchestrator.slurm.devcluster import Options
from orchestrator.slurm.options import SlurmOptions
from orchestrator.system.processes import ProcessId
from orchestrator.testing.launches import Bench, scripted

pytestmark = pytest.mark.slurm

LAUNCH = """
import json, os, sys
from pathlib import Path
from orchestrator.layout import ExperimentPaths
from orchestrator.launch.plan import to_do
from orchestrator.slurm.cluster import SlurmCluster
from orchestrator.slurm.options import SlurmOptions
from orchestrator.testing.launches import Bench, scripted

class Mortal(SlurmCluster):
    def submit(self, launch):
        super().submit(launch)
        if os.environ.get("DIES") == "at the end":
            os.kill(os.getpid(), 9)

folder, script, count = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
os.environ["LAUNCHER"] = str(os.getpid())
bench = Bench(paths=ExperimentPaths(folder), kind="slurm", cluster=Mortal(SlurmOptions()))
launched = bench.launch([scripted(script, seed=seed) for seed in range(count)])
print(len(to_do(launched.steps)))
"""
SBATCH = """#!/bin/bash
for word in "$@"; do [ "$word" = --test-only ] && exec {real} "$@"; done
[ "$DIES" = before ] && kill -9 "$LAUNCHER"
{real} "$@" > "$0.answer"
status=$?
[ "$DIES" = after ] && kill -9 "$LAUNCHER"
cat "$0.answer"
exit $status
"""


@pytest.fixture
def bench(slurm, tmp_path):
    folder = tmp_path / "a run's folder" / "x"
    return Bench(paths=ExperimentPaths(folder), kind="slurm", cluster=SlurmCluster(SlurmOptions()))


def launcher(bench, *, script=None, count=2, **environ):
    """Launch runs from a process of its own; returns it when it has ended."""
    argv = [sys.executable, "-c", LAUNCH, str(bench.paths.path), json.dumps(script or {}), str(count)]
    return subprocess.run(
        argv, env={**os.environ, "PYTHONPATH": str(ROOT), **environ}, capture_output=True, text=True, check=False
    )


def program(folder, name, text):
    """Write a program; returns PATH with its folder first."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


# --- never twice ------------------------------------------------------------------------------------------


DEATHS = list(product([False, True], ["before", "after", "at the end"], [False, True]))
PAIRS = (  # each two of: accounting or none, when it dies, whether its jobs have begun
    (False, "before", True), (False, "after", False), (False, "at the end", True),
    (True, "before", False), (True, "after", True), (True, "at the end", False),
)  # fmt: skip


@pytest.mark.parametrize(
    ("accounting", "dies", "held"),
    [pytest.param(*death, marks=() if death in PAIRS else in_campaign) for death in DEATHS],
)
def test_a_launcher_killed_on_the_way_is_made_good_by_the_next_launch(dies, held, bench, tmp_path):
    gate = Gate(tmp_path / "open")
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout.strip()
    path = program(tmp_path / "bin", "sbatch", SBATCH.format(real=real))
    runs = [scripted(gate.script(), seed=seed) for seed in range(2)]
    died = launcher(bench, script=gate.script(), PATH=path, DIES=dies)
    assert died.returncode == -9, died.stderr
    first = bench.paths.launch(1)
    assert not first.complete.exists()
    assert bool(jobs_of(first)) == (dies == "at the end")
    if held:
        wait_for(lambda: len(bench.played()) == 2, "the lost launch's jobs to begin")
    again = bench.launch(runs)
    if held:
        assert to_do(again.steps) == ()
    gate.open()
    wait_for_end(bench)
    wait_for(lambda: not output("squeue", "--noheader"), "all jobs to end")
    assert states(bench, runs) == [RunState.DONE] * 2
    assert sorted(played.run for played in bench.played()) == sorted(run.id for run in runs)
    assert [len(record.attempts) for record in bench.records().values()] == [1, 1]


GO_ON = """
import os, sys, time
from pathlib import Path
from orchestrator.layout import LaunchPaths
from orchestrator.slurm import leases
from orchestrator.slurm import submit_pending
from orchestrator.slurm.limits import Limits

def die(*_, **__):
    os.kill(os.getpid(), 9)

os.environ["LAUNCHER"] = str(os.getpid())
if os.environ.get("DIES") == "at the end":
    leases.OwnLease.finish = die
print("ready", flush=True)
while not Path(sys.argv[2]).exists():
    time.sleep(0.001)
print(submit_pending.submit_rest(LaunchPaths(Path(sys.argv[1])), Limits, ending=sys.argv[3]).outcome.name)
"""


def going_on(launch, gate, job="", **environ):
    """Start a process that submits what waits of a launch, once a file is there."""
    argv = [sys.executable, "-c", GO_ON, str(launch.path), str(gate), job]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
    process = subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def full(bench, runs, folder, monkeypatch):
    """Launch while a submit limit lets nothing in; returns the launch."""
    refused = '[[ " $* " = *" --test-only "* ]] || { echo QOSMaxSubmitJobPerUserLimit >&2; exit 1; }'
    with monkeypatch.context() as no_room:
        no_room.setenv("PATH", program(folder, "sbatch", f"#!/bin/bash\n{refused}\n"))
        launched = bench.launch(runs)
    assert launched.waiting.tasks == len(runs)
    assert states(bench, runs) == [RunState.WAITING] * len(runs)
    return launched.paths


def test_of_many_submitters_at_once_each_task_is_submitted_by_one(bench, tmp_path, monkeypatch):
    runs = [scripted(seed=seed) for seed in range(3)]
    launch = full(bench, runs, tmp_path / "bin", monkeypatch)
    start = (launch.submitit / "start.0.pkl").stat()
    many = [going_on(launch, tmp_path / "now", job) for job in ("7_0", "7_1", "7_2", "", "")]
    (tmp_path / "now").touch()
    told = [process.communicate()[0].strip() for process in many]
    assert told.count("SUBMITTED") == 1
    assert set(told) <= {"SUBMITTED", "BUSY", "NOTHING_LEFT", "DEFERRED"}
    assert [job.indices for job in jobs_of(launch)] == [(0, 1, 2)]
    assert os.path.samestat(start, (launch.submitit / "start.0.pkl").stat()), "it is written anew while jobs read it"
    asked = output("squeue", "--noheader", "--states=all", "--array", "--format=%k")
    assert asked.splitlines().count(f"orch:{read_launch(launch).header.token}:0") == 3
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 3
    assert len(bench.played()) == 3


@pytest.mark.parametrize("dies", ["before", "after", "at the end"])
def test_a_later_submitter_killed_on_the_way_is_made_good_by_the_next(dies, bench, tmp_path, monkeypatch):
    runs = [scripted(seed=seed) for seed in range(2)]
    launch = full(bench, runs, tmp_path / "full", monkeypatch)
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout.strip()
    path = program(tmp_path / "bin", "sbatch", SBATCH.format(real=real))
    (tmp_path / "now").touch()
    died = going_on(launch, tmp_path / "now", "7_0", PATH=path, DIES=dies)
    died.communicate()
    assert died.returncode == -9
    assert bench.launch(runs).paths is None
    assert waiting(bench) == []
    wait_for_end(bench)
    wait_for(lambda: not output("squeue", "--noheader"), "all jobs to end")
    assert states(bench, runs) == [RunState.DONE] * 2
    assert sorted(played.run for played in bench.played()) == sorted(run.id for run in runs)
    assert [len(record.attempts) for record in bench.records().values()] == [1, 1]


@pytest.mark.parametrize(("job", "silent"), [("", True), ("999999_0", False)])
def test_a_submitter_that_died_on_another_machine_is_made_good(job, silent, bench, tmp_path, monkeypatch):
    runs = [scripted(seed=seed) for seed in range(2)]
    launch = full(bench, runs, tmp_path / "full", monkeypatch)
    elsewhere = replace(ProcessId.current(), host="elsewhere.example")
    with monkeypatch.context() as there:
        there.setattr(ProcessId, "current", lambda: elsewhere)
        assert leases.take(launch, after=leases.last(launch).number, jobs=(), job=job)
    if silent:
        assert {record.reason for record in bench.records().values()} == {
            f"being submitted by {leases.last(launch).holder}"
        }
        assert states(bench, runs) == [RunState.QUEUED] * 2
        long_ago = time.time() - SILENT_SECONDS - 1
        os.utime(launch.path, (long_ago, long_ago))
    assert states(bench, runs) == [RunState.WAITING] * 2
    assert bench.launch(runs).paths is None
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 2
    assert len(bench.played()) == 2


def test_jobs_of_a_lost_launch_can_be_cancelled(bench, tmp_path):
    gate = Gate(tmp_path / "open")
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout.strip()
    path = program(tmp_path / "bin", "sbatch", SBATCH.format(real=real))
    launcher(bench, script=gate.script(), count=1, PATH=path, DIES="after")
    run = scripted(gate.script())
    wait_for(bench.played, "the run to begin")
    bench.cancel(run)
    wait_for(lambda: states(bench, [run]) == [RunState.CANCELLED], "the run to be cancelled")


# --- the environment that we submit from ------------------------------------------------------------------


@on_both
@pytest.mark.parametrize("array", [False, True])
def test_launching_from_inside_a_job_works(array, bench, tmp_path):
    script = tmp_path / "launch it.py"
    script.write_text(LAUNCH)
    options = ["--ntasks=2", "--cpus-per-task=2", "--mem=100", f"--output={tmp_path}/inner.log"]
    body = [sys.executable, str(script), str(bench.paths.path), json.dumps({}), "2"]
    job = f"#!/bin/bash\n{' '.join(map(quoted, body))}\n"
    (tmp_path / "job.sh").write_text(job)
    extra = ["--array=3"] if array else []
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(["sbatch", "--wait", *options, *extra, str(tmp_path / "job.sh")], env=environ, check=False)
    assert (tmp_path / "inner.log").read_text() == "2\n"
    wait_for_end(bench)
    assert {record.state for record in bench.records().values()} == {RunState.DONE}
    assert len(bench.played()) == 2


def quoted(text):
    return "'" + text.replace("'", "'\\''") + "'"


def test_jobs_import_nothing_from_where_they_were_launched(bench, tmp_path, monkeypatch):
    trap = tmp_path / "checkout"
    (trap / "orchestrator").mkdir(parents=True)
    (trap / "orchestrator" / "__init__.py").write_text("raise SystemExit('imported from the live checkout')")
    (trap / "submitit.py").write_text("raise SystemExit('imported from the live checkout')")
    monkeypatch.chdir(trap)
    monkeypatch.setenv("PYTHONPATH", str(trap))
    run = scripted()
    bench.launch([run])
    wait_for_end(bench)
    assert states(bench, [run]) == [RunState.DONE]


# --- nothing of a text is executed ------------------------------------------------------------------------

NASTY = ["it's", 'say "hi"', "$(touch {mark})", "`touch {mark}`", "; touch {mark}", "ünïcode ✓", "| touch {mark} #"]


@pytest.mark.parametrize("text", NASTY)
def test_a_nasty_comment_is_only_a_comment(text, slurm, tmp_path):
    mark = tmp_path / "executed"
    text = text.format(mark=mark)
    bench = Bench(
        paths=ExperimentPaths(tmp_path / f"a {text.replace('/', '_')}" / "x"),
        kind="slurm",
        cluster=SlurmCluster(SlurmOptions.parse({"comment": text, "extra": {"mail-user": text}})),
    )
    run = scripted()
    (job,) = jobs_of(bench.launch([run]).paths)
    told = output("squeue", "--noheader", "--states=all", f"--jobs={job.id}", "--format=%k")
    wait_for_end(bench)
    assert states(bench, [run]) == [RunState.DONE]
    assert told.endswith(text)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["100% sure", "back\\slash", "new\nline", "co:lon"])
def test_a_folder_that_slurm_would_misread_is_refused_before_anything_is_done(name, slurm, tmp_path):
    folder = tmp_path / name / "x"
    bench = Bench(paths=ExperimentPaths(folder), kind="slurm", cluster=SlurmCluster(SlurmOptions()))
    with pytest.raises(RequestError, match=r"the folder for runs, .* in its name"):
        bench.launch([scripted()])
    assert not folder.exists()


# --- limits -----------------------------------------------------------------------------------------------


@on_both
def test_impossible_shapes_are_refused_with_the_reason(slurm, tmp_path):
    limited = Bench(
        paths=ExperimentPaths(tmp_path / "x"), kind="slurm", cluster=SlurmCluster(SlurmOptions(partition="limited"))
    )
    with pytest.raises(RequestError, match=r"hours=4.*partition limited allows 1 h"):
        limited.launch([scripted(hours=4)])
    with pytest.raises(RequestError, match=r"partition limited allows 1 node"):
        limited.launch([scripted(nodes=2)])
    default = Bench(paths=limited.paths, kind="slurm", cluster=SlurmCluster(SlurmOptions()))
    for shape in ({"nodes": 99}, {"gpus_per_node": 9}, {"mem_gb_per_node": 9999}):
        with pytest.raises(RequestError, match=r"partition debug (has 4 nodes|no node has)"):
            default.launch([scripted(**shape)])
    nowhere = SlurmCluster(SlurmOptions(partition="nowhere"))
    with pytest.raises(RequestError, match="Slurm knows no partition 'nowhere'"):
        Bench(paths=limited.paths, kind="slurm", cluster=nowhere).launch([scripted()])
    assert not limited.paths.path.exists()


@pytest.fixture
def full_slurm(tmp_path_factory):
    """A cluster that holds few jobs at once, and small arrays."""
    shares = (str(tmp_path_factory.getbasetemp()),)
    options = Options(nodes=1, gpus=0, max_array_size=4, max_job_count=12, shares=shares)
    with running_devcluster(options) as cluster, empty_queue(cluster):
        yield cluster


def test_what_slurm_has_no_room_for_is_submitted_by_a_later_launch(full_slurm, tmp_path):
    gate = Gate(tmp_path / "open")
    cluster = SlurmCluster(SlurmOptions(nodes_may_submit=False))
    bench = Bench(paths=ExperimentPaths(tmp_path / "x"), kind="slurm", cluster=cluster)
    runs = [scripted(gate.script(), seed=seed) for seed in range(6)]
    fillers = [output("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true") for _ in range(7)]
    launched = bench.launch(runs)
    taken = sum(len(job.indices) for job in jobs_of(launched.paths))
    assert 1 <= taken <= 5
    assert (launched.waiting.tasks, launched.waiting.reason) == (6 - taken, "submit limit (MaxJobCount)")
    found = states(bench, runs)
    assert RunState.WAITING not in found[:taken]
    assert found[taken:] == [RunState.WAITING] * (6 - taken)
    assert bench.records()[runs[-1].id].reason.endswith(": the next orch command submits it")
    output("scancel", *fillers)
    gate.open()
    wait_for(lambda: states(bench, runs[:taken]) == [RunState.DONE] * taken, "what was submitted to end")
    make_room(full_slurm)
    later = Bench(paths=bench.paths, kind="slurm", cluster=SlurmCluster(SlurmOptions()))
    wait_for(lambda: later.launch(runs).paths is None and not waiting(later), "room for all")
    wait_for_end(later)
    assert states(later, runs) == [RunState.DONE] * 6
    assert len(later.played()) == 6
    assert len(later.paths.launch(1).leases()) <= 2
    assert not later.paths.launch(1).pending_mark.exists()


def waiting(bench):
    return [record for record in bench.records().values() if record.state is RunState.WAITING]


def make_room(cluster):
    """Have a cluster hold more jobs: Slurm remembers those that ended for minutes, and counts them."""
    conf = cluster.slurm_conf.with_name("node.conf")  # the one that slurmctld reads
    conf.write_text(conf.read_text().replace("MaxJobCount=12\n", "MaxJobCount=99\n"))
    saved = cluster.slurm_conf.parents[1] / "slurmctld" / "job_state"
    now = time.time()
    wait_for(lambda: saved.stat().st_mtime > now, "slurmctld to save its state")
    cluster.crash("slurmctld")
    cluster.restore("slurmctld")
    wait_for(lambda: accepted("sbatch", "--test-only", "--wrap=true"), "its node to be known again")


def test_arrays_are_no_larger_than_slurm_allows(full_slurm, tmp_path):
    bench = Bench(paths=ExperimentPaths(tmp_path / "x"), kind="slurm", cluster=SlurmCluster(SlurmOptions()))
    runs = [scripted(seed=seed) for seed in range(9)]
    paths = bench.launch(runs).paths
    assert [job.indices for job in jobs_of(paths)] == [(0, 1, 2, 3), (4, 5, 6, 7), (8,)]
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 9


@pytest.fixture(params=["qos", "association"])
def few(request, accounted_slurm):
    """The options of a user who may have three jobs at once."""
    if request.param == "qos":
        output("sacctmgr", "-i", "add", "qos", "few", "set", "MaxSubmitJobsPerUser=3")
        output("sacctmgr", "-i", "modify", "user", "root", "set", "qos+=few")
        wait_for(lambda: accepted("sbatch", "--test-only", "--qos=few", "--wrap=true"), "slurmctld to know the qos")
        yield {"qos": "few"}
        output("sacctmgr", "-i", "modify", "user", "root", "set", "qos-=few")
        output("sacctmgr", "-i", "delete", "qos", "few")
    else:
        output("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=3")
        yield {}
        output("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs=-1")


def limited(folder, options, **more):
    cluster = SlurmCluster(SlurmOptions.parse({**options, **more}))
    return Bench(paths=ExperimentPaths(folder / "it's a folder" / "x"), kind="slurm", cluster=cluster)


def test_what_a_submit_limit_forbids_is_submitted_by_ending_jobs(few, tmp_path):
    gate = Gate(tmp_path / "open")
    bench = limited(tmp_path, few)
    runs = [scripted(gate.script(), seed=seed) for seed in range(8)]
    launched = bench.launch(runs)
    assert launched.waiting.tasks == 5
    assert re.fullmatch(r"submit limit( \(\w+Submit\w+\))?", launched.waiting.reason)
    wait_for(lambda: len(bench.played()) == 3, "three to begin")
    assert states(bench, runs[3:]) == [RunState.WAITING] * 5
    assert bench.records()[runs[-1].id].reason == f"{launched.waiting.reason}: {launched.waiting.later}"
    other = limited(tmp_path / "another", few)
    assert other.launch([scripted(seed=99)]).waiting.tasks == 1
    gate.open()
    wait_for_end(bench)  # by looking alone, which submits nothing
    assert states(bench, runs) == [RunState.DONE] * 8
    assert sorted(played.run for played in bench.played()) == sorted(run.id for run in runs)
    indices = [index for job in jobs_of(launched.paths) for index in job.indices]
    assert sorted(indices) == list(range(8))
    assert len({job.id for job in jobs_of(launched.paths)}) > 1
    assert len(bench.paths.launches()) == 1
    assert not launched.paths.pending_mark.exists()


def test_where_nodes_may_not_submit_the_next_command_does(few, tmp_path):
    bench = limited(tmp_path, few, nodes_may_submit=False)
    runs = [scripted(seed=seed) for seed in range(5)]
    launched = bench.launch(runs)
    assert (launched.waiting.tasks, launched.waiting.later) == (2, "the next orch command submits it")
    wait_for(lambda: states(bench, runs[:3]) == [RunState.DONE] * 3, "those submitted to end")
    wait_for(lambda: not output("squeue", "--noheader"), "Slurm to let them go")
    assert states(bench, runs[3:]) == [RunState.WAITING] * 2
    argv = [sys.executable, "-m", "orchestrator", "status", "x", "--runs", str(bench.paths.path.parent)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}

    def looked():
        subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, check=True)
        return not waiting(bench)

    wait_for(looked, "a look to submit the rest")
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 5
    assert len(bench.played()) == 5


def test_waiting_runs_that_are_cancelled_are_never_submitted(few, tmp_path):
    gate = Gate(tmp_path / "open")
    bench = limited(tmp_path, few)
    runs = [scripted(gate.script(), seed=seed) for seed in range(6)]
    paths = bench.launch(runs).paths
    for run in runs[3:5]:
        bench.cancel(run)
    assert states(bench, runs[3:]) == [RunState.CANCELLED, RunState.CANCELLED, RunState.WAITING]
    gate.open()
    wait_for_end(bench)
    assert states(bench, runs) == [*[RunState.DONE] * 3, *[RunState.CANCELLED] * 2, RunState.DONE]
    assert sorted(index for job in jobs_of(paths) for index in job.indices) == [0, 1, 2, 5]
    assert len(bench.played()) == 4


def accepted(*argv):
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0
