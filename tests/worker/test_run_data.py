"""A run's data version: on the node before it trains, watched while it does, and told of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from cluster_contract import Gate, wait_for_end
from processes import tidy, wait_for  # noqa: F401 - one is a fixture

from orchestrator.data import Manifest, resolve, scratch_dir
from orchestrator.layout import ExperimentPaths
from orchestrator.local.inline import Inline
from orchestrator.local.workstation import Workstation
from orchestrator.records.record import RunState
from orchestrator.report.summary import progress
from orchestrator.testing.launches import Bench, scripted

pytestmark = pytest.mark.usefixtures("tidy")


class Desk:
    """An experiment whose runs read one data version, on a scratch folder of its own."""

    def __init__(self, folder: Path, *, scratch: Path | None = None, **options: object) -> None:
        (folder / "the data").mkdir()
        (folder / "scratch").mkdir()
        for number in range(20):
            (folder / "the data" / f"{number}.txt").write_text(f"number {number}")
        self.source = folder / "the data"
        version = {"source": "directory", "path": str(self.source)}
        self.version: Manifest = resolve(version, project=folder, cache=folder / "cache")
        self.cluster = Inline(grace_seconds=1.0)
        cluster = {"scratch": str(scratch or folder / "scratch"), "staging": {"keep_free_gb": 0, **options}}
        paths = ExperimentPaths(folder / "it's a run's folder" / "x")
        self.bench = Bench(paths=paths, kind="inline", cluster=self.cluster, options=cluster)
        paths.manifest(self.version.digest).parent.mkdir(parents=True)
        self.version.write(paths.manifest(self.version.digest))

    def play(self, script: dict[str, object] | None = None, *, seed: int = 0):
        """Run a run that reads the version to its end, and return its record."""
        run = replace(scripted(script, seed=seed), data_digest=self.version.digest)
        self.bench.launch([run])
        self.cluster.run()
        return self.bench.records()[run.id]


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def view_of(record):
    return Path(record.last.data["view"])


def overwrite(path):
    path.chmod(0o600)
    path.write_text("somebody was here")


def test_the_summary_says_what_it_took(desk):
    first, second = desk.play(seed=1), desk.play(seed=2)
    assert [record.state for record in (first, second)] == [RunState.DONE] * 2
    told = [dict(record.last.data) for record in (first, second)]
    assert [each["hit"] for each in told] == [False, True]
    assert [each["copied_files"] for each in told] == [20, 0]
    assert [each["verified"] for each in told] == ["hash", "marker"]
    assert {each["primitive"] for each in told} == {"hardlink"}
    assert {(each["node"], each["bytes"], each["files"]) for each in told} == {
        (os.uname().nodename, desk.version.bytes, 20)
    }
    assert view_of(first) == view_of(second)


def test_of_runs_beside_each_other_on_a_workstation_one_copies(desk):
    bench = replace(desk.bench, kind="workstation", cluster=Workstation(cpus=4))
    runs = [replace(scripted(seed=seed), data_digest=desk.version.digest) for seed in range(6)]
    bench.launch(runs)
    wait_for_end(bench)
    records = bench.records().values()
    assert {record.state for record in records} == {RunState.DONE}
    assert sorted(record.last.data["hit"] for record in records) == [False, *[True] * 5]
    assert len({view_of(record) for record in records}) == 1


def test_nobody_holds_the_version_once_the_run_has_ended(desk):
    record = desk.play({"ends": ["raise"]})
    assert record.state is RunState.FAILED
    assert list((view_of(record).parent / "leases").iterdir()) == []


def test_a_view_changed_between_two_runs_fails_the_second_and_a_retry_has_it_right(desk):
    view = view_of(desk.play(seed=1))
    overwrite(view / "7.txt")
    failed = desk.play({"steps": 200, "seconds": 0.05}, seed=2)
    assert failed.state is RunState.FAILED
    assert "the data version was changed while the run read it" in failed.reason
    assert os.uname().nodename in failed.reason
    assert "'7.txt' has been written to" in failed.failure.traceback
    assert failed.metrics.get("step", 0) < 200  # it did not train to the end on wrong data
    again = desk.play({"steps": 200, "seconds": 0.0}, seed=3)
    assert again.state is RunState.DONE
    assert (view_of(again) / "7.txt").read_text() == "number 7"


@pytest.mark.parametrize("change", ["written", "removed", "added"])
def test_a_view_changed_while_a_run_reads_it_fails_the_run(desk, tmp_path, change):
    gate = Gate(tmp_path / "open")

    def tamper():
        wait_for(desk.bench.played, "the run to begin")
        (view,) = tmp_path.glob("scratch/*/versions/*/view")
        view.chmod(0o700)
        if change == "written":
            overwrite(view / "3.txt")
        elif change == "removed":
            (view / "3.txt").unlink()
        else:
            (view / "3.cache").touch()
        gate.open()

    meanwhile = threading.Thread(target=tamper)
    meanwhile.start()
    record = desk.play(gate.script())
    meanwhile.join()
    assert record.state is RunState.FAILED
    assert "'3." in record.failure.traceback


def test_verify_always_mends_a_view_before_the_run(tmp_path):
    desk = Desk(tmp_path, verify="always")
    view = view_of(desk.play(seed=1))
    overwrite(view / "7.txt")
    again = desk.play(seed=2)
    assert (again.state, again.last.data["copied_files"]) == (RunState.DONE, 1)
    third = desk.play(seed=3)
    assert (third.last.data["hit"], third.last.data["verified"]) == (True, "hash")


def test_a_version_that_cannot_be_staged_fails_the_run_with_the_nodes_name(desk):
    (desk.source / "7.txt").write_text("edited since the launch")
    record = desk.play()
    assert record.state is RunState.FAILED
    assert f"node {os.uname().nodename}: no right copy of '7.txt'" in record.reason
    events = (desk.bench.paths.run(record.id).attempt(1).events).read_text().splitlines()
    assert [json.loads(line)["kind"] for line in events] == ["started", "failed"]


@pytest.mark.parametrize("small_disk", ["tmpfs"], indirect=True)
def test_a_full_disk_fails_the_run_with_the_nodes_name_and_leaves_nothing(small_disk, tmp_path):
    desk = Desk(tmp_path, scratch=small_disk.path)
    small_disk.leave_inodes(12)
    record = desk.play(seed=1)
    assert record.state is RunState.FAILED
    assert f"node {os.uname().nodename}: not enough space on scratch" in record.reason
    assert "6 inodes are free" in record.failure.traceback
    assert [path for path in small_disk.path.glob("orchestrator-*/*/*") if path.name != "objects"] == []
    small_disk.give_back()
    assert desk.play(seed=2).state is RunState.DONE


COPIER = """
import os, sys
from pathlib import Path
from orchestrator.data import Manifest, Staging, Store
def slow(source, target):
    print("at work", flush=True)
    sys.stdin.read()
    os.link(source, target)
