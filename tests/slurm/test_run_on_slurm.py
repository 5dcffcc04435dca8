"""`orch run --on slurm`: a few batches where the GPUs are, seen and stopped from the terminal."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from processes import ROOT, tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import output

from orchestrator import tracking
from orchestrator.clusters import observers
from orchestrator.layout import ExperimentPaths
from orchestrator.records.experiment import read_experiment
from orchestrator.records.launches import read_launch
from orchestrator.records.record import RunState

pytestmark = pytest.mark.slurm

NET = """
from orchestrator.testing.net import Net

class Loud(Net):
    def training_step(self, batch, batch_idx):
        print(f"step {self.global_step} of rank {self.global_rank}: WORD")
        return super().training_step(batch, batch_idx)
"""
TRAINS = """
# @package _global_
name: trains
model: {_target_: nets.Loud, does: '', at: 1}
trainer: {max_epochs: 7, max_steps: 1000, val_check_interval: 500}
resources: {nodes: 2, gpus_per_node: 2, cpus_per_node: 2}
cluster: {setup: ["echo 'modules: «loaded»'"]}
"""
WAITS = """
# @package _global_
name: waits
model: {_target_: orchestrator.testing.script.Script, steps: 1, until: null}
"""
SLOW_SBATCH = """#!/bin/sh
case "$*" in *--test-only*) ;; *) touch "$0.begun"; sleep 2 ;; esac
exec {real} "$@"
"""


class Terminal:
    """A project's folder, and the `orch run --on slurm` that is typed there."""

    def __init__(self, folder, name="it's a project's folder"):
        self.folder = folder / name
        (self.folder / "conf" / "experiment").mkdir(parents=True)
        (self.folder / "nets.py").write_text(NET.replace("WORD", "first code"))
        for name, text in (("trains", TRAINS), ("waits", WAITS)):
            (self.folder / "conf" / "experiment" / f"{name}.yaml").write_text(text)

    def start(self, *words, played=False, **environ):
        module = "orchestrator.testing" if played else "orchestrator"
        argv = [sys.executable, "-m", module, "run", "--on", "slurm", *words]
        env = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        return subprocess.Popen(argv, cwd=self.folder, env=env, text=True, start_new_session=True, **pipes)

    def run(self, *words, status=0):
        process = self.start(*words)
        out, err = process.communicate()
        assert process.returncode == status, f"{words}: {process.returncode}\n{out}\n{err}"
        return out, err

    def paths(self, name):
        return ExperimentPaths(self.folder / "runs" / name)

    def record(self, name):
        (record,) = read_experiment(self.paths(name), observers()).records.values()
        return record

    def steps(self, name, attempt):
        metrics = self.paths(name).run(self.record(name).id).attempt(attempt).metrics
        return [one.step for one, _ in tracking.read(metrics) if isinstance(one, tracking.Metrics)]


@pytest.fixture
def terminal(slurm, tmp_path):
    return Terminal(tmp_path)


def interrupt(process, number=signal.SIGINT):
    """Do what a terminal does on Ctrl-C, or when it is closed: tell the whole process group."""
    os.killpg(process.pid, number)
    out, err = process.communicate()
    assert process.returncode == 130, f"{out}\n{err}"
    return out, err


def no_jobs():
    return output("squeue", "--noheader") == ""


def test_a_few_batches_of_all_ranks_of_one_node_anew_each_time(terminal):
    out, err = terminal.run("experiment=trains")
    for rank, label in ((0, ""), (1, "[rank 1] ")):
        shown = [f"{label}step {step} of rank {rank}: first code" for step in range(3)]
        assert [line for line in out.splitlines() if f"of rank {rank}" in line] == shown
    assert "modules: «loaded»\n" in out
    record = terminal.record("trains-debug")
    assert f"{record.id[:8]}: done\n" in err
    assert (record.state, record.planned.resources.nodes) == (RunState.DONE, 1)
    assert terminal.steps("trains-debug", 1) == [0, 1, 2]
    assert no_jobs()
    assert not terminal.paths("trains").path.exists()

    (terminal.folder / "nets.py").write_text(NET.replace("WORD", "second code"))
    out, _ = terminal.run("experiment=trains", "--batches", "1")
    assert "step 0 of rank 1: second code" in out
    assert "step 1" not in out
    assert "first code" not in out


