"""A disk that is full while a launch is published: said in a line, with nothing half-done, and made good later."""

from __future__ import annotations

import os

import pytest
from full_disk import refusal, small_disk

from orchestrator.layout import ExperimentPaths
from orchestrator.local.inline import Inline
from orchestrator.records.record import RunState
from orchestrator.testing.launches import Bench, scripted

TREE = ("code", "the-package-itself", "tree", "orchestrator", "snapshot.json")
"""The frozen code: whole, and good for the next launch, too."""

pytestmark = pytest.mark.usefixtures("tidy")


def test_wherever_it_is_full_while_a_launch_is_published_nothing_is_half_done(tmp_path):
    refused = 0
    for pages in range(8):
        with small_disk(tmp_path / f"{pages} pages") as disk:
            cluster = Inline()
            bench = Bench(paths=ExperimentPaths(disk.folder / "x"), kind="inline", cluster=cluster)
            runs = [scripted(seed=seed) for seed in range(1)]
            disk.leave(pages)
            error = refusal(lambda bench=bench, runs=runs: bench.launch(runs))
            if error is not None:
                refused += 1
                assert str(disk.folder) in error.what
                assert "No space left on device" in error.why
                assert "free some space" in error.fix
                left = {name for _, folders, files in os.walk(disk.folder) for name in (*folders, *files)}
                assert left <= {"filler", "x", "launches", *TREE}
            disk.free()
            assert bench.launch(runs).paths is None or (error and len(bench.paths.launches()) == 1)
            cluster.run()
            assert [record.state for record in bench.records().values()] == [RunState.DONE]
            cluster.close()
    assert 3 <= refused < 8
