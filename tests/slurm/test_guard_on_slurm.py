"""Care for the queue on a real Slurm: canary, brake, hold, release, change, and the word at the end."""

from __future__ import annotations

import re

import pytest
from cluster_contract import Gate, states, wait_for_end
from processes import tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import output

from orchestrator import api
from orchestrator.cluster import Change
from orchestrator.errors import RequestError
from orchestrator.launch import canary
from orchestrator.layout import ExperimentPaths, RunsRoot
from orchestrator.project import Project
from orchestrator.records.record import RunState
from orchestrator.slurm.cluster import SlurmCluster
from orchestrator.slurm.options import SlurmOptions
from orchestrator.testing.launches import Bench, scripted

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("tidy")]


@pytest.fixture
def bench(slurm, tmp_path):
    return Bench(
        paths=ExperimentPaths(tmp_path / "a run's folder" / "x"), kind="slurm", cluster=SlurmCluster(SlurmOptions())
    )


def project_of(bench):
    return Project.around(RunsRoot(bench.paths.path.parent))


def queued():
    return output("squeue", "--noheader", "--array", "--format=%i|%T|%r|%P|%l|%C").splitlines()


def test_the_others_begin_once_the_canary_is_done(bench, gate):
    runs = [scripted(gate.script(), seed=seed) for seed in range(6)]
    launched = bench.launch(runs, canary=2)
    assert launched.waiting.tasks == 4
    assert len(queued()) == 2
    wait_for(lambda: len(bench.played()) == 2, "the canary to begin")
    told = {bench.records()[run.id].reason for run in runs[2:]}
    assert told == {"the canary comes first: 0 of 2 runs are done"}
    assert states(bench, runs[2:]) == [RunState.WAITING] * 4
    gate.open()  # an ending job submits the rest: nobody looks
    wait_for(lambda: len(bench.played()) == 6, "the others to begin")
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 6
    assert sorted(played.run for played in bench.played()) == sorted(run.id for run in runs)


def test_nothing_else_begins_where_the_canary_fails_and_the_next_launch_takes_all_up(bench):
    runs = [scripted({"ends": ["raise", "done"]}), *(scripted(seed=seed) for seed in (1, 2))]
    bench.launch(runs, canary=1)
    wait_for_end(bench)
    records = bench.records()
    assert [records[run.id].state for run in runs] == [RunState.FAILED, RunState.CANCELLED, RunState.CANCELLED]
    assert re.fullmatch(rf"stopped: run {runs[0].id[:8]} of the canary failed with Arith.*", records[runs[1].id].reason)
    bench.launch(runs, canary=1)
    wait_for(lambda: states(bench, runs) == [RunState.DONE] * 3, "all to be done")


def test_the_brake_stops_what_has_not_begun_and_leaves_what_runs(bench, gate, tmp_path):
    goes_on, trouble = scripted(gate.script()), Gate(tmp_path / "trouble")
    ends = enumerate(("exit", "raise", "raise"), 1)
    fail = [scripted(trouble.script(ends=[end]), seed=seed) for seed, end in ends]
    behind = [scripted(seed=seed, nodes=4, cpus_per_node=4) for seed in (10, 11)]  # they need all nodes
    bench.launch([goes_on, *fail, *behind], brake=2)
    wait_for(lambda: len(bench.played()) == 4, "all that there is room for to begin")
    trouble.open()
    wait_for(lambda: states(bench, behind) == [RunState.CANCELLED] * 2, "the brake")
    reason = bench.records()[behind[0].id].reason
    assert re.fullmatch(r"stopped by the failure limit: 2 runs failed with ArithmeticError at script.py:\d+", reason)
    wait_for(lambda: len(queued()) == 1, f"Slurm to be told; it has {queued()}")
    assert states(bench, [goes_on]) == [RunState.RUNNING]
    gate.open()
    wait_for_end(bench)
    assert states(bench, [goes_on, *fail]) == [RunState.DONE, *[RunState.FAILED] * 3]