def test_a_run_that_fails_says_so_where_it_was_started(terminal):
    out, err = terminal.run("experiment=trains", "model.does=raise", status=1)
    assert "[rank 1] ArithmeticError: this rank was to fail" in out.splitlines()
    assert "failed: ArithmeticError at net.py" in err
    assert no_jobs()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_stops_the_terminal_stops_the_job(number, terminal, tmp_path):
    process = terminal.start("experiment=waits", f"model.until={json.dumps(str(tmp_path / 'never'))}", played=True)
    wait_for(lambda: any(terminal.paths("waits-debug").path.glob("played/*")), "the run to begin")
    _, err = interrupt(process, number)
    assert "cancelled; its job is ending" in err
    assert no_jobs()
    assert terminal.record("waits-debug").state is RunState.CANCELLED


def test_a_job_that_waits_says_why_and_is_gone_after_ctrl_c(terminal):
    output("sbatch", "--exclusive", "--nodes=4", "--output=/dev/null", "--wrap=sleep 600")
    process = terminal.start("experiment=waits", played=True)
    said = next(line for line in process.stderr if ("queued (" in line and "Priority" in line) or "Resources" in line)
    assert said
    interrupt(process)
    assert output("squeue", "--noheader", "--format=%j") == "wrap"
    assert terminal.record("waits-debug").state is RunState.CANCELLED


def test_ctrl_c_while_it_is_being_submitted_leaves_no_job(terminal, tmp_path):
    slow = tmp_path / "bin" / "sbatch"
    slow.parent.mkdir()
    slow.write_text(SLOW_SBATCH.format(real=shutil.which("sbatch")))
    slow.chmod(0o755)
    path = f"{slow.parent}{os.pathsep}{os.environ['PATH']}"
    process = terminal.start("experiment=waits", "model.until=/never", played=True, PATH=path)
    wait_for((tmp_path / "bin" / "sbatch.begun").exists, "sbatch to be called")
    interrupt(process)
    assert no_jobs()
    assert terminal.record("waits-debug").state is RunState.CANCELLED


def test_what_slurm_could_never_run_is_refused_and_nothing_is_left(terminal):
    _, err = terminal.run("experiment=trains", "resources.gpus_per_node=9", status=2)
    assert "Slurm would not run this" in err
    assert not (terminal.folder / "runs").exists()


def test_a_second_debug_run_of_the_same_run_waits_for_the_first(terminal, tmp_path):
    words = ("experiment=waits", f"model.until={json.dumps(str(tmp_path / 'open'))}")
    process = terminal.start(*words, played=True)
    wait_for(lambda: any(terminal.paths("waits-debug").path.glob("played/*")), "the run to begin")
    _, err = terminal.run(*words, status=2)
    assert "waits-debug: this debug run is running already: running in launch 0001" in err
    (tmp_path / "open").touch()
    process.communicate()
    assert process.returncode == 0


def test_nothing_of_any_text_is_executed_or_changed_on_its_way_into_the_job(slurm, tmp_path):
    text = 'it\'s "ours" $(touch executed) `touch executed`; touch executed | & > executed # ünïcode ✓'
    terminal = Terminal(tmp_path, text)
    gate = tmp_path / f"{text}\nand a second line"
    gate.touch()
    waits = WAITS.replace("until: null", f"until: {json.dumps(str(gate))}")  # it ends only if it finds the file
    (terminal.folder / "conf" / "experiment" / "waits.yaml").write_text(waits)
    comment = "cluster.comment='" + text.replace("'", "\\'") + "'"
    setup = "cluster.setup=['export WORD=\"a b\"', 'echo $WORD \"; touch not-executed\"']"
    message = f"{text}\nsecond line"
    process = terminal.start("experiment=waits", comment, setup, "-m", message, played=True)
    out, err = process.communicate()
    assert process.returncode == 0, f"{out}\n{err}"
    assert "a b ; touch not-executed\n" in out
    launch = read_launch(terminal.paths("waits-debug").launch(1))
    assert (launch.header.message, launch.header.cluster["comment"]) == (message, text)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith("executed")]
