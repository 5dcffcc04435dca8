"""A run that hangs is noticed, described and ended, whatever it hangs in; then its policy decides."""

from __future__ import annotations

import os
import struct
import time

import pytest
from cluster_contract import Gate
from processes import tidy, wait_for  # noqa: F401 - one is a fixture

from orchestrator.launch.launch import WORKER
from orchestrator.layout import ExperimentPaths
from orchestrator.local.inline import Inline
from orchestrator.records.record import RunState
from orchestrator.spec import Attempts
from orchestrator.testing.launches import Bench, scripted, trained
from orchestrator.worker.monitor import heartbeat, stall
from orchestrator.worker.monitor.heartbeat import Beat, Stage

SOON = Attempts(backoff_minutes=0.0, stall_minutes=0.05)
DUMP = """\
Thread 0x00007f01 (most recent call first):
  File "/x/threading.py", line 320 in wait

Current thread 0x00007f02 (most recent call first):
  File "/x/torch/distributed/distributed_c10d.py", line 2806 in all_reduce
  File "/x/torch/distributed/c10d_logger.py", line 81 in wrapper
  File "/x/train.py", line 3 in <module>
"""


def bench_of(folder, **options):
    cluster = Inline(grace_seconds=1.0, **options)
    return Bench(paths=ExperimentPaths(folder / "it's runs" / "x"), kind="inline", cluster=cluster)


def test_a_run_that_is_stopped_or_holds_the_lock_in_c_is_ended_described_and_started_again(tmp_path):
    bench = bench_of(tmp_path)
    stopped = scripted({"steps": 2, "ends": ["stop", "done"]}, seed=1, attempts=SOON)
    holds = scripted({"steps": 2, "ends": ["hold", "done"]}, seed=2, attempts=SOON)
    bench.launch([stopped, holds])
    bench.cluster.run()
    for run, reason in ((stopped, "stalled: rank 0 stopped"), (holds, "stalled: rank 0 in match (re/__init__.py:")):
        record = bench.records()[run.id]
        assert record.state is RunState.DONE, record
        assert record.attempts[0].cause == "stalled"
        assert record.attempts[0].reason.startswith(reason)
        assert record.attempts[0].stalling_since is not None
        log = bench.paths.run(run.id).attempt(1).log.read_text()
        assert "orch: no progress for" in log
    assert "testing/script.py" in log, "the stack of a process that holds the lock"


def beats(count, stage=Stage.TRAINING):
    return {0: Beat(pid=7, stage=stage, count=count), 1: Beat(pid=8, stage=stage, count=100)}


def test_the_limit_is_ten_times_the_longest_step_and_at_least_a_quarter_of_an_hour():
    seen = stall.Progress(policy=Attempts())
    assert seen.limit(Stage.STARTING) == 3600
    for now, count in ((0.0, 1), (10.0, 2), (210.0, 3)):
        seen.see(beats(count), now)
    assert (seen.longest, seen.limit(Stage.TRAINING)) == (200.0, 2000.0)
    assert seen.silence(beats(3), 300.0) == (300.0, 2000.0)  # rank 1 has never said more
    assert stall.Progress(policy=Attempts()).limit(Stage.TRAINING) == 900
    assert stall.Progress(policy=SOON).limit(Stage.STAGING) == pytest.approx(3)
    assert stall.Progress(policy=SOON).silence({}, 5.0)[0] == 0


def test_what_ranks_hang_in_is_said_in_a_line():
    assert stall.where("S", DUMP) == "in all_reduce"
    assert stall.where("T", "") == "stopped"
    assert stall.where("D", "") == "waits for a disk"
    assert stall.where("R", "") == "does not answer"
    assert stall.where("", "") == "ended"
    loader = DUMP.replace("torch/distributed/distributed_c10d.py", "torch/utils/data/dataloader.py").replace(
        "all_reduce", "_try_get_data"
    )
    assert stall.where("S", loader) == "waits for its data loader's workers"
    ranks = {0: "in all_reduce", 1: "stopped", 2: "in all_reduce"}
    assert stall.signature(ranks) == "ranks 0, 2 in all_reduce, rank 1 stopped"


@pytest.mark.campaign("chaos")
def test_a_barrier_that_one_rank_skips_and_a_worker_of_a_loader_that_never_returns(tmp_path):
    gate = Gate(tmp_path / "open")
    bench = bench_of(tmp_path, devices=["0", "1"])
    policy = Attempts(of=1, stall_minutes=0.2, startup_minutes=5.0)
    skips = trained({"does": "hang", "at": 3, **gate.script()}, gpus_per_node=2, attempts=policy)
    loops = trained(kind="LoopingNet", seed=2, attempts=policy)
    bench.launch([skips, loops], worker=WORKER)
    bench.cluster.run()
    records = bench.records()
    assert records[skips.id].reason.startswith("stalled: rank 0 in all_gather, rank 1 in _hang (testing/net.py:")
    assert records[loops.id].reason.startswith("stalled: rank 0 waits for its data loader's workers: in __getitem__")


def test_what_a_killed_watcher_left_is_removed_and_what_lives_is_not(tmp_path):
    for name in ("dead", "alive"):
        (tmp_path / name).mkdir()
        mine = heartbeat.Heartbeat(tmp_path / name, 0)
        assert heartbeat.beats(tmp_path / name) == {0: Beat(pid=os.getpid(), stage=Stage.STARTING, count=1)}
        mine.close()
    (tmp_path / "dead" / "rank0.beat").write_bytes(struct.pack("=qqq", 2**22 + 1, 0, 1))
    heartbeat._remove_old(tmp_path, time.time() + 1)
    assert [path.name for path in tmp_path.iterdir()] == ["alive"]
