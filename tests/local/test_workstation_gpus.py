"""GPU slots of a workstation, on a machine without GPUs: runs get made-up ones, and train on the CPU."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import psutil
import pytest
from cluster_contract import Gate, most_at_once, playing, states, wait_for_end
from processes import supervisors, wait_for

from orchestrator.cli.status_table import status_lines
from orchestrator.errors import RequestError
from orchestrator.launch.launch import WORKER
from orchestrator.layout import ExperimentPaths
from orchestrator.local import devices, session
from orchestrator.local import launcher as starting
from orchestrator.local.device_locks import DeviceLocks
from orchestrator.local.inline import Inline
from orchestrator.local.launcher import AdoptedRun, environments
from orchestrator.local.schedule import Device, Terms
from orchestrator.local.tasks import tasks_of
from orchestrator.local.workstation import Workstation
from orchestrator.records.experiment import read_experiment
from orchestrator.records.record import RunState
from orchestrator.system.processes import ProcessId
from orchestrator.testing.launches import Bench, scripted, trained

pytestmark = pytest.mark.usefixtures("tidy")


@pytest.fixture
def gpus() -> list[str]:
    """Four GPUs that no other test, or user of this machine, has."""
    return [f"{uuid.uuid4().hex[:8]}-{number}" for number in range(4)]


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "open")
    yield gate
    gate.open()


@pytest.fixture
def make(tmp_path, gpus):
    """Give a function that makes a bench on a workstation of four GPUs; all of them share one queue."""

    def make(name: str = "x", **options) -> Bench:
        cluster = Workstation(**{"cpus": 16, "devices": gpus, "grace_seconds": 1.0, **options})
        return Bench(paths=ExperimentPaths(tmp_path / "runs" / name), kind="workstation", cluster=cluster)

    return make


def devices_of(bench: Bench, run) -> list[str]:
    return list(bench.records()[run.id].last.claim.devices)


def held(names: list[str]) -> set[str]:
    """Return which devices somebody holds."""
    locks = DeviceLocks()
    found = {name for name in names if locks.take([Device(id=name, address=name)])}
    locks.release(but=())
    return found


def status(bench: Bench) -> str:
    state = read_experiment(bench.paths, {bench.kind: bench.cluster})
    return "\n".join(status_lines(state, list(state.records.values())))


# --- slots ---------------------------------------------------------------------------------------------------


def test_runs_of_one_two_and_four_gpus_go_through_and_no_gpu_is_given_twice(make, gpus):
    bench = make()
    widths = [1, 2, 4, 1, 1, 2, 4, 1]
    runs = [scripted({"seconds": 0.1}, seed=seed, gpus_per_node=width) for seed, width in enumerate(widths)]
    wanted = {run.id: run.resources.gpus_per_node for run in runs}
    bench.launch(runs)
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * len(runs)
    found = {run.id: devices_of(bench, run) for run in runs}
    assert {run: len(set(given)) for run, given in found.items()} == wanted
    for one, other in combinations(bench.played(), 2):
        if one.began < other.ended and other.began < one.ended:
            assert not set(found[one.run]) & set(found[other.run])


def test_a_run_sees_its_own_gpus_only_and_status_tells_what_the_others_wait_for(make, gate, gpus):
    bench = make()
    alone, wide, last = (scripted(gate.script(), seed=seed, gpus_per_node=n) for seed, n in enumerate([1, 4, 1]))
    bench.launch([alone, wide, last])
    began = playing(bench, alone)
    seen = psutil.Process(began.pid).environ()
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["HIP_VISIBLE_DEVICES"]) == (gpus[0], gpus[0])
    assert devices_of(bench, alone) == [gpus[0]]
    wait_for(lambda: "waits for 4 GPUs (3 free)" in bench.records()[wide.id].reason, "the reason")
    assert bench.records()[last.id].reason == f"waits for its turn, behind x {wide.id[:8]}"
    told = status(bench)
    assert f"GPU {gpus[0]}" in told
    assert "waits for 4 GPUs (3 free)" in told
    bench.cancel(wide)  # and so it is in nobody's way any more
    assert devices_of(bench, last) == [gpus[1]] if playing(bench, last) else False
    assert states(bench, [wide]) == [RunState.CANCELLED]


def test_a_run_without_gpus_goes_ahead_of_one_that_waits_for_some_and_sees_none(make, gate):
    bench = make()
    holds, waits, beside = (scripted(gate.script(), seed=seed, gpus_per_node=n) for seed, n in enumerate([1, 4, 0]))
    bench.launch([holds, waits, beside])
    playing(bench, holds)
    seen = psutil.Process(playing(bench, beside).pid).environ()
    assert seen["CUDA_VISIBLE_DEVICES"] == ""
    assert states(bench, [holds, waits, beside]) == [RunState.RUNNING, RunState.QUEUED, RunState.RUNNING]


def test_small_runs_share_a_gpu_where_the_launch_says_so(make, gate, gpus):
    bench = make(devices=gpus[:2], runs_per_gpu=2)
    runs = [scripted(gate.script(), seed=seed, gpus_per_node=1) for seed in range(5)]
    bench.launch(runs)
    wait_for(lambda: len(bench.played()) == 4, "four runs to begin")
    assert [devices_of(bench, run) for run in runs[:4]] == [gpus[:1], gpus[:1], gpus[1:2], gpus[1:2]]
    wait_for(lambda: "waits for 1 GPU (0 free)" in bench.records()[runs[4].id].reason, "the reason")
    gate.open()
    wait_for_end(bench)
    assert most_at_once(bench.played()) == 4


def test_memory_is_counted(make, gate):
    bench = make(mem_gb=10)
    runs = [scripted(gate.script(), seed=seed, mem_gb_per_node=6) for seed in range(2)]
    bench.launch(runs)
    playing(bench, runs[0])
    wait_for(lambda: bench.records()[runs[1].id].reason == "waits for 6 GB (4 free)", "the reason")
    with pytest.raises(RequestError, match="mem_gb_per_node is 11"):
        bench.launch([scripted(mem_gb_per_node=11)])


def test_of_higher_priority_runs_start_first(make, gate):
    first, urgent = make(cpus=1), make("urgent", cpus=1, priority=5)
    runs = [scripted(gate.script(), seed=seed) for seed in range(3)]
    first.launch(runs)
    playing(first, runs[0])
    (run,) = urgent_runs = [scripted(seed=9)]
    urgent.launch(urgent_runs)
    wait_for(lambda: "waits for 1 CPU" in urgent.records()[run.id].reason, "it to be next")
    gate.open()
    wait_for_end(first)
    wait_for_end(urgent)
    assert [played.began < urgent.played()[0].began for played in first.played()] == [True, False, False]


# --- who holds a GPU -----------------------------------------------------------------------------------------


@contextmanager
def somebody_else_holding(names: list[str]) -> Iterator[None]:
    """Hold devices in a process of another user's: `nobody`, where we may become that."""
    (ready, tell), (wait, let) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(let)
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        locks = DeviceLocks()
        refused = locks.take([Device(id=name, address=name) for name in names])
        os.write(tell, b"no" if refused else b"ok")
        os.read(wait, 1)
        os._exit(0)
    try:
        assert os.read(ready, 2) == b"ok"
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for descriptor in (ready, tell, wait, let):
            os.close(descriptor)


