"""A disk that is full while a launch is published: said in a line, with nothing half-done, and made good later."""

from __future__ import annotations

import os

import pytest
from full_disk import refusal, small_disk

from orchestrator.layout import ExperimentPaths
from orchestrator.local.inline import Inline
from orchestrator.local.workstation import Workstation
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


@pytest.mark.parametrize("broken", ["a file in its place", "a full disk"])
def test_a_state_folder_that_cannot_be_written_is_named_before_anything_is_published(tmp_path, broken):
    with small_disk(tmp_path / "state's") as disk:
        state = disk.folder / "queue"
        if broken == "a full disk":
            disk.leave(1)
        else:
            state.write_text("")
        bench = Bench(
            paths=ExperimentPaths(tmp_path / "runs" / "x"), kind="workstation", cluster=Workstation(folder=state)
        )
        error = refusal(lambda: bench.launch([scripted()]))
        assert error is not None
        assert str(state) in error.what
        assert "$XDG_STATE_HOME" in error.fix
        assert error.exit_code == 1
        assert not (tmp_path / "runs").exists()
