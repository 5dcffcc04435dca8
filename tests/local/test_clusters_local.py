"""The clusters of one machine keep the contract; and what is their own: a supervisor that may die at any time."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cluster_contract import OrderedClusterContract, most_at_once, playing, states, wait_for_end
from processes import ROOT, supervisors, wait_for

from orchestrator.layout import ExperimentPaths, LaunchPaths, state_dir
from orchestrator.local.inline import Inline
from orchestrator.local.schedule import Terms
from orchestrator.local.supervisor import Supervisor
from orchestrator.local.workstation import Queue, Workstation
from orchestrator.records.record import RunState
from orchestrator.testing.launches import WORKER, Bench, scripted

pytestmark = pytest.mark.usefixtures("tidy")


class Foreground(Inline):
    """The inline cluster, run beside the test, which looks on. As at a terminal, one command ends before the next."""

    def __init__(self) -> None:
        super().__init__(grace_seconds=1.0)
        self._stop = threading.Event()
        self._command: threading.Thread | None = None

    def submit(self, launch: LaunchPaths) -> None:
        self._wait()
        super().submit(launch)

    def start(self) -> None:
        self._command = threading.Thread(target=self.run, kwargs={"until": self._stop.is_set})
        self._command.start()

    def stop(self) -> None:
        self._stop.set()
        self._wait()

    def _wait(self) -> None:
        if self._command is not None:
            self._command.join()


class TestInline(OrderedClusterContract):
    kind = "inline"
    slots = 1

    @pytest.fixture
    def cluster(self) -> Foreground:
        return Foreground()

    @contextmanager
    def at_work(self, cluster: Foreground) -> Iterator[Callable[[], None]]:
        yield cluster.start
        cluster.stop()


class TestWorkstation(OrderedClusterContract):
    kind = "workstation"
    slots = 2

    @pytest.fixture
    def cluster(self) -> Workstation:
        return Workstation(cpus=2, grace_seconds=1.0)

    def test_runs_go_on_when_the_terminal_is_closed(self, bench, gate, launchers):
        (launcher,) = launchers(1)
        launcher.order(experiment=bench.paths.path, seeds=[0, 1, 2], script=gate.script())
        assert len(launcher.answer()) == 3
        for number in (signal.SIGHUP, signal.SIGKILL):
            os.killpg(launcher.process.pid, number)
        launcher.process.wait()
        gate.open()
        wait_for_end(bench)
        assert {record.state for record in bench.records().values()} == {RunState.DONE}

    def test_when_the_supervisor_is_killed_runs_go_on_and_the_next_look_starts_another(self, bench, gate):
        runs = [scripted(gate.script(), seed=seed) for seed in range(5)]
        bench.launch(runs)
        wait_for(lambda: len(bench.played()) == 2, "two runs to begin")
        (killed,) = supervisors()
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: not supervisors(), "the supervisor to be gone")
        assert states(bench, runs) == [RunState.RUNNING] * 2 + [RunState.QUEUED] * 3  # this look starts another
        wait_for(lambda: supervisors() not in ([], [killed]), "a new supervisor")
        gate.open()
        wait_for_end(bench)
        assert states(bench, runs) == [RunState.DONE] * 5
        assert sorted(played.run for played in bench.played()) == sorted(run.id for run in runs)
        assert most_at_once(bench.played()) <= self.slots

    def test_a_time_limit_outlives_the_supervisor(self, bench, gate):
        run = scripted(gate.script(), hours=2 / 3600)
        bench.launch([run])
        playing(bench, run)
        os.kill(supervisors()[0], signal.SIGKILL)
        wait_for_end(bench)
        assert "time limit" in bench.records()[run.id].reason

    def test_a_run_that_ended_badly_while_no_supervisor_ran_is_interrupted(self, bench, gate):
        run = scripted(gate.script())
        bench.launch([run])
        playing(bench, run)
        os.kill(supervisors()[0], signal.SIGKILL)
        self.kill(bench.played()[0])
        wait_for_end(bench)
        assert states(bench, [run]) == [RunState.INTERRUPTED]
        wait_for(lambda: not supervisors(), "the new supervisor to have nothing left to do")
        assert states(bench, [run]) == [RunState.INTERRUPTED]

    def test_a_task_that_failed_before_its_claim_is_not_started_again_by_the_next_supervisor(self, bench, gate):
        other = Bench(paths=ExperimentPaths(bench.paths.path.with_name("y")), kind=self.kind, cluster=bench.cluster)
        broken, holding = scripted(seed=0), scripted(gate.script(), seed=1)
        fails = "import runpy, sys; sys.argv[2] == '0' and (open('starts', 'a').write('x'), sys.exit('broken'))"
        plays = "runpy.run_module('orchestrator.testing.worker', run_name='__main__')"
        other.launch([broken, holding], worker=("-c", f"{fails}; {plays}"))
        playing(other, holding)
        wait_for(lambda: other.records()[broken.id].state is RunState.FAILED, "the broken run to fail")
        os.kill(supervisors()[0], signal.SIGKILL)
        wait_for(lambda: not supervisors(), "the supervisor to be gone")
        states(other, [holding])
        wait_for(supervisors, "a new supervisor")
        gate.open()
        wait_for_end(other)
        assert states(other, [broken, holding]) == [RunState.FAILED, RunState.DONE]
        wait_for(lambda: not supervisors(), "the new supervisor to have nothing left to do")
        assert (other.paths.path / "starts").read_text() == "x"

    def test_launches_of_two_projects_share_the_slots(self, bench, gate, tmp_path):
        benches = [
            Bench(paths=ExperimentPaths(tmp_path / project / "runs" / "x"), kind=self.kind, cluster=bench.cluster)
            for project in ("one", "two")
        ]
        for one in benches:
            one.launch([scripted(gate.script(), seed=seed) for seed in range(3)])
        wait_for(lambda: len(benches[0].played()) == 2, "two runs to begin")
        gate.open()
        for one in benches:
            wait_for_end(one)
        played = [played for one in benches for played in one.played()]
        assert len(played) == 6
        assert most_at_once(played) <= self.slots

    def test_the_supervisor_ends_with_its_work_and_releases_the_lock(self, bench):
        bench.launch([scripted()])
        wait_for(supervisors, "a supervisor")
        wait_for_end(bench)
        wait_for(lambda: not supervisors(), "the supervisor to end")
        queue = Queue(state_dir() / "workstation" / socket.gethostname())
        assert queue.entries() == []
        with queue.lock() as free:
            assert free

    def test_of_many_submitters_at_once_nothing_is_lost_and_one_supervisor_works(self, bench, tmp_path, launchers):
        crowd = launchers(8)
        benches = [
            Bench(paths=ExperimentPaths(tmp_path / f"runs{i}" / "x"), kind=self.kind, cluster=bench.cluster)
            for i in range(len(crowd))
        ]
        at = time.time() + 0.2
        for launcher, one in zip(crowd, benches, strict=True):
            launcher.order(experiment=one.paths.path, seeds=[0, 1], script={"seconds": 0.05}, at=at)
        assert [len(launcher.answer()) for launcher in crowd] == [2] * 8
        for one in benches:
            wait_for_end(one)
        assert [len(one.played()) for one in benches] == [2] * 8
        assert most_at_once([played for one in benches for played in one.played()]) <= self.slots
        assert {record.state for one in benches for record in one.records().values()} == {RunState.DONE}


class TestSupervisorOfALateLaunch:
    """A launch that was thought lost comes to work after another has taken its runs over."""

    def test_a_ghost_finds_its_attempt_taken_and_ends_quietly(self, tmp_path):
        bench = Bench(paths=ExperimentPaths(tmp_path / "x"), kind="inline", cluster=Inline())
        ghost, run = bench.launch([scripted()]).paths, scripted()
        command = [sys.executable, *WORKER, str(ghost.path), "0"]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        assert subprocess.run(command, env=environ, check=False).returncode == 0
        again = subprocess.run(command, env=environ, check=False, capture_output=True, text=True)
        assert again.returncode == 0
        assert "has been taken: nothing to do" in again.stdout
        assert [played.run for played in bench.played()] == [run.id]

    def test_its_supervisor_leaves_a_run_alone_that_another_launch_works_on(self, tmp_path, gate_path):
        run, late = scripted({"until": str(gate_path)}), Inline()
        bench = Bench(paths=ExperimentPaths(tmp_path / "x"), kind="inline", cluster=late)
        first = bench.launch([run]).paths
        second = LaunchPaths(first.path.with_name("0002"))
        shutil.copytree(first.path, second.path)
        command = [sys.executable, *WORKER, str(second.path), "0"]
        holder = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
        wait_for(bench.played, "the other launch's run to begin")
        patience = time.monotonic() + 600
        late.run(until=lambda: time.monotonic() > patience)  # launch 0001, late: its attempt is taken
        successor = Supervisor(sync=lambda *_: None)
        successor.add(first, Terms(cpus=1))
        assert not successor.busy(first)
        assert holder.poll() is None, "it was neither waited for nor stopped"
        assert not bench.paths.run(run.id).observed.exists()
        gate_path.touch()
        assert holder.wait() == 0
        assert states(bench, [run]) == [RunState.DONE]
        assert len(bench.played()) == 1

    @pytest.fixture
    def gate_path(self, tmp_path: Path) -> Path:
        return tmp_path / "open"
