"""Whatever stops a run on a real Slurm, it goes on by itself where it was, in the same launch; but for `scancel`.

The campaign `slurm` tells each story of a fit with two ranks and of one with a single process, launched together, and
`make test` some of them, of one fit of each kind. They are stopped
in the middle of their second epoch: their last regular checkpoint is older than that. Those that are stopped in
the midst of a validation are in the preemption's story. What Slurm itself says of it all stands in its accounting.
"""

from __future__ import annotations

import campaigns
import pytest
from cluster_contract import Gate, wait_for_end
from processes import tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import in_campaign, output

from orchestrator import tracking
from orchestrator.launch.launch import WORKER
from orchestrator.launch.plan import to_do
from orchestrator.layout import ExperimentPaths
from orchestrator.records.record import RunState
from orchestrator.slurm.cluster import SlurmCluster
from orchestrator.slurm.options import SlurmOptions
from orchestrator.testing.launches import Bench, scripted, trained
from orchestrator.testing.net import STEPS_PER_EPOCH

pytestmark = pytest.mark.slurm
STEPS = 400


def told_of(validate):
    """Return the kinds and the ranks of the fits that a story is told of."""
    kinds = ["Net", "ValidatedNet"] if validate else ["Net"]
    both = {"gpus_per_node": 2, "cpus_per_node": 2}
    if not campaigns.NAME:
        return list(zip(kinds, (both, {}), strict=False))
    return [(kind, ranks) for kind in kinds for ranks in ({}, both)]


class Story:
    """Two runs of one launch that train slowly until the gate is open; with `validate`, two more that validate so.

    All must still be at it when the last is in its second epoch: they would take minutes for all their steps.
    """

    def __init__(self, folder, *, options=None, hours=None, validate=False):
        options = options or SlurmOptions()
        self.gate = Gate(folder / "open")
        self.bench = Bench(
            paths=ExperimentPaths(folder / "it's a run's folder" / "x"), kind="slurm", cluster=SlurmCluster(options)
        )
        net = self.gate.script(seconds=1.0)
        self.runs = [trained(net, kind=kind, steps=STEPS, hours=hours, **ranks) for kind, ranks in told_of(validate)]
        self.bench.launch(self.runs, worker=WORKER)

    def steps(self, run, attempt, metric="ranks"):
        """Return the steps at which an attempt has logged a metric."""
        metrics = self.bench.paths.run(run.id).attempt(attempt).metrics
        found = [record for record, _ in tracking.read(metrics)] if metrics.exists() else []
        return [one.step for one in found if isinstance(one, tracking.Metrics) and metric in one.values]

    def wait_for_second_epoch(self):
        """Wait until all train in their second epoch, or are in the midst of the validation of their first."""
        wait_for(lambda: all(map(self._is_far_enough, self.runs)), "the second epoch")

    def _is_far_enough(self, run):
        log = self.bench.paths.run(run.id).attempt(1).log
        validates = log.exists() and "validation batch 2\n" in log.read_text()
        return validates or len(self.steps(run, 1)) > STEPS_PER_EPOCH + 1

    def jobs(self):
        records = self.bench.records()
        return [records[run.id].job for run in self.runs]

    def nodes(self):
        records = self.bench.records()
        return [records[run.id].node for run in self.runs]

    def minutes(self):
        """Return for how many full minutes a job has run, at most: in less than an hour it is `MM:SS`."""
        return max(int(output("squeue", "--noheader", f"--jobs={job}", "--format=%M")[:-3]) for job in self.jobs())

    def limit_jobs(self, *, minutes):
        for job in self.jobs():
            output("scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}")

    def first(self):
        return [record.attempts[0] for record in self.bench.records().values()]

    def go_on(self):
        """Wait until all runs have begun again, and let them run to their end; returns their records."""
        begun = [self.bench.paths.run(run.id).attempt(2).log for run in self.runs]
        wait_for(lambda: all(log.exists() for log in begun), "the runs to go on")
        self.gate.open()
        wait_for_end(self.bench)
        records = self.bench.records()
        assert [(records[run.id].state, records[run.id].reason) for run in self.runs] == [
            (RunState.DONE, "") for run in self.runs
        ]
        assert len(self.bench.paths.launches()) == 1
        for run in self.runs:
            assert [attempt.claim.restart for attempt in records[run.id].attempts] == [0, 1]
        return [records[run.id] for run in self.runs]

    def assert_no_step_lost_or_repeated(self):
        for run in self.runs:
            first, second = self.steps(run, 1), self.steps(run, 2)
            assert first + second == list(range(STEPS))
        for run in (run for run in self.runs if run.config["model"]["_target_"].endswith("ValidatedNet")):
            validated = self.steps(run, 1, "val/loss") + self.steps(run, 2, "val/loss")
            assert validated == list(range(STEPS_PER_EPOCH - 1, STEPS, STEPS_PER_EPOCH))

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


