"""Whatever stops a run on a real Slurm, it goes on by itself where it was, in the same launch; but for `scancel`.

Each story is told of a fit with two ranks and of one with a single process, launched together, and stopped
in the middle of their second epoch: their last regular checkpoint is older than that.
"""

from __future__ import annotations

import pytest
from cluster_contract import Gate, wait_for_end
from processes import tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import output

from orchestrator import tracking
from orchestrator.launch import WORKER
from orchestrator.layout import ExperimentPaths
from orchestrator.plan import to_do
from orchestrator.record import RunState
from orchestrator.slurm.cluster import SlurmCluster
from orchestrator.slurm.options import SlurmOptions
from orchestrator.testing.launches import Bench, scripted, trained
from orchestrator.testing.net import STEPS_PER_EPOCH

pytestmark = pytest.mark.slurm
STEPS = 400


class Story:
    """Two runs of one launch that train slowly until the gate is open."""

    def __init__(self, folder, *, options=None, seconds=0.2, hours=None):
        options = options or SlurmOptions()
        self.gate = Gate(folder / "open")
        self.bench = Bench(
            paths=ExperimentPaths(folder / "it's a run's folder" / "x"), kind="slurm", cluster=SlurmCluster(options)
        )
        net = self.gate.script(seconds=seconds)
        self.runs = [
            trained(net, steps=STEPS, hours=hours),
            trained(net, steps=STEPS, hours=hours, gpus_per_node=2, cpus_per_node=2),
        ]
        self.bench.launch(self.runs, worker=WORKER)

    def steps(self, run, attempt):
        """Return the steps that an attempt has logged."""
        metrics = self.bench.paths.run(run.id).attempt(attempt).metrics
        found = [record for record, _ in tracking.read(metrics)] if metrics.exists() else []
        return [one.step for one in found if isinstance(one, tracking.Metrics)]

    def wait_for_second_epoch(self):
        wait_for(lambda: all(len(self.steps(run, 1)) > STEPS_PER_EPOCH + 1 for run in self.runs), "the second epoch")

    def jobs(self):
        records = self.bench.records()
        return [records[run.id].job for run in self.runs]

    def nodes(self):
        records = self.bench.records()
        return [records[run.id].node for run in self.runs]

    def go_on(self):
        """Wait until both runs have begun again, and let them run to their end; returns their records."""
        wait_for(lambda: all(self.steps(run, 2) for run in self.runs), "both runs to go on")
        self.gate.open()
        wait_for_end(self.bench)
        records = self.bench.records()
        assert [records[run.id].state for run in self.runs] == [RunState.DONE] * 2
        assert len(self.bench.paths.launches()) == 1
        for run in self.runs:
            assert [attempt.claim.restart for attempt in records[run.id].attempts] == [0, 1]
        return [records[run.id] for run in self.runs]

    def assert_no_step_lost_or_repeated(self):
        for run in self.runs:
            first, second = self.steps(run, 1), self.steps(run, 2)
            assert first + second == list(range(STEPS))

    def assert_went_on_from_the_last_regular_checkpoint(self):
        for run in self.runs:
            first, second = self.steps(run, 1), self.steps(run, 2)
            assert first == list(range(len(first)))
            assert second == list(range(len(first) // STEPS_PER_EPOCH * STEPS_PER_EPOCH, STEPS))


@pytest.fixture
def tell(slurm, tmp_path):
    """Give a function that starts a story; at the end its runs are let go."""
    told = []

    def start(**more):
        told.append(Story(tmp_path, **more))
        return told[-1]

    yield start
    for story in told:
        story.gate.open()


def reasons(records):
    return [record.attempts[0].reason for record in records]


def urgent_job():
    """Submit a job that needs all nodes, and so preempts."""
    output("sbatch", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=true")


def test_at_the_time_limit_runs_save_themselves_and_go_on(tell):
    story = tell(options=SlurmOptions(signal_seconds=60), seconds=0.6, hours=2 / 60)
    records = story.go_on()
    story.assert_no_step_lost_or_repeated()
    assert all(reason.startswith("time limit of") for reason in reasons(records))


def test_preempted_runs_save_themselves_in_the_grace_time_and_go_on(tell):
    story = tell(options=SlurmOptions(partition="preemptible"))
    story.wait_for_second_epoch()
    urgent_job()
    records = story.go_on()
    story.assert_no_step_lost_or_repeated()
    assert reasons(records) == ["preempted, stopped by SIGTERM"] * 2


def test_runs_preempted_without_grace_go_on(tell, slurm):
    grace = slurm.options().grace_seconds
    output("scontrol", "update", "PartitionName=preemptible", "GraceTime=0")
    try:
        story = tell(options=SlurmOptions(partition="preemptible"))
        story.wait_for_second_epoch()
        urgent_job()
        records = story.go_on()
    finally:
        output("scontrol", "update", "PartitionName=preemptible", f"GraceTime={grace}")
    story.assert_no_step_lost_or_repeated()  # there is always the time from SIGTERM to SIGKILL (KillWait)
    assert reasons(records) == ["requeued in Slurm, stopped by SIGTERM"] * 2


def test_runs_requeued_by_hand_go_on(tell):
    story = tell()
    story.wait_for_second_epoch()
    for job in story.jobs():
        output("scontrol", "requeue", job)
    records = story.go_on()
    story.assert_no_step_lost_or_repeated()
    assert reasons(records) == ["requeued in Slurm, stopped by SIGTERM"] * 2


def test_runs_of_a_crashed_node_go_on_from_their_last_checkpoint_on_another(tell, slurm):
    story = tell()
    story.wait_for_second_epoch()
    nodes = story.nodes()
    for node in set(nodes):
        slurm.crash(node)
    try:
        records = story.go_on()
    finally:
        for node in set(nodes):
            slurm.restore(node)
    story.assert_went_on_from_the_last_regular_checkpoint()
    for record, node in zip(records, nodes, strict=True):
        assert record.attempts[0].claim.process.host == node
        assert record.attempts[1].claim.process.host not in nodes


def test_scancel_is_final_until_the_next_launch(tell):
    story = tell()
    story.wait_for_second_epoch()
    for job in story.jobs():
        output("scancel", job)
    wait_for_end(story.bench)
    records = story.bench.records()
    assert [records[run.id].state for run in story.runs] == [RunState.INTERRUPTED] * 2
    assert all("cancelled in Slurm" in records[run.id].reason for run in story.runs)
    assert not output("squeue", "--noheader")
    story.gate.open()
    assert [step.attempt for step in to_do(story.bench.launch(story.runs, worker=WORKER).steps)] == [2, 2]
    wait_for_end(story.bench)
    story.assert_no_step_lost_or_repeated()


def test_a_run_is_not_requeued_for_ever(slurm, tmp_path):
    gate = Gate(tmp_path / "open")
    bench = Bench(
        paths=ExperimentPaths(tmp_path / "x"), kind="slurm", cluster=SlurmCluster(SlurmOptions()),
        options={"max_requeues": 1},
    )  # fmt: skip
    run = scripted(gate.script())
    bench.launch([run])
    for attempt in (1, 2):
        wait_for(lambda count=attempt: len(bench.played()) == count, f"attempt {attempt}")
        wait_for(lambda: bench.records()[run.id].state is RunState.RUNNING, "Slurm to say so")
        output("scancel", "--signal=USR2", bench.records()[run.id].job)
        wait_for(lambda count=attempt: bench.played()[count - 1].ended, f"attempt {attempt} to stop")
    wait_for_end(bench)
    record = bench.records()[run.id]
    assert record.state is RunState.INTERRUPTED
    assert record.reason == "time limit, no more requeues (cluster.max_requeues=1)"
    assert len(record.attempts) == 2
