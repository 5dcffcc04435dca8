"""A disk that is full while a launch is handed to Slurm: what Slurm has taken is not lost, and not submitted twice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest
from full_disk import small_disk
from processes import ROOT, tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import output

from orchestrator.layout import ExperimentPaths
from orchestrator.records.record import RunState
from orchestrator.slurm.cluster import SlurmCluster
from orchestrator.slurm.options import SlurmOptions
from orchestrator.testing.launches import Bench, scripted

pytestmark = pytest.mark.slurm
HELD = {"hold": True}  # the nodes do not see this disk
LAUNCH = """
import sys
from pathlib import Path
from orchestrator.errors import StateError
from orchestrator.layout import ExperimentPaths
from orchestrator.slurm.cluster import SlurmCluster
from orchestrator.slurm.options import SlurmOptions
from orchestrator.testing.launches import Bench, scripted

cluster = SlurmCluster(SlurmOptions(extra={"hold": True}))
try:
    Bench(paths=ExperimentPaths(Path(sys.argv[1])), kind="slurm", cluster=cluster).launch(
        [scripted(seed=seed) for seed in range(3)]
    )
except StateError as error:
    sys.exit(str(error))
"""


def test_wherever_it_is_full_each_run_is_submitted_once_in_the_end(slurm, tmp_path):
    refused = 0
    for pages in range(5, 13):
        with small_disk(tmp_path / f"{pages} pages") as disk:
            paths, cluster = ExperimentPaths(disk.folder / "x"), SlurmCluster(SlurmOptions(extra=HELD))
            bench, runs = Bench(paths=paths, kind="slurm", cluster=cluster), [scripted(seed=seed) for seed in range(3)]
            disk.leave(pages)
            argv, environ = [sys.executable, "-c", LAUNCH, str(paths.path)], {**os.environ, "PYTHONPATH": str(ROOT)}
            first = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
            if first.returncode:
                refused += 1
                assert first.stderr.startswith(f"cannot write {disk.folder}"), first.stderr
                assert "No space left on device" in first.stderr
            disk.free()
            bench.launch(runs)
            assert {record.state for record in bench.records().values()} == {RunState.QUEUED}
            assert bench.launch(runs).paths is None
            waiting = Counter(output("squeue", "--noheader", "--array", "--states=PENDING", "--format=%K").split())
            assert waiting == {"0": 1, "1": 1, "2": 1}, f"{pages} pages"
            output("scancel", "--user=root")
            wait_for(lambda: not output("squeue", "--noheader"), "the queue to be empty")
    assert 2 <= refused < 8
