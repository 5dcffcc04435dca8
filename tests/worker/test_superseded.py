"""A superseded attempt: its job was started again though its processes are alive. It ends, and writes nowhere else."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from launches import planned_run
from processes import wait_for

from orchestrator.layout import AttemptPaths, ExperimentPaths, RunPaths
from orchestrator.local.workstation import Workstation
from orchestrator.records.attempts import claim_attempt, is_superseded, read_attempt, read_claim, read_marks
from orchestrator.records.header import LaunchHeader
from orchestrator.records.record import Claim, RunState
from orchestrator.system.processes import ProcessId
from orchestrator.testing.launches import WORKER, Bench, scripted
from orchestrator.tracking.experiment import RunExperiment
from orchestrator.tracking.spool import SpoolWriter
from orchestrator.tracking.uploader import Carrier
from orchestrator.worker import requeue, superseded
from orchestrator.worker.assignment import Assignment
from orchestrator.worker.context import ProcessContext
from orchestrator.worker.pack import Pack
from orchestrator.worker.signals import InterruptedByInfrastructureError


def claim(attempt: AttemptPaths, *, restart: int = 0) -> None:
    mine = Claim(
        launch=1,
        index=0,
        code="c0de",
        generation=1,
        history=1,
        process=ProcessId.current(),
        time=time.time(),
        job="7_0",
        restart=restart,
    )
    assert claim_attempt(attempt, mine)


@pytest.fixture
def assignment(tmp_path: Path) -> Assignment:
    """The first attempt of a job of Slurm's, which its process has claimed."""
    launch = ExperimentPaths(tmp_path / "runs" / "e").launch(1)
    header = LaunchHeader(cluster={"kind": "slurm"})
    found = Assignment(launch=launch, header=header, planned=planned_run(), context=ProcessContext(job="7_0"))
    claim(found.attempt)
    return found


def test_rank_0_ends_once_a_later_attempt_is_claimed_and_no_other_rank_looks(assignment):
    ended, others = threading.Event(), threading.Event()
    other = replace(assignment, context=replace(assignment.context, rank=1))
    with (
        superseded.watched(assignment, ended.set, every_s=0.01),
        superseded.watched(other, others.set, every_s=0.01),
    ):
        assert not ended.wait(0.1)
        claim(assignment.following().attempt, restart=1)
        assert ended.wait(60)
        assert not others.is_set()


def test_a_start_that_its_job_has_left_behind_begins_nothing_and_does_not_requeue_it(assignment):
    claim(assignment.following().attempt, restart=1)
    assert assignment.next_start() is None
    error = InterruptedByInfrastructureError("SIGTERM", together=True)
    requeue.answer(assignment, error, exhausted=lambda: False)  # asks Slurm for nothing, and does not wait
    again = replace(assignment, context=replace(assignment.context, restart=1))
    assert again.next_start().planned.attempt == 3


def test_a_pack_is_superseded_once_a_later_start_of_its_job_has_begun_a_run_of_it(assignment):
    other = replace(assignment, planned=replace(assignment.planned, run="ba9876543210", index=1))
    pack = Pack(
        launch=assignment.launch, header=assignment.header, runs=(assignment, other), context=assignment.context
    )
    claim(other.attempt)
    assert not pack.superseded
    claim(other.following().attempt, restart=1)
    assert pack.superseded
    assert [run.planned.run for run in pack.left().runs] == [assignment.planned.run]
    assert not replace(pack, context=replace(pack.context, restart=1)).superseded


def test_a_superseded_attempt_saves_no_artifact(assignment, caplog):
    with SpoolWriter(assignment.attempt.metrics) as spool:
        run = RunExperiment(spool, assignment.attempt)
        run.log_text("mine", "a.txt")
        claim(assignment.following().attempt, restart=1)
        run.log_text("too late", "a.txt")
    assert (run.artifacts / "a.txt").read_text() == "mine"
    assert "a later attempt of the run has been claimed" in caplog.text


@pytest.mark.parametrize("closed", [False, True])
def test_the_uploader_of_a_superseded_attempt_sends_nothing_more(closed):
    class Stub:
        superseded, end_seconds = True, 0.0

    carrier = Carrier(Stub())
    carrier._pause_seconds = 0.0
    over = threading.Event()
    if closed:
        over.set()
    assert carrier.carry(over)


def test_nothing_is_concluded_from_a_run_that_cannot_be_listed(tmp_path):
    assert not is_superseded(RunPaths(tmp_path / "gone").attempt(1))


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize("ends", ["done", "raise"])
def test_however_a_superseded_attempt_ends_it_is_interrupted_and_marks_nothing(tmp_path, ends):
    bench = Bench(paths=ExperimentPaths(tmp_path / "runs" / "e"), kind="workstation", cluster=Workstation(cpus=2))
    run = scripted({"until": str(tmp_path / "open"), "ends": [ends]})
    bench.launch([run], worker=WORKER)
    wait_for(bench.played, "the run to begin")
    folder = bench.paths.run(run.id)
    claim(folder.attempt(2))
    (tmp_path / "open").touch()
    wait_for(lambda: read_attempt(folder, folder.attempt(1)).final, "the first attempt to end")
    first = read_attempt(folder, folder.attempt(1))
    assert (first.state, first.failure) == (RunState.INTERRUPTED, None)
    assert first.reason == "a later attempt of the run has been claimed"
    assert read_marks(bench.paths)[run.id] == (1, "running")
    assert not list(bench.paths.launch(1).path.glob("failures/*"))
    assert read_claim(folder.attempt(2)).process.pid
