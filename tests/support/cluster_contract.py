"""The contract of every cluster, as tests. A cluster's own tests subclass these, which do not depend on its kind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import wait_for

from orchestrator.cluster import Cluster, JobState
from orchestrator.launch.plan import Action, to_do
from orchestrator.layout import ExperimentPaths, LaunchPaths
from orchestrator.records.record import Record, RunState
from orchestrator.spec.experiment import Run
from orchestrator.testing.launches import Bench, Played, scripted


class Gate:
    """A file that runs wait for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def script(self, **more: object) -> dict[str, object]:
        return {"until": str(self._path), **more}

    def open(self) -> None:
        self._path.touch()


class ClusterContract:
    """Subclasses define the kind, the number of one-CPU runs that run at once, and a cluster."""

    kind: str
    slots: int
    shortest_hours = 1e-3  # 3.6 s: on a busy machine a worker needs a second to begin

    @pytest.fixture
    def cluster(self) -> Cluster:
        raise NotImplementedError

    @contextmanager
    def at_work(self, cluster: Cluster) -> Iterator[Callable[[], None]]:
        """Yield a function that makes the cluster process submitted runs; a background cluster does so by itself."""
        yield lambda: None

    @pytest.fixture
    def bench(self, cluster: Cluster, tmp_path: Path) -> Bench:
        return Bench(paths=ExperimentPaths(tmp_path / "it's a run's folder ü" / "x"), kind=self.kind, cluster=cluster)

    @pytest.fixture
    def work(self, cluster: Cluster) -> Iterator[Callable[[], None]]:
        with self.at_work(cluster) as work:
            yield work

    @pytest.fixture
    def gate(self, tmp_path: Path) -> Iterator[Gate]:
        gate = Gate(tmp_path / "open")
        yield gate
        gate.open()

    def test_every_task_runs_exactly_once(self, bench, work):
        runs = [scripted(seed=seed) for seed in range(5)]
        launched = bench.launch(runs)
        work()
        wait_for_end(bench)
        assert states(bench, runs) == [RunState.DONE] * 5
        assert sorted(played.run for played in bench.played()) == sorted(run.id for run in runs)
        wait_for(lambda: observed(bench, launched.paths, 5) == [JobState.ENDED] * 5, "the cluster to say so, too")
        assert bench.launch(runs).paths is None

    def test_a_launch_that_was_handed_over_whole_has_nothing_to_go_on_with(self, bench, work):
        run = scripted()
        launched = bench.launch([run])
        assert launched.waiting is None
        assert bench.cluster.submit_pending(launched.paths) == 0
        work()
        wait_for_end(bench)
        assert bench.cluster.submit_pending(launched.paths) == 0
        assert len(bench.played()) == 1

    def test_observe_tells_what_waits_what_runs_and_what_has_ended(self, bench, work, gate):
        runs = [scripted(gate.script(), seed=seed) for seed in range(self.slots + 1)]
        paths = bench.launch(runs).paths
        work()
        wait_for(lambda: len(bench.played()) == self.slots, "as many runs as there are slots")
        expected = [JobState.RUNNING] * self.slots + [JobState.PENDING]
        wait_for(lambda: observed(bench, paths, len(runs)) == expected, "the cluster to tell which run, and which wait")
        seen = bench.cluster.observe(paths, range(len(runs)))
        assert seen[0].job
        assert seen[0].node
        assert states(bench, runs) == [RunState.RUNNING] * self.slots + [RunState.QUEUED]
        gate.open()
        wait_for_end(bench)
        wait_for(lambda: set(observed(bench, paths, len(runs))) == {JobState.ENDED}, "the cluster to say so, too")

    def test_a_run_that_raises_is_failed_and_the_others_are_not(self, bench, work):
        runs = [scripted({"ends": ["raise"]}), scripted({"ends": ["exit"]}), scripted()]
        bench.launch(runs)
        work()
        wait_for_end(bench)
        raised, left, fine = (bench.records()[run.id] for run in runs)
        assert (raised.state, left.state, fine.state) == (RunState.FAILED, RunState.FAILED, RunState.DONE)
        assert raised.failure.signature.startswith("ArithmeticError at script.py:")
        assert "this run was to fail" in raised.failure.traceback
        assert left.failure.signature == "exit status 3"

    def test_a_run_that_was_killed_is_interrupted_and_goes_on_where_it_was(self, bench, work):
        run = scripted({"steps": 3, "ends": ["kill", "done"]})
        bench.launch([run])
        work()
        wait_for_end(bench)
        assert bench.records()[run.id].state is RunState.INTERRUPTED
        (step,) = to_do(bench.launch([run]).steps)
        assert (step.action, step.attempt, step.history) == (Action.RESUME, 2, 1)
        work()
        wait_for_end(bench)
        record = bench.records()[run.id]
        assert record.state is RunState.DONE
        assert [attempt.number for attempt in record.history] == [1, 2]
        assert logged_steps(bench, run) == {1: ["step 1", "step 2", "step 3"], 2: []}

    def test_a_process_killed_from_outside_is_interrupted(self, bench, work, gate):
        run = scripted(gate.script())
        bench.launch([run])
        work()
        self.kill(playing(bench, run))
        wait_for_end(bench)
        assert bench.records()[run.id].state is RunState.INTERRUPTED

    def kill(self, played: Played) -> None:
        os.kill(played.pid, signal.SIGKILL)

    def test_a_queued_run_that_is_cancelled_never_starts(self, bench, work, gate):
        runs = [scripted(gate.script(), seed=seed) for seed in range(self.slots + 1)]
        bench.launch(runs)
        work()
        wait_for(lambda: len(bench.played()) == self.slots, "as many runs as there are slots")
        bench.cancel(runs[-1])
        wait_for(lambda: bench.records()[runs[-1].id].state is RunState.CANCELLED, "the queued run to be cancelled")
        assert states(bench, runs[:-1]) == [RunState.RUNNING] * self.slots
        gate.open()
        wait_for_end(bench)
        assert states(bench, runs) == [RunState.DONE] * self.slots + [RunState.CANCELLED]
        assert runs[-1].id not in {played.run for played in bench.played()}

    def test_a_running_run_that_is_cancelled_is_asked_to_stop_and_can_go_on_later(self, bench, work, gate):
        run = scripted(gate.script(steps=2))
        bench.launch([run])
        work()
        playing(bench, run)
        bench.cancel(run)
        wait_for(lambda: bench.records()[run.id].state is RunState.CANCELLED, "the run to be cancelled")
        assert bench.played()[0].ended is not None, "it was not asked, but killed"
        gate.open()
        bench.launch([run])
        work()
        wait_for_end(bench)
        assert states(bench, [run]) == [RunState.DONE]

    def test_a_cancelled_run_that_does_not_listen_is_killed_after_the_grace_time(self, bench, work, gate):
        run = scripted(gate.script(deaf=True))
        bench.launch([run])
        work()
        playing(bench, run)
        bench.cancel(run)
        wait_for(lambda: bench.records()[run.id].state is RunState.CANCELLED, "the run to be cancelled")
        assert bench.played()[0].ended is None, "it ended by itself"

    def test_a_run_is_stopped_at_its_time_limit_and_can_go_on(self, bench, work, gate):
        run = scripted(gate.script(), hours=self.shortest_hours)
        bench.launch([run])
        work()
        wait_for_end(bench)
        record = bench.records()[run.id]
        assert record.state is RunState.INTERRUPTED
        assert "time limit" in record.reason
        gate.open()
        assert to_do(bench.launch([run]).steps)[0].action in {Action.RESUME, Action.SUBMIT}
        work()
        wait_for_end(bench)
        assert states(bench, [run]) == [RunState.DONE]

    def test_what_a_process_said_that_died_before_its_claim_is_in_the_record(self, bench, work):
        run = scripted()
        bench.launch([run], worker=("-c", "print('libnothing.so: not found'); raise SystemExit(3)"))
        work()
        wait_for_end(bench)
        record = bench.records()[run.id]
        assert record.state is RunState.FAILED
        assert "libnothing.so: not found" in record.failure.traceback
        assert to_do(bench.launch([run]).steps)[0].action is Action.RETRY
        work()
        wait_for_end(bench)
        assert states(bench, [run]) == [RunState.DONE]


