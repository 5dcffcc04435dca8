"""The benchmark of a launch measures what it says: a tiny one, on a real Slurm, next to Hydra's own multirun."""

import os
import subprocess
import sys

import pytest
from real_slurm import in_campaign

from bench import table
from bench.configuration import make_project
from bench.launch import Found, measured, processes_marked
from bench.measure import Cost
from bench.sandbox import sandbox
from bench.slurm import busy_slurm
from orchestrator.slurm.devcluster import available


@pytest.mark.slurm
@in_campaign
def test_a_launch_and_its_peer_are_measured_until_all_their_tasks_wait_in_the_queue():
    if (reason := available()) is not None:
        pytest.skip(f"no real Slurm here: {reason}")
    with sandbox() as box, busy_slurm() as slurm:
        make_project(box, box.folder / "project", files=100)
        found = measured(box, slurm, box.folder, [20], name="tiny", rounds=1, peer_points=(20, 40), warm_up=False)
        assert slurm.waiting() == 0
        assert [path.name for path in (box.folder / "runs-0").glob("[!.]*")] == ["budget"]
    row = found.row("a launch", 20, at_least=1.0)
    assert row.measured[0] > 0
    assert row.cpu[0] > 0
    assert row.ratio == found.peer[20][0].seconds / found.ours[20][0].seconds


def test_the_peer_of_a_large_launch_lies_on_the_line_through_two_small_ones():
    found = Found(
        ours={1_020: [Cost(seconds=2, cpu_seconds=1)]},
        peer={20: [Cost(seconds=3, cpu_seconds=2)], 120: [Cost(seconds=13, cpu_seconds=7)]},
    )
    row = found.row("a launch", 1_020, at_least=80)
    assert (row.measured, row.cpu, row.kept) == ([2], [1], False)
    assert (row.peer_measured, row.peer_cpu, row.ratio) == ([103], [52], 51.5)
    assert "51.5x" in table.lines([row])[1]


def test_a_process_that_a_launch_leaves_behind_is_found():
    marked = {**os.environ, "ORCH_BENCH": "this launch"}
    left = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=marked)
    try:
        assert [process.pid for process in processes_marked("this launch")] == [left.pid]
        assert processes_marked("another launch") == []
    finally:
        left.communicate()