def test_what_waits_is_held_released_and_changed(bench, gate):
    crowd = [scripted(gate.script(), seed=seed, cpus_per_node=4) for seed in range(6)]  # one fills a node
    bench.launch(crowd)
    wait_for(lambda: len(bench.played()) == 4, "all nodes to be at work")
    running = {played.run for played in bench.played()}
    first, second = [run for run in crowd if run.id not in running]
    project, name = project_of(bench), bench.paths.name
    assert [record.id for record in api.hold(project, name, [bench.records()[first.id]])] == [first.id]
    wait_for(lambda: "JobHeld" in bench.records()[first.id].reason, "squeue's shared answer to be a new one")
    limits = Change(hours=0.5, throttle=1, options={"partition": "limited"})
    changed = api.change(project, name, bench.records().values(), limits)
    assert {record.id for record in changed} == {first.id, second.id}
    lines = [line for line in queued() if "PENDING" in line]
    assert [line.split("|")[3:5] for line in lines] == [["limited", "30:00"]] * 2
    api.release(project, name, [bench.records()[first.id]])
    wait_for(lambda: "JobHeld" not in bench.records()[first.id].reason, "squeue's shared answer to be a new one")
    gate.open()
    wait_for_end(bench)
    assert states(bench, crowd) == [RunState.DONE] * 6


def test_what_has_not_been_submitted_is_held_released_and_changed_too(bench, gate):
    runs = [scripted(gate.script(), seed=seed) for seed in range(4)]
    bench.launch(runs, canary=1)
    project, name = project_of(bench), bench.paths.name
    waiting = [bench.records()[run.id] for run in runs[1:]]
    with pytest.raises(RequestError, match="2 more runs of launch 0001 wait"):
        api.change(project, name, waiting[:1], Change(hours=0.5))
    api.change(project, name, waiting, Change(hours=0.5))
    api.change(project, name, waiting, Change(hours=0.25, options={"partition": "limited"}))
    api.hold(project, name, waiting[:1])
    api.release(project, name, waiting[1:])  # and so the canary need not be done
    assert len(queued()) == 3
    assert bench.records()[runs[1].id].reason == "held: `orch release` lets it go"
    of_the_others = sorted(line.split("|")[3:5] for line in queued() if "limited" in line)
    assert of_the_others == [["limited", "15:00"]] * 2
    api.release(project, name, [bench.records()[runs[1].id]])
    assert len(queued()) == 4
    gate.open()
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 4


def test_a_person_is_told_once_of_the_first_failure_and_once_of_the_end(bench, tmp_path):
    told = tmp_path / "told; $(touch no)"
    program = tmp_path / "tell it"
    program.write_text('#!/bin/sh\n{ echo "$ORCH_EVENT $ORCH_EXPERIMENT $ORCH_LAUNCH|$1"; cat; } >> "$2"\n')
    program.chmod(0o755)
    runs = [*(scripted({"ends": ["raise"]}, seed=seed) for seed in range(3)), *(scripted(seed=s) for s in range(3, 6))]
    bench.launch(runs, notify=(str(program), "it's $HOME", str(told)))
    wait_for_end(bench)
    wait_for(lambda: told.exists() and told.read_text().count("ended x 1|it's $HOME") == 1, "the end to be told")
    text = told.read_text()
    assert text.count("failed x 1|it's $HOME") == 1
    assert text.count("ended x 1") == 1
    assert "x, launch 0001 has ended: 3 failed, 3 done" in text or "3 done, 3 failed" in text


def test_who_looks_tells_of_a_run_that_died_without_a_word(bench, gate, tmp_path):
    told = tmp_path / "told"
    run = scripted(gate.script())
    bench.launch([run], notify=("tee", "-a", str(told)))
    wait_for(bench.played, "it to begin")
    job = bench.records()[run.id].job
    output("scancel", "--signal=KILL", "--full", job)
    wait_for_end(bench)
    assert not told.exists()
    assert canary.safeguards(bench.paths.launch(1)).closed == ""
    for _ in range(2):
        api.refresh(project_of(bench), bench.paths.name)
    assert told.read_text().count("has ended") == 1