class OrderedClusterContract(ClusterContract):
    """A cluster of one machine: first come, first served, and never more runs than fit."""

    def test_never_more_runs_than_slots(self, bench, work):
        bench.launch([scripted({"seconds": 0.1}, seed=seed) for seed in range(3 * self.slots)])
        work()
        wait_for_end(bench)
        assert most_at_once(bench.played()) <= self.slots

    def test_first_come_first_served(self, bench, work):
        first = [scripted(seed=seed, cpus_per_node=self.slots) for seed in (3, 1)]
        second = [scripted(seed=seed, cpus_per_node=self.slots) for seed in (2, 0)]
        bench.launch(first)
        bench.launch(second)
        work()
        wait_for_end(bench)
        assert [played.run for played in bench.played()] == [run.id for run in (*first, *second)]

    def test_a_wide_run_at_the_head_of_the_queue_is_not_overtaken(self, bench, work, gate):
        narrow, wide = scripted(gate.script(), seed=0), scripted(seed=1, cpus_per_node=self.slots)
        behind = [scripted(seed=seed) for seed in (2, 3)]
        bench.launch([narrow, wide, *behind])
        work()
        playing(bench, narrow)
        assert states(bench, [wide, *behind]) == [RunState.QUEUED] * 3
        gate.open()
        wait_for_end(bench)
        assert [played.run for played in bench.played()][:2] == [narrow.id, wide.id]


def wait_for_end(bench: Bench) -> None:
    """Wait until no run is waiting or running."""
    wait_for(lambda: not any(record.state.active for record in bench.records().values()), "all runs to end")


def playing(bench: Bench, run: Run) -> Played:
    """Wait until a run has begun, and return its claim."""
    wait_for(lambda: any(played.run == run.id for played in bench.played()), f"{run.id} to begin")
    return next(played for played in bench.played() if played.run == run.id)


def observed(bench: Bench, launch: LaunchPaths, count: int) -> list[JobState]:
    """Return the cluster's observations of a launch's tasks, which may lag behind the tasks' own records."""
    seen = bench.cluster.observe(launch, range(count))
    return [seen[index].state for index in range(count)]


def states(bench: Bench, runs: Sequence[Run]) -> list[RunState]:
    records = bench.records()
    return [records[run.id].state for run in runs]


def logged_steps(bench: Bench, run: Run) -> dict[int, list[str]]:
    """Return the steps in the log of each attempt."""
    attempts = bench.paths.run(run.id).attempts()
    logs = {attempt.number: attempt.log.read_text().splitlines() for attempt in attempts}
    return {number: [line for line in lines if line.startswith("step ")] for number, lines in logs.items()}


def most_at_once(played: Sequence[Played]) -> int:
    """Return the largest number of runs that ran at the same time."""
    changes = sorted(change for one in played for change in ((one.began, 1), (one.ended or one.began, -1)))
    most = now = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def attempts_of(record: Record) -> list[int]:
    return [attempt.number for attempt in record.attempts]