def test_a_gpu_that_another_user_holds_is_waited_for_and_let_go_of_by_the_kernel(make, gpus, gate):
    bench = make()
    one, wide = scripted(gate.script(), seed=0, gpus_per_node=1), scripted(seed=1, gpus_per_node=2)
    with somebody_else_holding([gpus[0], gpus[2], gpus[3]]):
        bench.launch([one, wide])
        playing(bench, one)
        assert devices_of(bench, one) == [gpus[1]]
        wait_for(lambda: "is held by" in bench.records()[wide.id].reason, "the reason")
        gate.open()
        wait_for(lambda: states(bench, [one]) == [RunState.DONE], "the first to end")
        assert states(bench, [wide]) == [RunState.QUEUED]
    wait_for_end(bench)  # whoever held them was killed


def test_in_the_foreground_it_is_said_that_a_gpu_is_waited_for(tmp_path, gpus, caplog):
    bench = Bench(paths=ExperimentPaths(tmp_path / "x"), kind="inline", cluster=Inline(devices=gpus[:1]))
    bench.launch([scripted(gpus_per_node=1)])
    with somebody_else_holding(gpus[:1]):
        bench.cluster.run(until=lambda: bool(caplog.messages))
    (said,) = caplog.messages
    held = rf"GPU {re.escape(gpus[0])} is held by \w+ \(uid {65534 if os.getuid() == 0 else os.getuid()}\), process \d+"
    assert re.fullmatch(rf"the next run waits for 1 GPU \(0 free; {held}\)", said)


