"""A disk that is full while a launch is handed to Slurm: what Slurm has taken is not lost, and not submitted twice."""

from __future__ import annotations

from collections import Counter

import pytest
from full_disk import refusal, small_disk
from processes import tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import output

from orchestrator.layout import ExperimentPaths
from orchestrator.record import RunState
from orchestrator.slurm.cluster import SlurmCluster
from orchestrator.slurm.options import SlurmOptions
from orchestrator.testing.launches import Bench, scripted

pytestmark = pytest.mark.slurm


def test_wherever_it_is_full_each_run_is_submitted_once_in_the_end(slurm, tmp_path):
    refused = []
    for pages in range(4, 14):
        with small_disk(tmp_path / f"{pages} pages") as disk:
            # Held: the nodes do not see this disk.
            cluster = SlurmCluster(SlurmOptions(extra={"hold": True}))
            bench = Bench(paths=ExperimentPaths(disk.folder / "x"), kind="slurm", cluster=cluster)
            runs = [scripted(seed=seed) for seed in range(3)]
            disk.leave(pages)
            error = refusal(lambda bench=bench, runs=runs: bench.launch(runs))
            if error is not None:
                refused.append(pages)
                assert str(disk.folder) in error.what
                assert "No space left on device" in error.why
            disk.free()
            bench.launch(runs)
            assert {record.state for record in bench.records().values()} == {RunState.QUEUED}
            assert bench.launch(runs).paths is None
            waiting = Counter(output("squeue", "--noheader", "--array", "--states=PENDING", "--format=%K").split())
            assert waiting == {"0": 1, "1": 1, "2": 1}, f"{pages} pages"
            output("scancel", "--user=root")
            wait_for(lambda: not output("squeue", "--noheader"), "the queue to be empty")
    assert 2 <= len(refused) < 10
