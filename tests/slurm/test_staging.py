"""Data on a real Slurm: each node copies a version once, whatever runs there, and a node that cannot fails its run."""

from __future__ import annotations

import json
import shlex
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from campaigns import SEED, amount
from cluster_contract import states, wait_for_end
from processes import tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import output

from orchestrator.data import resolve
from orchestrator.layout import ExperimentPaths
from orchestrator.records.record import RunState
from orchestrator.slurm.cluster import SlurmCluster
from orchestrator.slurm.options import SlurmOptions
from orchestrator.testing.launches import Bench, scripted

pytestmark = pytest.mark.slurm
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def bench(slurm, tmp_path):
    return bench_with(tmp_path)


def bench_with(folder, **options):
    paths = ExperimentPaths(folder / "it's a run's folder" / "x")
    return Bench(
        paths=paths,
        kind="slurm",
        cluster=SlurmCluster(SlurmOptions.parse({"kind": "slurm", **options})),
        options=options,
    )


@pytest.fixture
def version(tmp_path):
    """A data version that no other test has: nodes keep what they have copied."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(50):
        (folder / f"{number}.txt").write_text(f"{tmp_path} {number}")
    return resolve({"source": "directory", "path": str(folder)}, project=folder, cache=tmp_path / "cache")


def with_data(bench, version, run):
    bench.paths.manifest(version.digest).parent.mkdir(parents=True, exist_ok=True)
    version.write(bench.paths.manifest(version.digest))
    return replace(run, data_digest=version.digest)


def copies(bench):
    """Return how often each node copied, by the summary events of all ranks of all runs."""
    files = [*bench.paths.path.glob("runs/*/a*/events.jsonl"), *bench.paths.path.glob("runs/*/a*/staged.rank*.jsonl")]
    events = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    return Counter(event["node"] for event in events if event["kind"] == "staged" and not event["hit"])


def test_of_several_ranks_on_several_nodes_one_on_each_node_copies(bench, version):
    run = with_data(bench, version, scripted(nodes=2, gpus_per_node=2, cpus_per_node=2))
    bench.launch([run])
    wait_for_end(bench)
    assert states(bench, [run]) == [RunState.DONE]
    wait_for(lambda: not output("squeue", "--noheader"), "the other ranks to end")
    assert sorted(copies(bench).values()) == [1, 1]


def test_the_runs_of_an_array_copy_once_on_each_node(bench, version):
    runs = [with_data(bench, version, scripted(seed=seed)) for seed in range(8)]
    bench.launch(runs)
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * len(runs)
    nodes = {json.loads(path.read_text())["process"]["host"] for path in bench.paths.path.glob("runs/*/a*/claim.json")}
    assert copies(bench) == dict.fromkeys(nodes, 1)


def test_with_scratch_that_belongs_to_the_job_each_job_copies_once(slurm, tmp_path, version):
    scratch = "/tmp/private of $SLURM_JOB_ID"
    bench = bench_with(tmp_path, scratch=scratch, setup=[f'mkdir "{scratch}"'])
    runs = [with_data(bench, version, scripted(seed=seed)) for seed in range(2)]
    runs.append(with_data(bench, version, scripted(seed=2, nodes=1, gpus_per_node=2, cpus_per_node=2)))
    bench.launch(runs[:2])
    wait_for_end(bench)
    bench.launch(runs[2:])
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 3
    assert sum(copies(bench).values()) == 3  # of four processes
    views = {str(record.last.data["view"]) for record in bench.records().values()}
    assert len({view.partition("/orchestrator-")[0] for view in views}) == 3


def test_a_node_that_cannot_stage_fails_the_run_with_its_name(slurm, tmp_path, version):
    good, bad = (node.name for node in slurm.nodes()[:2])
    scratch = f"/tmp/only on {good}"
    output("srun", f"--nodelist={good}", "mkdir", "-p", scratch)
    bench = bench_with(tmp_path, nodelist=f"{good},{bad}", scratch=scratch)
    run = with_data(bench, version, scripted({"steps": 10_000, "seconds": 1.0}, nodes=2, gpus_per_node=1))
    bench.launch([run])
    wait_for_end(bench)
    record = bench.records()[run.id]
    assert record.state is RunState.FAILED
    assert f"node {bad}" in record.reason
    assert scratch in record.reason


@pytest.mark.campaign("chaos", sample=True)
def test_copiers_killed_on_two_nodes_never_leave_a_wrong_byte(slurm, tmp_path):
    """On each node's own /tmp, from one folder that both see; every view is read after every kill (see the program)."""
    for number in range(2):
        folder = tmp_path / f"data {number}"
        folder.mkdir()
        (folder / "shared").write_bytes(b"shared" * 1000)
        (folder / "own").write_bytes(bytes([number]) * 3_000_000)
        version = {"source": "directory", "path": str(folder)}
        resolve(version, project=folder, cache=tmp_path / "cache").write(tmp_path / f"{number}.json")
    argv = [sys.executable, REPOSITORY / "tests/support/stager_chaos.py", tmp_path, "/tmp/killed copiers"]
    command = f"exec {shlex.join(map(str, argv))} {SEED}-node-$SLURM_NODEID {KILLS}"
    line = f"PYTHONPATH={shlex.quote(str(REPOSITORY))} {command}"
    output("srun", "--nodes=2", "--ntasks-per-node=1", f"--output={tmp_path}/told.%n", "bash", "-c", line)
    told = [(tmp_path / f"told.{node}").read_text() for node in range(2)]
    assert all(each.strip().isdigit() for each in told), told
    assert sum(map(int, told)) >= KILLS
    assert not Path("/tmp/killed copiers").exists()  # it was theirs


KILLS = amount(30, 500)
"""On each of two nodes; at least half of them meet a copier at work."""
