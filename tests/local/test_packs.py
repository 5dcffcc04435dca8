"""Packs: which runs share a job, what that job asks for, and the warm parent that forks them on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from cluster_contract import Gate, playing, states, wait_for_end
from hypothesis import given
from hypothesis import strategies as st
from processes import of_this_test, tidy, wait_for  # noqa: F401 - one is a fixture

from orchestrator.cluster import JobState, Observation
from orchestrator.launch.launch import WORKER
from orchestrator.launch.packing import packs, rounds, sized
from orchestrator.launch.plan import Action, Step
from orchestrator.layout import ExperimentPaths, LaunchPaths
from orchestrator.local.inline import Inline
from orchestrator.local.launcher import Start
from orchestrator.local.prefork import PreforkLauncher
from orchestrator.local.tasks import Task
from orchestrator.local.workstation import Workstation
from orchestrator.records.attempts import EventWriter, claim_attempt
from orchestrator.records.checkpoints import latest_of
from orchestrator.records.packs import Packs, read_packs
from orchestrator.records.record import Claim, RunState
from orchestrator.slurm import packed, script
from orchestrator.spec import Pack, Resources, RunId
from orchestrator.spec.experiment import Run
from orchestrator.system.processes import ProcessId
from orchestrator.testing.launches import Bench, scripted, trained
from orchestrator.worker import warm

# --- which runs share a job -------------------------------------------------------------------------------


def step(number=0, *, code="c0de", data=None, **resources):
    run = Run(id=RunId(f"{number:012x}"), point={}, config={}, resources=Resources(**resources), data_digest=data)
    return Step(run=run, action=Action.SUBMIT, reason="new", attempt=1, generation=1, history=1, code=code)


SHAPES = st.sampled_from([{}, {"hours": 1}, {"pack": Pack(runs=2)}, {"pack": Pack(runs=3)}])


@given(st.lists(st.tuples(SHAPES, st.sampled_from("ab"), st.sampled_from([None, "d"]))))
def test_each_packed_run_is_in_one_pack_with_its_like_and_no_pack_is_too_large(wanted):
    steps = [step(i, code=code, data=data, **shape) for i, (shape, code, data) in enumerate(wanted)]
    found = packs(steps)
    assert sorted(index for pack in found for index in pack) == [
        index for index, each in enumerate(steps) if each.run.resources.pack
    ]
    for pack in found:
        assert pack == sorted(pack)
        assert len({(steps[i].run.resources, steps[i].code, steps[i].run.data_digest) for i in pack}) == 1
        assert len(pack) <= steps[pack[0]].run.resources.pack.runs
    last = [(steps[pack[0]].run.resources, steps[pack[0]].code, steps[pack[0]].run.data_digest) for pack in found]
    whole = [len(pack) == steps[pack[0]].run.resources.pack.runs for pack in found]
    assert all(whole[i] for i, key in enumerate(last) if key in last[i + 1 :])


def test_what_shares_a_job_is_read_as_it_was_published(tmp_path):
    launch = LaunchPaths(tmp_path)
    assert read_packs(launch) == Packs()
    launch.packs.write_text("[[0, 2, 3], [4]]")
    read = read_packs(launch)
    assert [read.first(task) for task in range(6)] == [0, 1, 0, 0, 4, 5]
    assert [read.tasks(first) for first in (0, 1, 4)] == [(0, 2, 3), (1,), (4,)]
    assert read.whole([0, 1, 2, 4]) == [1, 4]
    assert read.whole([3, 2, 0]) == [0]


@pytest.mark.parametrize(
    ("seconds", "hours", "expected"),
    [(None, None, 8), (None, 4, 6), (None, 48, 1), (60, None, 30), (0.01, None, 64), (7200, None, 1), (60, 1, 24)],
)
def test_auto_makes_half_an_hour_by_what_earlier_runs_have_taken(seconds, hours, expected):
    assert rounds(seconds, hours) == expected


def test_auto_is_a_number_once_it_is_planned():
    auto, given_, none = step(pack=Pack(at_once=2)), step(pack=Pack(runs=3)), step()
    assert [each.run.resources.pack for each in sized([auto, given_, none], {})] == [
        Pack(runs=16, at_once=2),
        Pack(runs=3),
        None,
    ]


def test_a_pack_asks_for_the_cpus_and_memory_of_those_at_once_one_gpu_and_time_for_all():
    need = Resources(gpus_per_node=1, cpus_per_node=2, mem_gb_per_node=3, hours=0.5, pack=Pack(runs=5, at_once=2))
    assert need.job == Resources(gpus_per_node=1, cpus_per_node=4, mem_gb_per_node=6, hours=1.5)
    assert Resources.from_json(json.loads(json.dumps(need.to_json()))) == need
    assert "pack" not in Resources().to_json()


def test_an_array_of_packs_asks_for_packs_and_gives_each_run_its_own_threads():
    need = Resources(cpus_per_node=2, hours=1, pack=Pack(runs=8, at_once=2))
    array = script.Array(shape=script.Shape(resources=need, python_path=("/a",)), offset=0, indices=(0, 8))
    asked = script.parameters(array, script.SlurmOptions(), name="x", token="f00d", folder=Path("/x/submitit"))
    assert (asked["cpus_per_task"], asked["additional_parameters"]["time"]) == (4, 240)
    assert "export OMP_NUM_THREADS=2" in asked["setup"]
    assert script.pickle_name(array) == "start.0.packs.pkl"


# --- what Slurm's word on a job means for its runs ---------------------------------------------------------


@pytest.fixture
def launched(tmp_path):
    """A launch whose two runs share a job; the first has begun, and was interrupted."""
    bench = Bench(paths=ExperimentPaths(tmp_path / "x"), kind="inline", cluster=Inline())
    runs = [scripted(seed=seed, pack=Pack(runs=2)) for seed in range(2)]
    paths = bench.launch(runs).paths
    attempt = bench.paths.run(runs[0].id).attempt(1)
    claim = Claim(
        launch=1, index=0, code="c0de", generation=1, history=1, process=ProcessId.current(), time=1.0, job="7_0"
    )
    claim_attempt(attempt, claim)
    EventWriter(attempt.events).write("interrupted", reason="time limit")
    return paths, runs


def seen(paths, state, **more):
    job = Observation(state=state, job="7_0", **more)
    return [(each.state, each.reason) for each in packed.observe(paths, {0: job, 1: job}).values()]


@pytest.mark.usefixtures("tidy")
def test_of_a_job_that_runs_each_run_has_a_state_of_its_own(launched):
    paths, runs = launched
    assert seen(paths, JobState.RUNNING) == [
        (JobState.PENDING, "goes on when its job is started again"),
        (JobState.PENDING, "waits for its turn in its job"),
    ]
    assert (
        seen(paths, JobState.ENDED, reason="gone", status=packed.SOME_FAILED)
        == [(JobState.ENDED, "its job ended before its turn")] * 2
    )
    setup_failed = Observation(state=JobState.ENDED, job="7_0", reason="exit status 9", status=9, output="no module")
    first, second = packed.observe(paths, {0: setup_failed, 1: setup_failed}).values()
    assert (first.status, second.status, second.output) == (None, 9, "no module")
    assert packed.cancelled(paths, [1]) == []
    (paths.cancelled / runs[1].id).touch()
    assert seen(paths, JobState.RUNNING)[1] == seen(paths, JobState.PENDING)[1] == (JobState.ENDED, "cancelled")
    (paths.cancelled / runs[0].id).touch()
    assert packed.cancelled(paths, [0, 1]) == [0]


# --- the warm parent --------------------------------------------------------------------------------------

PREPARE = """
import json, sys
from orchestrator.worker import warm
import psutil
why = warm.prepare("orchestrator.worker")
import torch
print(json.dumps({
    "why": why, "threads": psutil.Process().num_threads(), "cuda": torch.cuda.is_initialized(),
    "nvml": getattr(sys.modules.get("pynvml"), "nvmlLib", None) is not None,
    "there": [name for name in ("mlflow", "pytorch_lightning") if name in sys.modules],
}))
"""


def test_at_the_fork_there_is_one_thread_and_neither_cuda_nor_nvml_nor_mlflow():
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}  # numerical libraries would start a pool
    done = subprocess.run([sys.executable, "-c", PREPARE], env=environment, capture_output=True, check=True)
    told = json.loads(done.stdout)
    assert told == {"why": "", "threads": 1, "cuda": False, "nvml": False, "there": ["pytorch_lightning"]}


def test_a_process_with_a_second_thread_mlflow_or_nvml_is_not_forked(monkeypatch):
    alone = psutil.Process().num_threads()
    wait = threading.Event()
    second = threading.Thread(target=wait.wait)
    second.start()
    try:
        assert warm.unforkable() == f"it has {alone + 1} threads"
    finally:
        wait.set()
        second.join()
    monkeypatch.setattr(psutil.Process, "num_threads", lambda _: 1)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert warm.unforkable() == "MLflow is imported"
    monkeypatch.delitem(sys.modules, "mlflow")
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(nvmlLib="loaded"))
    assert warm.unforkable() == "NVML is in use"


SAYS = """
import json, os, signal, sys
handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGCHLD)]
print(json.dumps({
    "argv": sys.argv[1:], "main": __name__, "cwd": os.getcwd(), "leads": os.getsid(0) == os.getpid(),
    "default": all(each == signal.SIG_DFL for each in handlers), "input": os.read(0, 1).decode(),
    "open": sorted(set(map(int, os.listdir("/proc/self/fd"))) - {0, 1, 2})[:-1], "A": os.environ.get("A"),
    "kept": os.environ.get("HOME") is not None, "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
}))
sys.exit(int(os.environ["STATUS"]))
"""


@pytest.fixture
def start(tmp_path):
    """Give a function that says how a run of a module is started; its module lies in a folder of its own."""
    launch = ExperimentPaths(tmp_path / "x").launch(1)
    launch.path.mkdir(parents=True)
    (tmp_path / "says.py").write_text(SAYS)

    def build(python=sys.executable, **environ):
        task = Task(launch=launch, index=3, run_id="0", attempt=1, code="c", resources=Resources(pack=Pack(runs=8)))
        path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
        environment = {"PYTHONPATH": path, "XDG_STATE_HOME": os.environ["XDG_STATE_HOME"], "STATUS": "7", **environ}
        argv = (str(python), "-m", "says", str(launch.path), "3")
        return Start(task=task, argv=argv, environments=(environment,))

    return build


@pytest.fixture
def prefork():
    launcher = PreforkLauncher()
    yield launcher
    launcher.close()


def told_by(handle):
    wait_for(lambda: handle.ended() is not None, "the run to end")
    return handle.ended(), handle.close()


@pytest.mark.usefixtures("tidy")
def test_a_forked_run_is_as_one_that_was_started(start, prefork):
    told = []
    for letter in "ab":
        status, printed = told_by(prefork(start(A=letter)))
        assert status == 7
        told.append(json.loads(printed))
    folder = start().task.experiment.path
    assert told[0] == {
        "argv": [str(folder / "launches" / "0001"), "3"],
        "main": "__main__",
        "cwd": str(folder),
        "leads": True,
        "default": True,
        "input": "",
        "open": [],
        "A": "a",
        "kept": False,
        "blocked": 0,
    }
    assert told[1] == {**told[0], "A": "b"}
    assert len([each for each in of_this_test() if "orchestrator.worker.warm" in each.info["cmdline"]]) == 1


@pytest.mark.usefixtures("tidy")
def test_where_no_parent_comes_up_runs_are_started_one_by_one(start, prefork, tmp_path, caplog):
    python = tmp_path / "python"
    real = f'exec "{sys.executable}" "$@"'
    python.write_text(f'#!/bin/sh\n[ "$2" = orchestrator.worker.warm ] && echo "no torch here" && exit 1\n{real}\n')
    python.chmod(0o755)
    statuses = [told_by(prefork(start(python)))[0] for _ in range(3)]
    assert statuses == [7, 7, 7]
    assert "runs are started one by one, and not forked: no torch here" in caplog.text


@pytest.mark.usefixtures("tidy")
def test_a_run_is_killed_even_while_its_parent_comes_up(start, prefork, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 600\n")
    python.chmod(0o755)
    handle = prefork(start(python))
    assert handle.ended() is None
    handle.signal(signal.SIGTERM)
    assert handle.ended() is None
    handle.signal(signal.SIGKILL)
    assert told_by(handle) == (-signal.SIGKILL, "")


# --- runs on this machine ---------------------------------------------------------------------------------


def bench_of(folder, cluster, kind):
    return Bench(paths=ExperimentPaths(folder / "it's a run's folder" / "x"), kind=kind, cluster=cluster)


@pytest.mark.usefixtures("tidy")
def test_forked_runs_train_as_those_started_by_themselves_to_the_last_bit(tmp_path):
    weights = {}
    for name, pack in (("packed", Pack(runs=3)), ("alone", None)):
        cluster = Inline(grace_seconds=5.0)
        bench = bench_of(tmp_path / name, cluster, "inline")
        seeds = range(3) if pack else range(2, 3)
        runs = [trained(steps=30, seed=seed, pack=pack) for seed in seeds]
        bench.launch(runs, worker=WORKER)
        cluster.run()
        assert set(states(bench, runs)) == {RunState.DONE}
        path = latest_of(bench.paths.run(runs[-1].id).attempt(1))
        weights[name] = torch.load(path, weights_only=False)["state_dict"]
    assert all(torch.equal(weights["packed"][key], weights["alone"][key]) for key in weights["alone"])


@pytest.mark.usefixtures("tidy")
def test_on_a_workstation_runs_go_on_when_the_process_that_forked_them_is_killed(tmp_path):
    gate = Gate(tmp_path / "open")
    bench = bench_of(tmp_path, Workstation(cpus=2, grace_seconds=1.0), "workstation")
    runs = [scripted(gate.script(), seed=seed, pack=Pack(runs=8)) for seed in range(4)]
    bench.launch(runs)
    for run in runs[:2]:
        playing(bench, run)
    parents = {psutil.Process(played.pid).ppid() for played in bench.played()}
    assert len(parents) == 1
    os.kill(parents.pop(), signal.SIGKILL)
    gate.open()
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 4
    assert sorted(played.run for played in bench.played()) == sorted(run.id for run in runs)
