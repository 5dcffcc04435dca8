"""Never twice: launches at the same moment, and launchers that die at any moment. Real processes, many rounds."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaigns import SEED, amount
from processes import wait_for

from orchestrator.launch.plan import to_do
from orchestrator.layout import ExperimentPaths
from orchestrator.local.workstation import Workstation
from orchestrator.records.record import RunState
from orchestrator.testing.launches import Bench, scripted

pytestmark = pytest.mark.usefixtures("tidy")
many = pytest.mark.campaign("chaos", sample=True)
ROUNDS = amount(8, 50)
KILLS = amount(5, 40)


@pytest.fixture
def cluster() -> Workstation:
    return Workstation(cpus=2, grace_seconds=1.0)


@pytest.fixture
def benches(cluster: Workstation, tmp_path: Path) -> Iterator[Bench]:
    """As many experiments as a test asks for, one per round."""
    return (Bench(paths=ExperimentPaths(tmp_path / f"{i}"), kind="workstation", cluster=cluster) for i in range(1000))


@many
@pytest.mark.parametrize("count", [2, 4])
def test_launches_at_the_same_moment_run_every_point_once(count, benches, launchers):
    crowd, rounds, contended = launchers(count), [], 0
    for _ in range(ROUNDS):
        bench = next(benches)
        rounds.append(bench)
        contended += len(_launch_at_once(crowd, bench, [[0, 1]] * count))
    assert contended == ROUNDS, "of each round's launches exactly one had something to do"
    for bench in rounds:
        _assert_every_run_ran_once(bench, seeds=[0, 1], launches=1)


@many
def test_overlapping_launches_at_the_same_moment_run_every_point_once(benches, launchers):
    crowd, rounds = launchers(4), []
    for _ in range(ROUNDS):
        bench = next(benches)
        rounds.append(bench)
        acting = _launch_at_once(crowd, bench, [[0], [0, 1], [1, 2], [2, 0]])
        submitted = [run for answer in acting for run in answer]
        assert sorted(submitted) == sorted({scripted(seed=seed).id for seed in (0, 1, 2)})
    for bench in rounds:
        _assert_every_run_ran_once(bench, seeds=[0, 1, 2])


def _launch_at_once(crowd, bench, seeds):
    """Have each launcher launch its seeds at one moment; returns what those did that had something to do."""
    at = time.time() + 0.02
    for launcher, own in zip(crowd, seeds, strict=True):
        launcher.order(experiment=bench.paths.path, seeds=own, at=at)
    answers = [launcher.answer() for launcher in crowd]
    assert None not in answers, "a launch has failed"
    return [answer for answer in answers if answer]


@pytest.mark.parametrize("dies", ["before", "after"])
def test_what_a_launcher_that_died_left_behind_is_run_once(dies, benches, launchers):
    bench = next(benches)
    (launcher,) = launchers(1)
    launcher.order(experiment=bench.paths.path, seeds=[0, 1], dies=dies)
    assert launcher.answer() is None
    launcher.process.wait()
    assert not bench.paths.launch(1).complete.exists()
    again = bench.launch([scripted(seed=seed) for seed in (0, 1, 2)])
    assert len(to_do(again.steps)) == (3 if dies == "before" else 1), "what is in the queue stays there"
    _assert_every_run_ran_once(bench, seeds=[0, 1, 2])


@many
def test_a_launcher_killed_at_any_moment_is_made_good_by_the_next_launch(benches, launchers):
    chance = random.Random(SEED)
    crowd = launchers(KILLS)
    for launcher in crowd:
        bench = next(benches)
        launcher.order(experiment=bench.paths.path, seeds=[0, 1])
        time.sleep(chance.uniform(0.0, 0.05))
        os.kill(launcher.process.pid, signal.SIGKILL)
        launcher.process.wait()
        bench.launch([scripted(seed=seed) for seed in (0, 1)])
        _assert_every_run_ran_once(bench, seeds=[0, 1])


def test_launches_while_runs_fail_and_die_start_each_attempt_once(benches, launchers):
    bench, crowd = next(benches), launchers(3)
    script = {"ends": ["kill", "raise", "kill", "done"], "steps": 2}
    runs = [scripted(script, seed=seed) for seed in (0, 1)]
    while not _all_done(bench, runs):
        at = time.time() + 0.05
        for launcher in crowd:
            launcher.order(experiment=bench.paths.path, seeds=[0, 1], script=script, at=at)
        assert None not in [launcher.answer() for launcher in crowd]
    played = bench.played()
    assert sorted((one.run, one.attempt) for one in played) == sorted(
        (run.id, attempt) for run in runs for attempt in (1, 2, 3, 4)
    )


def _all_done(bench, runs):
    records = bench.records()
    wait_for(lambda: not any(r.state.active for r in bench.records().values()), "the attempts to end")
    return bool(records) and all(bench.records()[run.id].state is RunState.DONE for run in runs)


def _assert_every_run_ran_once(bench, *, seeds, launches=None):
    wait_for(lambda: not any(r.state.active for r in bench.records().values()), f"{bench.paths.path} to end")
    runs = sorted(scripted(seed=seed).id for seed in seeds)
    records = bench.records()
    assert sorted(records) == runs
    assert {record.state for record in records.values()} == {RunState.DONE}
    assert sorted(played.run for played in bench.played()) == runs
    assert {attempt.number for record in records.values() for attempt in record.attempts} == {1}
    assert launches is None or len(bench.paths.launches()) == launches