manifest = Manifest.read(Path(sys.argv[2]))
staged = Store(Path(sys.argv[1]), Staging(keep_free_gb=0), link=slow, job="4_2").stage(manifest)
print(staged.hit, flush=True)
"""


def test_for_whom_a_run_waits_is_seen_while_it_waits_and_counted_afterwards(desk, tmp_path):
    desk.version.write(tmp_path / "m.json")
    root = scratch_dir(str(tmp_path / "scratch"), {})
    argv = [sys.executable, "-c", COPIER, str(root), str(tmp_path / "m.json")]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as copier:
        assert copier.stdout.readline() == b"at work\n"
        records = []
        run = threading.Thread(target=lambda: records.append(desk.play()))
        run.start()
        wait_for(lambda: [row for row in stages(desk) if row.startswith("waiting")], "the run to say so")
        (row,) = stages(desk)
        copier.stdin.close()
        run.join()
        assert copier.stdout.read().endswith(b"False\n")
    assert f"for process {copier.pid} on {os.uname().nodename} (job 4_2): it looks at what is there" in row
    data = records[0].last.data
    assert (records[0].state, data["hit"], data["copied_bytes"]) == (RunState.DONE, True, 0)
    assert 2 < data["waited_seconds"] <= data["seconds"]


def stages(desk):
    """Return what `orch status -w` shows of each run's progress."""
    return [progress(record) for record in desk.bench.records().values()]
