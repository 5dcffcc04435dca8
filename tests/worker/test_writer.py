"""How checkpoints are written: beside the training, whole or not at all, and what a full disk does to them."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from full_disk import small_disk

from orchestrator.layout import AttemptPaths
from orchestrator.records.checkpoints import Checkpoint, latest_of, sha256_of, to_resume
from orchestrator.worker.fit.writer import AtomicCheckpointIO, CheckpointWriter


class SlowIO(AtomicCheckpointIO):
    """Waits before it writes, until it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = threading.Event()

    def write(self, checkpoint: Any, target: Path) -> tuple[int, str]:
        self.may.wait(60)
        return super().write(checkpoint, target)


def attempt_in(folder: Path) -> AttemptPaths:
    made = AttemptPaths(folder / "a001")
    made.state.mkdir(parents=True)
    return made


def writer(attempt: AttemptPaths, io: AtomicCheckpointIO | None = None, **options: Any) -> CheckpointWriter:
    return CheckpointWriter(attempt, io or AtomicCheckpointIO(), **{"keep": 2, "asynchronous": True, **options})


def save(one: CheckpointWriter, attempt: AttemptPaths, step: int, *, best: bool = False, state: Any = None) -> Path:
    path = attempt.state / f"step-{step}.ckpt"
    found = Checkpoint(path=path, step=step, epoch=0, metrics_bytes=step)
    one.write(state or {"w": torch.full((10,), float(step))}, found, latest=True, best=best, now=False)
    return path


def test_what_is_saved_is_as_it_was_though_the_training_goes_on(tmp_path):
    attempt, io = attempt_in(tmp_path), SlowIO()
    made = writer(attempt, io)
    weights = torch.zeros(1000)
    tied = weights[:10]
    state = {"w": weights, "tied": tied, "counts": [1], "nested": {"step": torch.tensor(3.0)}}
    path = save(made, attempt, 5, state=state)
    assert made.busy
    weights += 1
    state["counts"].append(2)
    state["nested"]["step"] += 1
    assert latest_of(attempt) is None  # nothing is named before it is whole
    io.may.set()
    made.wait()
    saved = torch.load(path, weights_only=True)
    assert (float(saved["w"].sum()), saved["counts"], float(saved["nested"]["step"])) == (0, [1], 3)
    assert saved["tied"].untyped_storage().data_ptr() == saved["w"].untyped_storage().data_ptr()
    pointer = json.loads(attempt.latest.read_text())
    assert (pointer["bytes"], pointer["sha256"]) == (path.stat().st_size, sha256_of(path))
    assert pointer["metrics_bytes"] == 5


def test_the_latest_ones_and_the_best_are_kept(tmp_path):
    attempt = attempt_in(tmp_path)
    made = writer(attempt)
    for step in range(1, 6):
        save(made, attempt, step, best=step in {1, 2})
    made.wait()
    names = sorted(path.name for path in attempt.state.iterdir())
    assert names == ["best.ckpt", "latest.json", "step-2.ckpt", "step-4.ckpt", "step-5.ckpt"]
    assert (attempt.state / "best.ckpt").samefile(attempt.state / "step-2.ckpt")


@pytest.mark.parametrize("damage", ["another byte", "cut off", "removed", "emptied"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, caplog, damage):
    attempt = attempt_in(tmp_path)
    made = writer(attempt)
    first, second = save(made, attempt, 1), save(made, attempt, 2)
    made.wait()
    content = bytearray(second.read_bytes())
    if damage == "another byte":
        content[len(content) // 2] ^= 1
    second.write_bytes({"another byte": content, "cut off": content[:-7]}.get(damage, b""))
    if damage == "removed":
        second.unlink()
    found = to_resume([attempt])
    assert found
    assert (found.path, found.metrics_bytes) == (first, 1)
    assert damage == "removed" or str(second) in caplog.text


def test_without_memory_for_a_copy_it_is_written_at_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("orchestrator.worker.fit.writer.free_bytes", lambda: 10)
    attempt = attempt_in(tmp_path)
    made = writer(attempt)
    with caplog.at_level("INFO"):
        path = save(made, attempt, 1)
        save(made, attempt, 2)
    assert not made.busy
    assert torch.load(path, weights_only=True)
    assert caplog.text.count("too little memory") == 1  # said once


def test_what_cannot_be_copied_is_written_at_once_if_it_can_be_pickled(tmp_path):
    class Uncopied:
        def __deepcopy__(self, memo: object) -> None:
            raise TypeError

    attempt = attempt_in(tmp_path)
    made = writer(attempt)
    save(made, attempt, 1, state={"own": {Uncopied: 1}.keys() and [1], "w": torch.zeros(3).requires_grad_() * 2})
    assert to_resume([attempt])


def test_a_full_disk_does_not_end_the_training_and_is_said(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        attempt, said = attempt_in(disk.folder), []
        made = writer(attempt, refused=said.append)
        first = save(made, attempt, 1)
        made.wait()
        disk.leave(1)
        for step in (2, 3):
            save(made, attempt, step, state={"w": torch.zeros(2**18)})
        made.wait()
        assert said == ["step 2 was not saved: No space left on device"]
        found = to_resume([attempt])
        assert found
        assert found.path == first
        disk.free()
        save(made, attempt, 4)
        made.wait()
        assert said[1:] == [""]
        assert latest_of(attempt) == attempt.state / "step-4.ckpt"


def test_any_other_error_ends_it_at_the_next_call(tmp_path):
    class Failing(AtomicCheckpointIO):
        def write(self, checkpoint: Any, target: Path) -> tuple[int, str]:
            raise OSError(5, "Input/output error", str(target))

    attempt = attempt_in(tmp_path)
    made = writer(attempt, Failing())
    save(made, attempt, 1)
    with pytest.raises(OSError, match="Input/output error"):
        made.wait()
    made.wait()  # once
