"""Runs of this machine that are killed start again by themselves: in the foreground, and when the supervisor is new."""

from __future__ import annotations

import os
import signal

import pytest
from cluster_contract import Gate, wait_for_end
from processes import of_this_test, tidy, wait_for  # noqa: F401 - one is a fixture

from orchestrator.layout import ExperimentPaths
from orchestrator.local.inline import Inline
from orchestrator.local.workstation import Workstation
from orchestrator.records.record import RunState
from orchestrator.spec import Attempts
from orchestrator.testing.launches import Bench, scripted

SOON = Attempts(backoff_minutes=0.0)


def bench_of(folder, kind, cluster):
    return Bench(paths=ExperimentPaths(folder / "it's runs" / "x"), kind=kind, cluster=cluster)


def test_in_the_foreground_within_the_same_launch(tmp_path):
    bench = bench_of(tmp_path, "inline", Inline(grace_seconds=1.0))
    runs = [
        scripted({"steps": 3, "ends": ["kill", "done"]}, seed=1, attempts=SOON),
        scripted({"steps": 3, "ends": ["kill"]}, seed=2, attempts=SOON),
        scripted({"ends": ["raise"]}, seed=3, attempts=SOON),
    ]
    bench.launch(runs)
    bench.cluster.run()
    once, always, failed = (bench.records()[run.id] for run in runs)
    assert (once.state, [attempt.cause for attempt in once.attempts]) == (RunState.DONE, ["killed", ""])
    assert {attempt.claim.launch for attempt in once.attempts} == {1}
    assert (always.state, len(always.attempts)) == (RunState.INTERRUPTED, 3)
    assert always.reason == "killed by SIGKILL; not started again: attempt 3 of 3"
    assert (failed.state, len(failed.attempts)) == (RunState.FAILED, 1)


@pytest.fixture
def bench(tmp_path):
    gate = Gate(tmp_path / "open")
    yield bench_of(tmp_path, "workstation", Workstation(folder=tmp_path / "queue", cpus=2))
    gate.open()


def supervisors():
    return [each for each in of_this_test() if "orchestrator.local.workstation" in (each.info["cmdline"] or [])]


def test_on_a_workstation_and_a_new_supervisor_knows_the_attempt_that_runs(bench, tmp_path):
    run = scripted({"until": str(tmp_path / "open"), "steps": 1}, attempts=Attempts(backoff_minutes=0.05))
    bench.launch([run])
    wait_for(lambda: len(bench.played()) == 1, "the run to begin")
    os.kill(bench.played()[0].pid, signal.SIGKILL)
    wait_for(lambda: bench.records()[run.id].reason.startswith("requeued (attempt 2 of 3"), "it to wait")
    assert bench.records()[run.id].state is RunState.QUEUED
    wait_for(lambda: len(bench.played()) == 2, "the next attempt")
    os.kill(supervisors()[0].pid, signal.SIGKILL)
    wait_for(lambda: not supervisors(), "the supervisor to be gone")
    assert bench.records()[run.id].state is RunState.RUNNING
    os.kill(bench.played()[1].pid, signal.SIGKILL)
    wait_for(lambda: bench.records() and len(bench.played()) == 3, "a new supervisor to see to it")
    (tmp_path / "open").touch()
    wait_for_end(bench)
    record = bench.records()[run.id]
    assert (record.state, [each.number for each in record.attempts]) == (RunState.DONE, [1, 2, 3])