def test_what_a_run_has_stays_held_when_its_supervisor_dies_and_the_next_one_gives_it_to_nobody(make, gpus, gate):
    bench = make(devices=gpus[:3])
    runs = [scripted(gate.script(), seed=seed, gpus_per_node=1) for seed in range(6)]
    bench.launch(runs[:2])
    wait_for(lambda: len(bench.played()) == 2, "two runs to begin")
    (killed,) = supervisors()
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: not supervisors(), "the supervisor to be gone")
    assert held(gpus) == set(gpus[:2])
    bench.launch(runs)
    wait_for(lambda: len(bench.played()) == 3, "the third GPU's run to begin")
    assert [devices_of(bench, run) for run in runs[:3]] == [[name] for name in gpus[:3]]
    assert states(bench, runs[3:]) == [RunState.QUEUED] * 3
    gate.open()
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 6
    assert len(bench.played()) == 6
    wait_for(lambda: not held(gpus), "all to be let go of")


NVML = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef struct { unsigned pid; unsigned long long memory; unsigned gpu, compute; } Process;
int nvmlInitWithFlags(unsigned flags) { return 0; }
int nvmlInit_v2(void) { return 0; }
const char *nvmlErrorString(int result) { return "made up"; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) { *device = strdup(uuid); return 0; }
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, Process *found) {
    char path[4096]; unsigned pid, number = 0;
    snprintf(path, sizeof path, "%s/%s", getenv("MADE_UP_NVML"), (char *) device);
    FILE *file = fopen(path, "r");
    if (!file) { *count = 0; return 0; }
    while (fscanf(file, "%u", &pid) == 1) {
        if (number >= *count || !found) { *count = number + 1; fclose(file); return 7; }
        memset(&found[number], 0, sizeof *found); found[number++].pid = pid;
    }
    fclose(file); *count = number; return 0;
}
"""


def test_a_gpu_that_a_stranger_computes_on_is_left_alone(make, gpus, gate, tmp_path, monkeypatch):
    """NVML's own bindings, on a driver's library that is told by files which process is where."""
    (tmp_path / "nvml.c").write_text(NVML)
    library = tmp_path / "lib" / "libnvidia-ml.so.1"
    library.parent.mkdir()
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "nvml.c")], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    monkeypatch.setenv("MADE_UP_NVML", str(tmp_path))
    (tmp_path / gpus[0]).write_text(str(os.getpid()))
    bench = make(devices=gpus[:2], avoid_busy_gpus=True)
    runs = [scripted(gate.script(), seed=seed, gpus_per_node=1) for seed in range(2)]
    bench.launch(runs)
    playing(bench, runs[0])
    assert devices_of(bench, runs[0]) == [gpus[1]]
    told = f"GPU {gpus[0]} is used by pid {os.getpid()} of {psutil.Process().username()}"
    wait_for(lambda: told in bench.records()[runs[1].id].reason, "the reason")
    (tmp_path / gpus[0]).unlink()
    playing(bench, runs[1])
    assert devices_of(bench, runs[1]) == [gpus[0]]


def test_without_nvml_a_launch_says_that_strangers_are_not_seen(make):
    (note,) = make(avoid_busy_gpus=True).launch([scripted()]).notes
    assert "other people's processes cannot be seen (NVML: NVML Shared Library Not Found)" in note


# --- several processes ---------------------------------------------------------------------------------------


def test_ddp_over_two_and_four_gpus_trains_as_one_also_when_the_supervisor_dies(make, gate, gpus):
    bench = make(grace_seconds=30.0)
    two = trained({"seconds": 5.0, "until": gate.script()["until"]}, seed=2, gpus_per_node=2)
    four = trained(seed=4, gpus_per_node=4, cpus_per_node=4)
    bench.launch([two, four], worker=WORKER)
    wait_for(lambda: (last := bench.records()[two.id].last) and last.progress, "a step of all ranks")
    os.kill(supervisors()[0], signal.SIGKILL)
    wait_for(lambda: not supervisors(), "the supervisor to be gone")
    assert states(bench, [two, four]) == [RunState.RUNNING, RunState.QUEUED]
    wait_for(supervisors, "a new supervisor")
    gate.open()
    wait_for_end(bench)
    records = bench.records()
    assert [(records[run.id].state, records[run.id].reason) for run in (two, four)] == [(RunState.DONE, "")] * 2
    for run, ranks in ((two, 2), (four, 4)):
        (attempt,) = bench.paths.run(run.id).attempts()
        assert records[run.id].metrics["ranks"] == ranks
        logged = [line for line in attempt.metrics.read_text().splitlines() if '"ranks"' in line]
        assert len(logged) == 4, "each step is logged once"
        assert sorted(path.name for path in attempt.path.glob("log*")) == [
            "log",
            *(f"log.rank{i}" for i in range(1, ranks)),
        ]
        assert len(devices_of(bench, run)) == ranks


def test_in_the_foreground_too_and_a_rank_that_is_killed_interrupts_the_run_in_seconds(tmp_path, gpus):
    bench = Bench(paths=ExperimentPaths(tmp_path / "x"), kind="inline", cluster=Inline(devices=gpus, grace_seconds=1.0))
    run = trained({"does": "kill", "rank": 1, "at": 2}, gpus_per_node=2)
    bench.launch([run], worker=WORKER)
    bench.cluster.run()
    record = bench.records()[run.id]
    assert (record.state, record.reason) == (RunState.INTERRUPTED, "killed by SIGKILL (rank 1)")
    (attempt,) = bench.paths.run(run.id).attempts()
    assert '"ranks":2.0' in attempt.metrics.read_text(), "until then both trained"
    assert not list(bench.paths.launch(1).path.glob("failures/*")), "it is no failure of the user's"


RANKS = """
import os, signal, sys, time
rank = int(os.environ["RANK"])
assert os.environ["LOCAL_RANK"] == os.environ["RANK"] and os.environ["WORLD_SIZE"] == "2"
if rank == 1:
    {dies}