@pytest.fixture
def grace(slurm):
    """Give a function that sets the grace time of the preemptible partition, for this test."""

    def set_to(seconds):
        output("scontrol", "update", "PartitionName=preemptible", f"GraceTime={seconds}")

    yield set_to
    set_to(slurm.options().grace_seconds)


def reasons(records):
    return [record.attempts[0].reason for record in records]


def urgent_job():
    """Submit a job that needs all nodes, and so preempts."""
    output("sbatch", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=true")


@in_campaign
def test_at_the_time_limit_runs_save_themselves_and_go_on(tell):
    story = tell(options=SlurmOptions(signal_seconds=60), hours=1)
    story.wait_for_second_epoch()
    story.limit_jobs(minutes=story.minutes() + 2)  # only now: how long runs need to begin is up to the machine
    wait_for(lambda: {attempt.state for attempt in story.first()} == {RunState.INTERRUPTED}, "both to be stopped")
    story.limit_jobs(minutes=60)
    records = story.go_on()
    story.assert_no_step_lost_or_repeated()
    assert all(reason.startswith("time limit of") for reason in reasons(records))


@pytest.mark.campaign("slurm", sample=True)
def test_preempted_runs_save_themselves_in_the_grace_time_and_go_on(tell, grace):
    grace(30)  # enough to save four at once, on a busy machine
    story = tell(options=SlurmOptions(partition="preemptible"), validate=True)
    story.wait_for_second_epoch()
    urgent_job()
    records = story.go_on()
    story.assert_no_step_lost_or_repeated()
    assert reasons(records) == ["preempted, stopped by SIGTERM"] * len(story.runs)


@in_campaign
def test_runs_preempted_without_grace_go_on(tell, grace):
    grace(0)
    story = tell(options=SlurmOptions(partition="preemptible"))
    story.wait_for_second_epoch()
    urgent_job()
    records = story.go_on()
    story.assert_no_step_lost_or_repeated()  # there is always the time from SIGTERM to SIGKILL (KillWait)
    assert reasons(records) == ["requeued in Slurm, stopped by SIGTERM"] * 2


@in_campaign
def test_runs_requeued_by_hand_go_on(tell):
    story = tell()
    story.wait_for_second_epoch()
    for job in story.jobs():
        output("scontrol", "requeue", job)
    records = story.go_on()
    story.assert_no_step_lost_or_repeated()
    assert reasons(records) == ["requeued in Slurm, stopped by SIGTERM"] * 2


@in_campaign
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


@in_campaign
def test_scancel_is_final_until_the_next_launch(tell):
    story = tell()
    story.wait_for_second_epoch()
    for job in story.jobs():
        output("scancel", job)
    wait_for_end(story.bench)
    records = story.bench.records()
    assert [records[run.id].state for run in story.runs] == [RunState.INTERRUPTED] * 2
    assert all(records[run.id].reason.startswith("cancelled in Slurm, stopped by SIGTERM") for run in story.runs)
    assert not output("squeue", "--noheader")
    story.gate.open()
    assert [step.attempt for step in to_do(story.bench.launch(story.runs, worker=WORKER).steps)] == [2, 2]
    wait_for_end(story.bench)
    story.assert_no_step_lost_or_repeated()


def test_a_run_is_not_requeued_for_ever(slurm, tmp_path):
    gate = Gate(tmp_path / "open")
    bench = Bench(
        paths=ExperimentPaths(tmp_path / "x"),
        kind="slurm",
        cluster=SlurmCluster(SlurmOptions()),
        options={"max_requeues": 1},
    )
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
    assert record.reason == "time limit, no more requeues without progress (cluster.max_requeues=1)"
    assert len(record.attempts) == 2


@in_campaign
def test_slurm_requeues_a_run_for_ever_only_if_it_gets_further(slurm, tmp_path):
    """As where a run brings its node down, or is preempted again and again before it has taken a step."""
    gate = Gate(tmp_path / "open")
    bench = Bench(
        paths=ExperimentPaths(tmp_path / "x"), kind="slurm", cluster=SlurmCluster(SlurmOptions(max_requeues=1))
    )
    stuck, slow = scripted(gate.script()), scripted({"steps": 10_000, "seconds": 0.5})
    bench.launch([stuck, slow])
    for attempt in (1, 2):
        wait_for(lambda count=attempt: begun(bench, stuck, slow) == [count, count], f"attempt {attempt}")
        wait_for(lambda: bench.records()[slow.id].last.progress, "a step")
        for run in (stuck, slow):
            output("scontrol", "requeue", bench.records()[run.id].job)
    wait_for(lambda: begun(bench, stuck, slow) == [2, 3], "the third attempt of the one that gets further")
    wait_for(lambda: bench.records()[stuck.id].state is RunState.INTERRUPTED, "the other to end")
    record = bench.records()[stuck.id]
    assert record.reason == "no more requeues without progress (cluster.max_requeues=1)"
    assert [attempt.number for attempt in record.attempts] == [1, 2, 3]
    assert bench.records()[slow.id].state.active
    bench.cancel(slow)
    wait_for_end(bench)
    gate.open()
    bench.launch([stuck])  # a new launch is a new job: it may start again
    wait_for_end(bench)
    assert bench.records()[stuck.id].state is RunState.DONE


def begun(bench, *runs):
    """Return how often runs have really begun."""
    return [sum(played.run == run.id for played in bench.played()) for run in runs]


@in_campaign
def test_slurm_itself_says_what_happened(accounted_slurm, tmp_path):
    """All that can stop a run, at the same time, and told by `sacct` as the states of each job's starts."""
    gate = Gate(tmp_path / "open")

    def launch(name, count, **options):
        cluster = SlurmCluster(SlurmOptions.parse(options))
        bench = Bench(paths=ExperimentPaths(tmp_path / name), kind="slurm", cluster=cluster)
        runs = [scripted(gate.script(steps=2), seed=seed, hours=1) for seed in range(count)]
        bench.launch(runs)
        wait_for(lambda: len(bench.played()) == count, f"the runs of {name} to begin")
        records = bench.records()
        return bench, [records[run.id].job for run in runs]

    preempted, (evicted,) = launch("preempted", 1, partition="preemptible", nodelist="n0")
    stopped, (requeued, limited, cancelled) = launch("stopped", 3, nodelist="n0")
    crashed, (lost,) = launch("crashed", 1, nodelist="n1")
    output("sbatch", "--partition=urgent", "--nodelist=n0", "--output=/dev/null", "--wrap=true")
    output("scontrol", "requeue", requeued)
    output("scancel", "--signal=USR2", limited)  # as Slurm does before the time limit
    output("scancel", cancelled)
    accounted_slurm.crash("n1")
    wait_for(lambda: squeue_state(lost) != "RUNNING", "Slurm to miss the node")
    accounted_slurm.restore("n1")
    for bench, begun in ((preempted, 2), (stopped, 5), (crashed, 2)):
        wait_for(lambda bench=bench, begun=begun: len(bench.played()) == begun, "what was stopped to begin again")
    gate.open()
    for bench in (preempted, stopped, crashed):
        wait_for_end(bench)
    expected = {
        evicted: ["PREEMPTED", "COMPLETED"],
        requeued: ["REQUEUED", "COMPLETED"],
        limited: ["REQUEUED", "COMPLETED"],
        cancelled: ["CANCELLED"],
        lost: ["NODE_FAIL", "COMPLETED"],
    }
    for job, states in expected.items():
        wait_for(lambda job=job, states=states: accounted(job) == states, f"{job} to be {states} in the accounting")
    records = [record for bench in (preempted, stopped, crashed) for record in bench.records().values()]
    assert [record.state for record in records].count(RunState.DONE) == 4
    (reason,) = [record.reason for record in records if record.state is not RunState.DONE]
    assert reason.startswith("cancelled in Slurm, stopped by SIGTERM")


def squeue_state(job):
    return output("squeue", "--noheader", f"--jobs={job}", "--format=%T")


def accounted(job):
    """Return the state of each of a job's starts, as sacct says it."""
    told = output(
        "sacct", "--noheader", "--parsable2", "--duplicates", "--allocations", f"--jobs={job}", "--format=State"
    )
    return [line.split()[0] for line in told.splitlines()]


SLOW_START = """
import os, pathlib, signal, time
asked = {signal.SIGTERM, signal.SIGUSR2}
if os.environ.get("SLURM_RESTART_COUNT", "0") == "0" and "SLURM_PROCID" in os.environ:
    pathlib.Path(__file__).with_name("python.starts").touch()
    while not signal.sigpending() & asked:
        time.sleep(0.05)
"""


@pytest.mark.campaign("slurm", sample=True)
def test_a_signal_that_comes_while_python_starts_is_heard(slurm, tmp_path):
    """On a cold network filesystem that takes many seconds; here Python waits for the signal in its first line."""
    cluster = SlurmCluster(SlurmOptions(partition="preemptible"))
    bench = Bench(paths=ExperimentPaths(tmp_path / "it's a folder" / "x"), kind="slurm", cluster=cluster)
    first = scripted({"steps": 1})
    bench.launch([first])  # it leaves frozen code
    wait_for_end(bench)
    (tree,) = (bench.paths.path / "code").glob("*/tree")
    for seed, stop in enumerate([urgent_job, lambda job: output("scancel", "--signal=USR2", job)], start=1):
        (tree / "sitecustomize.py").write_text(SLOW_START)
        run = scripted({"steps": 1}, seed=seed)
        bench.launch([run])
        wait_for((tree / "python.starts").exists, "Python to start")
        stop(*[bench.records()[run.id].job] * (stop is not urgent_job))
        wait_for_end(bench)
        record = bench.records()[run.id]
        assert (record.state, len(record.attempts)) == (RunState.DONE, 2)
        assert record.attempts[0].reason in {"preempted, stopped by SIGTERM", "time limit"}
        (tree / "python.starts").unlink()
