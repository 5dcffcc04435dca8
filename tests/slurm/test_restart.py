"""Runs that are killed on a real Slurm start again by themselves: in the same job, with what they lacked."""

from __future__ import annotations

import re

import pytest
from cluster_contract import wait_for_end
from processes import tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import bench_of, in_campaign, output

from orchestrator.launch.launch import WORKER
from orchestrator.project import Project
from orchestrator.records.record import RunState
from orchestrator.refresh import refresh
from orchestrator.spec import Attempts, Pack
from orchestrator.testing.launches import scripted, trained

pytestmark = pytest.mark.slurm


def policy(**options):
    return Attempts(backoff_minutes=0.0, **options)


def shown(job, key):
    found = re.search(rf"\b{key}=(\S+)", output("scontrol", "--oneliner", "show", "job", job))
    return found[1] if found else ""


def test_killed_runs_start_again_with_more_memory_and_on_other_nodes_until_their_attempts_are_used_up(slurm, tmp_path):
    bench = bench_of(tmp_path)
    once = scripted({"steps": 2, "ends": ["kill", "done"]}, seed=1, attempts=policy())
    always = scripted({"steps": 2, "ends": ["kill"]}, seed=2, attempts=policy())
    hog = scripted({"ends": ["hog", "done"]}, seed=3, mem_gb_per_node=0.2, attempts=policy(mem_factor=4))
    never = scripted({"ends": ["kill"]}, seed=4, attempts=policy(of=1))
    bench.launch([once, always, hog, never])
    wait_for(lambda: "requeued" in bench.records()[once.id].reason, "the killed run to wait for its next start")
    queued = bench.records()[once.id]
    assert queued.state is RunState.QUEUED
    assert "killed by signal 9 (rank 0 on " in queued.reason
    wait_for_end(bench)
    records = bench.records()
    assert [records[run.id].state for run in (once, hog)] == [RunState.DONE] * 2, records
    excluded = shown(records[once.id].job, "ExcNodeList")  # if Slurm leaves the ending script the time to ask for it
    assert excluded == "(null)" or f"on {excluded})" in queued.reason
    assert records[hog.id].attempts[0].cause == "out_of_memory"
    assert float(shown(records[hog.id].job, "MinMemoryNode").rstrip("M")) == pytest.approx(0.8 * 1024, abs=5)
    assert [attempt.cause for attempt in records[always.id].attempts] == ["killed"] * 3
    assert "not started again" in records[always.id].reason
    assert records[always.id].state is records[never.id].state is RunState.INTERRUPTED
    assert len(records[never.id].attempts) == 1
    assert records[never.id].reason.startswith("killed by signal 9")


@in_campaign
def test_a_run_whose_rank_is_killed_goes_on_from_its_checkpoint(slurm, tmp_path):
    bench, gate = bench_of(tmp_path), tmp_path / "open"
    run = trained({"does": "hang", "at": 21, "until": str(gate)}, steps=24, nodes=2, attempts=policy())
    bench.launch([run], worker=WORKER)
    wait_for(lambda: gate.with_name("open hung").exists(), "rank 1 to be where it is killed")
    gate.touch()
    wait_for_end(bench)
    record = bench.records()[run.id]
    assert record.state is RunState.DONE, record.reason
    assert [attempt.cause for attempt in record.attempts] == ["killed", ""]
    assert record.attempts[1].first_progress["step"] > 20


@in_campaign
def test_packed_runs_start_again_in_their_job_and_a_hang_over_two_nodes_is_ended(slurm, tmp_path):
    bench, soon = bench_of(tmp_path), policy(stall_minutes=0.05)
    packed = {"attempts": soon, "pack": Pack(runs=2, at_once=2)}
    killed = scripted({"steps": 2, "ends": ["kill", "done"]}, seed=1, **packed)
    hangs = scripted({"steps": 2, "ends": ["stop", "done"]}, seed=2, **packed)
    wide = scripted({"steps": 1, "ends": ["stop", "done"]}, seed=3, nodes=2, attempts=soon)
    bench.launch([killed, hangs, wide])
    wait_for_end(bench)
    records = bench.records()
    ends = [[attempt.reason for attempt in records[run.id].attempts] for run in (killed, hangs, wide)]
    assert ends == [["killed by SIGKILL", ""], ["stalled: rank 0 stopped", ""], ["stalled: rank 0 stopped", ""]]
    jobs = [{attempt.claim.job for attempt in records[run.id].attempts} for run in (killed, hangs, wide)]
    assert jobs[0] == jobs[1] != jobs[2]
    assert [len(each) for each in jobs] == [1, 1, 1]


@in_campaign
def test_where_nodes_may_not_submit_the_next_command_launches_the_run_again(slurm, tmp_path):
    bench = bench_of(tmp_path, nodes_may_submit=False)
    run = scripted({"steps": 2, "ends": ["kill", "kill", "done"]}, seed=1, attempts=policy())
    bench.launch([run])
    project = Project(folder=tmp_path, runs=bench.paths.launch(1).runs)
    for launch in (1, 2):
        wait_for_end(bench)
        assert bench.records()[run.id].state is RunState.INTERRUPTED
        wait_for(lambda launch=launch: refresh(project, "x").next_number > launch + 1, "a command to launch it again")
    wait_for_end(bench)
    record = refresh(project, "x").records[run.id]
    assert record.state is RunState.DONE, record
    assert [attempt.claim.launch for attempt in record.attempts] == [1, 2, 3]
    assert record.planned.resources.attempts.of == 1
