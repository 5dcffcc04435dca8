"""What a launch could know beforehand it says beforehand, on a real Slurm: which word is wrong, why, what is right."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cluster_contract import states, wait_for_end
from processes import ROOT, tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import bench_of, empty_queue, output, running_devcluster

from orchestrator.errors import RequestError
from orchestrator.layout import ExperimentPaths
from orchestrator.records.packs import read_packs
from orchestrator.records.record import RunState
from orchestrator.slurm.cluster import SlurmCluster, jobs_of
from orchestrator.slurm.devcluster import Options
from orchestrator.slurm.options import SlurmOptions
from orchestrator.spec import Resources
from orchestrator.testing.launches import scripted

pytestmark = pytest.mark.slurm

MB = 1024 * 1024


@pytest.fixture(scope="module")
def small_devcluster(tmp_path_factory):
    """A cluster of two nodes with 64 MB of /tmp each, one GPU, and arrays of at most four tasks."""
    shares = (str(tmp_path_factory.getbasetemp()),)
    with running_devcluster(Options(nodes=2, gpus=1, tmp_mb=64, max_array_size=4, shares=shares)) as cluster:
        yield cluster


@pytest.fixture
def small_slurm(small_devcluster):
    with empty_queue(small_devcluster) as cluster:
        yield cluster
        for partition in ("debug", "limited"):
            output("scontrol", "update", f"partitionname={partition}", "state=UP")


def check(folder, need=None, *, data=None, **options):
    """Check runs of a shape (one CPU unless said); returns the notes."""
    cluster = SlurmCluster(SlurmOptions.parse(options))
    return cluster.check({Resources(**(need or {}))}, folder / "runs" / "x", data or {})


def refused(folder, need=None, **given):
    with pytest.raises(RequestError) as error:
        check(folder, need, **given)
    assert error.value.fix
    return str(error.value)


# --- shapes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("need", "options", "why", "fix"),
    [
        (
            {"hours": 4},
            {"partition": "limited"},
            "(nodes=1, cpus_per_node=1, hours=4): partition limited allows 1 h",
            "cluster.partition=debug or preemptible or urgent",
        ),
        ({"nodes": 2}, {"partition": "limited"}, "partition limited allows 1 node\n", "cluster.partition=debug or"),
        ({"nodes": 3}, {}, "partition debug has 2 nodes", "ask for less in resources"),
        ({"gpus_per_node": 4}, {}, "in partition debug no node has 4 GPUs: the largest has 1", "ask for less"),
        ({"cpus_per_node": 99}, {}, "no node has 99 CPUs: the largest has 4", "ask for less"),
        ({"mem_gb_per_node": 64}, {}, "no node has 64 GB of memory: the largest has 15.62", "ask for less"),
    ],
)
def test_a_shape_that_no_node_could_hold_is_refused(need, options, why, fix, small_slurm, tmp_path):
    said = refused(tmp_path, need, **options)
    assert why in said
    assert fix in said.partition("\nfix: ")[2]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("state", ["DRAIN", "INACTIVE"])
def test_a_partition_that_takes_no_jobs_is_refused(state, small_slurm, tmp_path):
    output("scontrol", "update", "partitionname=limited", f"state={state}")
    said = refused(tmp_path, partition="limited")
    assert f"partition limited takes no jobs now (its state is {state})" in said
    assert "fix: change resources, or cluster.partition=debug or preemptible or urgent" in said
    assert check(tmp_path, partition="limited,debug") == ()


def test_a_partition_that_is_down_takes_jobs_that_wait(small_slurm, tmp_path):
    output("scontrol", "update", "partitionname=limited", "state=DOWN")
    assert check(tmp_path, partition="limited") == ("partition limited is down: runs wait until it is up",)


def test_drained_nodes_are_told_and_the_runs_start_once_they_are_back(small_slurm, tmp_path):
    output("scontrol", "update", "nodename=ALL", "state=drain", "reason=it's being repaired")
    try:
        bench, run = bench_of(tmp_path), scripted()
        (note,) = bench.launch([run]).notes
        assert note.startswith("in partition debug 2 of 2 nodes that can hold a run are down or drained (n0: ")
        assert "DRAIN, it's being repaired" in note
        assert note.endswith("runs wait until they are back")
        assert states(bench, [run]) == [RunState.QUEUED]
    finally:
        output("scontrol", "update", "nodename=ALL", "state=resume")
    wait_for_end(bench)
    assert states(bench, [run]) == [RunState.DONE]


# --- words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "what", "why", "fix"),
    [
        (
            {"partition": "debgu"},
            "Slurm knows no partition 'debgu' (did you mean 'debug'?)",
            "there are debug, limited, preemptible, urgent",
            "cluster.partition=debug",
        ),
        ({"partition": "debug,nowhere"}, "Slurm knows no partition 'nowhere'", "there are debug,", "leave it out"),
        ({"constraint": "a100"}, "Slurm knows no constraint 'a100'", "Slurm shows none", "correct cluster.constraint"),
        ({"nodelist": "n9"}, "Slurm knows no nodelist 'n9'", "there are n0, n1", "correct cluster.nodelist"),
    ],
)
def test_a_word_that_slurm_does_not_know_is_named_with_the_nearest(options, what, why, fix, small_slurm, tmp_path):
    said, _, told = refused(tmp_path, **options).partition("\nfix: ")
    assert what in said
    assert why in said
    assert fix in told


def test_an_unknown_reservation_is_named_with_the_nearest(small_slurm, tmp_path):
    output("scontrol", "create", "reservation=maint", "starttime=now+3600", "duration=60", "users=root", "nodes=n0")
    try:
        said = refused(tmp_path, reservation="main")
    finally:
        output("scontrol", "delete", "reservation=maint")
    assert "Slurm knows no reservation 'main' (did you mean 'maint'?): there are maint" in said


@pytest.mark.parametrize(("key", "wrong", "there"), [("account", "rood", "root"), ("qos", "norml", "normal")])
def test_an_unknown_account_or_qos_is_named_with_the_nearest(key, wrong, there, accounted_slurm, tmp_path):
    said = refused(tmp_path, **{key: wrong})
    assert f"cluster.{key}={wrong}: Slurm knows no {key} {wrong!r} (did you mean {there!r}?): there are " in said
    assert "for root" in said
    assert said.endswith(f"fix: cluster.{key}={there}")


@pytest.fixture
def changed_partition(request):
    """What changes a partition for a test, and changes it back."""

    def change(name, **options):
        words = [f"{key}={value}" for key, value in options.items()]
        output("scontrol", "update", f"partitionname={name}", *words)
        back = [f"{key}={BEFORE[key]}" for key in options]
        request.addfinalizer(lambda: output("scontrol", "update", f"partitionname={name}", *back))

    return change


BEFORE = {"minnodes": "0", "allowaccounts": "ALL", "denyaccounts": ""}


def test_a_partition_for_larger_runs_is_named(small_slurm, changed_partition, tmp_path):
    changed_partition("debug", minnodes=2)
    said = refused(tmp_path)
    assert "partition debug is for runs of 2 nodes or more (MinNodes)\n" in said
    assert said.endswith("fix: change resources, or cluster.partition=limited or preemptible or urgent")
    assert check(tmp_path, {"nodes": 2}) == ()


@pytest.mark.parametrize("account", ["root", None])  # it is the user's default one
@pytest.mark.parametrize("option", ["allowaccounts", "denyaccounts"])
def test_a_partition_for_other_accounts_is_named(option, account, accounted_slurm, changed_partition, tmp_path):
    changed_partition("debug", **{option: "phys" if option == "allowaccounts" else "root"})
    said = refused(tmp_path, account=account)
    why = (
        "only for account phys (AllowAccounts)" if option == "allowaccounts" else "not for account root (DenyAccounts)"
    )
    assert f"account root may not run in partition debug: partition debug is {why}\n" in said
    assert said.endswith("fix: cluster.partition=limited or preemptible or urgent")


# --- data -------------------------------------------------------------------------------------------------


def test_a_data_version_larger_than_every_nodes_scratch_is_refused(small_slurm, tmp_path):
    assert check(tmp_path, data={"small": 64 * MB}) == ()
    said = refused(tmp_path, data={"huge": 64 * MB + 1})
    assert "data version huge has 67.1 MB: scratch of the nodes of partition debug holds 67.1 MB" in said
    assert "fix: choose a smaller version or another partition" in said
    assert check(tmp_path, data={"huge": 64 * MB + 1}, scratch="/nvme") == ()  # of which Slurm does not tell
    assert "holds" in refused(tmp_path, data={"huge": 64 * MB + 1}, scratch="/tmp/below")


def test_where_slurm_tells_no_size_of_scratch_nothing_is_refused(slurm, tmp_path, monkeypatch):
    real = subprocess.run(["which", "scontrol"], capture_output=True, text=True, check=True).stdout.strip()
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{real} \"$@\" | sed 's/TmpDisk=[0-9]*/TmpDisk=0/'\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    cluster = SlurmCluster(SlurmOptions())
    assert check(tmp_path, data={"huge": 10**15}) == ()
    assert cluster.capacity().scratch.bytes is None
    assert "unknown size (Slurm says TmpDisk=0)" in cluster.capacity().scratch.where


# --- orch plan, as it is typed ----------------------------------------------------------------------------

EXPERIMENT = """
# @package _global_
name: planned
defaults:
  - override /model: mlp
  - override /cluster: slurm
