"""What an error is a symptom of: a rank that is gone, or a disk that fails."""

from __future__ import annotations

import errno
import os

import pytest
import torch
from full_disk import small_disk

from orchestrator.errors import StateError
from orchestrator.layout import ExperimentPaths
from orchestrator.local.inline import Inline
from orchestrator.records.attempts import EventWriter
from orchestrator.records.record import RunState
from orchestrator.system import files
from orchestrator.testing.launches import Bench, scripted
from orchestrator.worker.cause import failing_disk, lost_rank
from orchestrator.worker.fit.writer import AtomicCheckpointIO


class DistBackendError(RuntimeError):
    """As torch.distributed names its own."""


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (
            RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [1.2.3.4]"),
            True,
        ),
        (RuntimeError("[/gloo/transport/tcp/pair.cc:81] writev [10.0.0.2]:27: Connection reset by peer"), True),
        (DistBackendError("NCCL error: remote process exited or there was a network error"), True),
        (DistBackendError("Watchdog caught collective operation timeout"), False),  # a hang is a failure
        (DistBackendError("NCCL error: invalid usage"), False),
        (RuntimeError("Connection reset by peer"), False),  # of a server of the user's
        (ConnectionResetError("Connection reset by peer"), False),
        (RuntimeError("CUDA out of memory"), False),
    ],
)
def test_a_lost_connection_between_ranks_is_distinguished_from_all_else(error, lost):
    assert lost_rank(error) is lost


def _raised(act) -> BaseException:
    with pytest.raises(BaseException) as failed:  # noqa: PT011 - whatever torch makes of it
        act()
    return failed.value


def test_a_checkpoint_that_does_not_fit_names_the_disk(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        disk.leave(2)
        path = disk.folder / "state" / "step-1.ckpt"
        error = _raised(lambda: AtomicCheckpointIO().save_checkpoint({"w": torch.zeros(2**20)}, path))
        told = failing_disk(error, path)
        assert told.startswith("No space left on device: ")
        assert told.endswith(f", on {disk.folder} (tmpfs)")
        assert not path.exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EDQUOT])
def test_our_own_files_are_told_from_the_users(tmp_path, monkeypatch, number):
    monkeypatch.setattr(files, "_PAUSES_SECONDS", ())

    def fail(path: object, *_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number), path)

    users = _raised(lambda: fail(tmp_path / "data"))
    monkeypatch.setattr(os, "open", fail)
    ours = _raised(lambda: EventWriter(tmp_path / "events.jsonl").write("progress"))
    monkeypatch.undo()
    assert os.strerror(number) in failing_disk(ours, tmp_path)
    assert failing_disk(users, tmp_path) == ""
    wrapped = StateError("cannot write")
    wrapped.__cause__ = ours
    assert failing_disk(wrapped, tmp_path)


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize("pages", [0, 1, 2])
def test_a_run_whose_disk_fills_is_interrupted_and_goes_on(tmp_path, pages):
    with small_disk(tmp_path / "disk") as disk:
        cluster = Inline()
        bench = Bench(paths=ExperimentPaths(disk.folder / "x"), kind="inline", cluster=cluster)
        gate = tmp_path / "open"
        run = scripted({"steps": 400, "until": str(gate)})
        bench.launch([run], brake=1)

        def fill(*_: object, **__: object) -> bool:
            if bench.played() and not gate.exists():
                disk.leave(pages)
                gate.touch()
            return False

        cluster.run(until=fill)
        disk.free()
        record = bench.records()[run.id]
        assert record.state is RunState.INTERRUPTED, record.reason
        assert record.failure is None
        bench.launch([run])
        cluster.run()
        assert bench.records()[run.id].state is RunState.DONE
        cluster.close()