time.sleep(600)
"""


def test_a_rank_that_dies_while_the_others_hang_ends_them(make):
    dies = {"killed": "os.kill(os.getpid(), signal.SIGKILL)", "left": "sys.exit('no such library')"}
    benches = [make(name) for name in dies]
    for bench, how in zip(benches, dies.values(), strict=True):
        bench.launch([scripted(gpus_per_node=2)], worker=("-c", RANKS.format(dies=how)))
    for bench in benches:
        wait_for_end(bench)
    killed, left = (record for bench in benches for record in bench.records().values())
    assert (killed.state, killed.reason) == (RunState.INTERRUPTED, "killed by SIGKILL (rank 1)")
    assert left.state is RunState.FAILED
    assert left.failure.signature == "exit status 1 before training"
    assert left.failure.traceback == "no such library\nrank 1 ended with exit status 1"
    wait_for(lambda: not supervisors(), "the supervisor to end, with no rank left")


def test_a_rank_that_dies_under_a_later_supervisor_ends_the_others_too(monkeypatch):
    monkeypatch.setattr(starting, "_LATE_SECONDS", 0.0)
    program = [sys.executable, "-c", "import time; time.sleep(600)"]
    leader = subprocess.Popen(program, process_group=0)
    with leader, subprocess.Popen(program, process_group=leader.pid) as other:
        found = AdoptedRun(ProcessId.of(leader.pid), ranks=2)
        assert found.ended() is None
        other.kill()
        other.wait()
        wait_for(lambda: found.ended() == 137, "the leader to be killed")


def test_what_says_where_a_process_stands_is_not_inherited(make, monkeypatch):
    bench = make()
    launch = bench.launch([scripted(gpus_per_node=2, cpus_per_node=6), scripted(seed=1)]).paths
    for name in ("SLURM_JOB_ID", "RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK", "ORCH_DEVICES"):
        monkeypatch.setenv(name, "7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    wide, narrow = tasks_of(launch)
    ranks = environments(wide, [Device(id=name, address=name) for name in "ab"])
    places = [(each["RANK"], each["LOCAL_RANK"], each["WORLD_SIZE"]) for each in ranks]
    assert places == [("0", "0", "2"), ("1", "1", "2")]
    assert {each["OMP_NUM_THREADS"] for each in ranks} == {"3"}
    assert {each["CUDA_VISIBLE_DEVICES"] for each in ranks} == {"a,b"}
    (alone,) = environments(narrow, [])
    assert not {"SLURM_JOB_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"} & alone.keys()
    assert not {"SLURM_JOB_ID", "MASTER_PORT"} & ranks[1].keys()
    wait_for_end(bench)


# --- the machine ---------------------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path) -> Path:
    """The files of a machine with three NVIDIA GPUs."""
    for number, address in enumerate(["0000:c1:00.0", "0000:05:00.0", "0000:65:00.0"]):
        gpu = tmp_path / "proc/driver/nvidia/gpus" / address
        gpu.mkdir(parents=True)
        (gpu / "information").write_text(
            f"Model: \t\t A6000\nIRQ:   45\nGPU UUID: \t GPU-{number}abc-def\nBus Type: PCIe\n"
        )
    return tmp_path


@pytest.mark.parametrize(
    ("chosen", "visible", "found"),
    [
        (None, None, {"0": "0000:05:00.0", "1": "0000:65:00.0", "2": "0000:c1:00.0"}),
        ([2, "GPU-1abc"], None, {"2": "0000:c1:00.0", "0": "0000:05:00.0"}),
        ([0], "2", {"0": "0000:05:00.0"}),
        (None, "2, GPU-2abc-def", {"2": "0000:c1:00.0", "1": "0000:65:00.0"}),
        (None, "", {}),
        (None, "-1", {}),
        (["MIG-77"], None, {"MIG-77": "MIG-77"}),
    ],
)
def test_gpus_are_found_in_the_order_of_their_bus(root, chosen, visible, found):
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert {device.id: device.address for device in devices.find(chosen, environ, root=root)} == found


def test_a_number_that_no_gpu_has_is_refused(root):
    with pytest.raises(RequestError, match="names GPU 3") as error:
        devices.find([0, 3], {}, root=root)
    assert error.value.fix == "cluster.devices=[0,1,2], or null for all of them"


def test_amds_gpus_are_those_nodes_of_the_topology_that_are_no_cpus(tmp_path):
    for node, gpu in enumerate(["0", "51234", "9876"]):
        (tmp_path / f"sys/class/kfd/kfd/topology/nodes/{node}").mkdir(parents=True)
        (tmp_path / f"sys/class/kfd/kfd/topology/nodes/{node}/gpu_id").write_text(f"{gpu}\n")
    assert [device.id for device in devices.find(None, {}, root=tmp_path)] == ["0", "1"]


def test_an_older_versions_queue_entry_is_read():
    assert Terms.from_json({"launch": "/x", "cpus": 3, "grace_seconds": 2.0, "time": 1}) == Terms(
        cpus=3, grace_seconds=2.0
    )


# --- logging out ---------------------------------------------------------------------------------------------


@pytest.fixture
def logind(tmp_path, monkeypatch):
    """Give a function that puts a login manager on PATH which kills what a user leaves behind, or not."""

    def put(*, kills: str, scopes: bool = True) -> Path:
        programs = tmp_path / "bin"
        programs.mkdir()
        log = programs / "scopes"
        scope = f'echo "$@" >> "{log}"; while [ "$1" != -- ]; do shift; done; shift; exec "$@"' if scopes else "exit 1"
        for name, does in (("loginctl", f"echo {kills}"), ("systemd-run", scope)):
            (programs / name).write_text(f"#!/bin/sh\n{does}\n")
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(session, "_LINGER", tmp_path / "linger")
        return log

    return put


def test_where_logind_kills_what_is_left_behind_the_supervisor_starts_in_a_scope_of_its_own(make, logind):
    log = logind(kills="yes")
    bench = make()
    run = scripted()
    (note,) = bench.launch([run]).notes
    assert "loginctl enable-linger" in note
    wait_for_end(bench)
    assert states(bench, [run]) == [RunState.DONE]
    started = f"{sys.executable} -P -m orchestrator.local.workstation"
    assert f"--user --scope --quiet --collect -- {started}" in log.read_text()


@pytest.mark.parametrize(
    ("kills", "scopes", "lingers", "told"),
    [
        ("no", True, False, ""),
        ("yes", True, True, ""),
        ("yes", False, True, "`systemd-run --user` does not work here"),
    ],
)
def test_what_is_said_of_it(logind, tmp_path, monkeypatch, kills, scopes, lingers, told):
    logind(kills=kills, scopes=scopes)
    monkeypatch.setattr("getpass.getuser", lambda: "ada")
    if lingers:
        (tmp_path / "linger").mkdir()
        (tmp_path / "linger" / "ada").touch()
    assert told in session.note() if told else session.note() == ""
    prefix = session.surviving(["program"])
    assert (prefix == ["program"]) is (kills == "no" or not scopes)