data: {_target_: nets.Numbers, version: {source: directory, path: ../numbers}}
resources: {cpus_per_node: 2, hours: 0.5}
cluster: {partition: limited, comment: "it's $(mine)", staging: {request_tmp: true}}
sweep:
  grid: {seed: [1, 2, 3, 4, 5, 6]}
  resources: [{when: {seed: 6}, set: {gpus_per_node: 1}}]
"""
NETS = """
from pytorch_lightning import LightningDataModule
class Numbers(LightningDataModule):
    def __init__(self): super().__init__()
"""


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "it's a project"
    for name, text in {"conf/experiment/planned.yaml": EXPERIMENT.lstrip(), "src/nets.py": NETS}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    numbers(tmp_path, 1000)
    return folder


def numbers(folder, size):
    """Write the data version: one file of so many bytes, with nothing in it."""
    (folder / "numbers").mkdir(exist_ok=True)
    with (folder / "numbers" / "all.bin").open("wb") as file:
        file.truncate(size)


def orch(project, *words):
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "orchestrator", *words]
    return subprocess.run(argv, cwd=project, env=environ, capture_output=True, text=True, check=False)


def planned(project, *words):
    done = orch(project, "plan", "experiment=planned", "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_plan_prints_is_what_sbatch_gets(small_slurm, project):
    held = "+cluster.extra.hold=true"
    told = planned(project, held, "--sbatch")
    assert [len(script["runs"]) for script in told["scripts"]] == [4, 1, 1]
    printed = orch(project, "plan", "experiment=planned", held, "--sbatch").stdout
    assert "# launch 0001, script 2 of 3: 1 run, " in printed
    assert not (project / "runs").exists()
    launched = orch(project, "launch", "experiment=planned", held)
    assert launched.returncode == 0, launched.stderr
    launch = ExperimentPaths(project / "runs" / "planned").launch(1)
    token = json.loads(launch.header.read_text())["token"]
    jobs = jobs_of(launch)
    got = [output("scontrol", "write", "batch_script", job.id, "-") for job in jobs]
    assert [re.sub(r"\bTOKEN\b", token, script["text"]).strip() for script in told["scripts"]] == got
    lines = [json.loads(line)["run"] for line in launch.plan.read_text().splitlines()]
    assert [[lines[index] for index in job.indices] for job in jobs] == [script["runs"] for script in told["scripts"]]
    assert all("/tree/src" in text for text in got)  # although nothing was frozen yet
    assert all("#SBATCH --tmp=1M\n" in text for text in got)
    for script in told["scripts"]:
        assert script["text"].strip() in printed


def test_what_plan_prints_of_packs_is_what_sbatch_gets(small_slurm, project):
    words = ["+cluster.extra.hold=true", "resources.pack={runs: 2}"]
    told = planned(project, *words, "--sbatch")["scripts"]
    assert orch(project, "launch", "experiment=planned", *words).returncode == 0
    launch = ExperimentPaths(project / "runs" / "planned").launch(1)
    token, packs, jobs = json.loads(launch.header.read_text())["token"], read_packs(launch), jobs_of(launch)
    got = [output("scontrol", "write", "batch_script", job.id, "-") for job in jobs]
    assert [re.sub(r"\bTOKEN\b", token, script["text"]).strip() for script in told] == got
    lines = [json.loads(line)["run"] for line in launch.plan.read_text().splitlines()]
    shared = [[lines[index] for first in job.indices for index in packs.tasks(first)] for job in jobs]
    assert shared == [script["runs"] for script in told]
    assert sorted(run for runs in shared for run in runs) == sorted(lines)
    assert len(got) < 6


def test_a_plan_sums_up_what_it_asks_for(small_slurm, project):
    told = planned(project)
    shapes = [
        (each["runs"], each["arrays"], each["tasks"], each["hours"], each["gpu_hours"], each["cpu_hours"])
        for each in told["resources"]
    ]
    assert shapes == [(5, 2, 5, 0.5, 0, 5.0), (1, 1, 1, 0.5, 0.5, 1.0)]
    assert [(one["bytes"], one["files"], one["runs"]) for one in told["data"]] == [(1000, 1, 6)]
    assert told["scratch"]["bytes"] == 64 * MB
    unasked = planned(project, "resources.hours=null")["resources"][0]
    assert (unasked["hours"], unasked["hours_asked"]) == (1.0, False)  # of partition limited
    unlimited = planned(project, "resources.hours=null", "cluster.partition=debug")["resources"][0]
    assert (unlimited["hours"], unlimited["gpu_hours"]) == (None, None)
    text = orch(project, "plan", "experiment=planned").stdout
    assert "at most 0.5 GPU-hours in all" in text
    assert ": 1 kB in 1 file; scratch of the nodes of partition limited holds 67.1 MB" in text


def test_plan_and_launch_refuse_data_that_fits_on_no_node(small_slurm, project):
    numbers(project.parent, 70 * MB)
    for verb in ("plan", "launch"):
        done = orch(project, verb, "experiment=planned")
        assert done.returncode == 2
        assert "has 73.4 MB: scratch of the nodes of partition limited holds 67.1 MB" in done.stderr
    assert not (project / "runs").exists()


def test_a_checkpoint_forecast_that_does_not_fit_is_told_by_plan_and_launch(small_slurm, project):
    large = ["model.width=1000000", "+cluster.extra.hold=true"]
    assert planned(project, *large)["checkpoints"]["runs"] == 0
    known = planned(project, *large, "--forecast")
    assert known["checkpoints"]["runs"] == 6
    assert any("the checkpoints of 6 runs need about" in note for note in known["notes"])
    launched = orch(project, "launch", "experiment=planned", *large)
    assert launched.returncode == 0, launched.stderr
    assert "note: the checkpoints of 6 runs need about" in launched.stderr  # it was counted for this very code


# --- what the user's environment says -------------------------------------------------------------------


def test_variables_of_sbatch_are_shown_and_count_where_nothing_else_is_set(small_slurm, project, monkeypatch):
    monkeypatch.setenv("SBATCH_PARTITION", "urgent")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "7")
    held = "+cluster.extra.hold=true"
    words = [held, "cluster.partition=null", "resources.hours=null"]
    told = planned(project, *words, "--sbatch")
    assert "SBATCH_PARTITION=urgent: the default for --partition" in told["notes"]
    assert {each["hours"] for each in told["resources"]} == {7 / 60}
    assert all("#SBATCH --partition=urgent\n" in each["text"] for each in told["scripts"])
    assert orch(project, "launch", "experiment=planned", *words).returncode == 0
    got = output("squeue", "--noheader", "--array", "--format=%P %l")
    assert set(got.splitlines()) == {"urgent 7:00"}


ON_GAMMA = {  # there every job runs on, whatever it is called
    "sbatch": '[[ "$*" = *--test-only* ]] || echo Submitted batch job 990001 on cluster gamma; exit 0',
    "squeue": "echo CLUSTER: gamma; printf '990001_%s|RUNNING|None|g1|N/A|\\n' 0 1 2 3; exit 0",
    "scontrol": "unset SLURM_CLUSTERS",
}


def test_what_was_submitted_to_another_cluster_is_looked_for_there(small_slurm, project, monkeypatch, tmp_path):
    programs, words = tmp_path / "bin", ["experiment=planned", "sweep.resources=[]", "seed=1,2,3,4"]
    programs.mkdir()
    for name, answer in ON_GAMMA.items():
        text = f'#!/bin/bash\nif [ "$SLURM_CLUSTERS" = gamma ]; then {answer}; fi\nexec {output("which", name)} "$@"\n'
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    with monkeypatch.context() as there:
        there.setenv("PATH", str(programs), prepend=":")
        with monkeypatch.context() as chosen:
            chosen.setenv("SBATCH_CLUSTERS", "gamma")
            done = orch(project, "launch", *words)
            assert done.returncode == 0, done.stderr
            assert "SBATCH_CLUSTERS=gamma: the cluster that jobs go to" in done.stderr
        told = json.loads(orch(project, "status", "planned", "--json").stdout)
        assert {run["state"] for run in told["runs"]} == {"running"}
        assert orch(project, "launch", *words).returncode == 0
    assert [job.id for job in jobs_of(ExperimentPaths(project / "runs" / "planned").launch(1))] == ["990001"]
    assert len(ExperimentPaths(project / "runs" / "planned").launches()) == 1


# --- site profiles ----------------------------------------------------------------------------------------


def profile(name, **blanks):
    """Return the options of a built-in profile, its blanks filled in."""
    folder = Path(ROOT) / "conf" / "cluster"
    plain, own = (yaml.safe_load((folder / f"{each}.yaml").read_text()) for each in ("slurm", name))
    del own["defaults"]
    return {**plain, **own, **blanks}


def test_runs_of_the_accounts_profile_are_charged_to_the_account(accounted_slurm, tmp_path):
    output("sacctmgr", "-i", "add", "account", "vision")
    output("sacctmgr", "-i", "add", "user", "root", "account=vision")
    asked = ("sbatch", "--test-only", "--account=vision", "--qos=normal", "--wrap=true")
    wait_for(lambda: subprocess.run(asked, capture_output=True, check=False).returncode == 0, "slurmctld to know it")
    bench = bench_of(tmp_path, **profile("slurm_accounts", account="vision", partition="debug"))
    run = scripted()
    (job,) = jobs_of(bench.launch([run]).paths)
    wait_for_end(bench)
    assert states(bench, [run]) == [RunState.DONE]
    charged = ("sacct", "-nXP", "--format=Account,QOS,Partition", f"--jobs={job.id}")
    wait_for(lambda: output(*charged) == "vision|normal|debug", "sacct to know")


def test_a_run_of_the_private_scratch_profile_gets_a_node_with_so_much_scratch(small_slurm, tmp_path):
    with pytest.raises(RequestError, match="Slurm would not run this"):
        bench_of(tmp_path, **profile("slurm_private_scratch")).launch([scripted()])  # 50 GB of scratch
    bench, run = bench_of(tmp_path, **profile("slurm_private_scratch", extra={"tmp": "32M"})), scripted()
    (job,) = jobs_of(bench.launch([run]).paths)
    assert "MinTmpDiskNode=32M" in output("scontrol", "show", "job", job.id)
    wait_for_end(bench)
    assert states(bench, [run]) == [RunState.DONE]
