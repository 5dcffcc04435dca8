"""A home whose files cannot be locked: the workstation says so at the plan, and starts no supervisor at each look."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from orchestrator.cluster import JobState
from orchestrator.errors import StateError
from orchestrator.layout import ExperimentPaths
from orchestrator.local.workstation import Queue, Workstation
from orchestrator.testing.launches import Bench, scripted


def _fails(number: int):
    def flock(_descriptor: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.fixture(params=["ENOSYS", "ENOLCK", "everyone"])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem without flock, whose server has no lock manager, or that grants every lock."""
    wrong = (lambda *_: None) if request.param == "everyone" else _fails(getattr(errno, request.param))
    monkeypatch.setattr(fcntl, "flock", wrong)


@pytest.mark.usefixtures("no_locks")
def test_without_locks_nothing_is_published(tmp_path: Path):
    bench = Bench(
        paths=ExperimentPaths(tmp_path / "runs" / "x"), kind="workstation", cluster=Workstation(folder=tmp_path / "q")
    )
    with pytest.raises(StateError, match="cannot hold the workstation's queue") as refused:
        bench.launch([scripted()])
    assert "lock" in refused.value.why
    assert "$XDG_STATE_HOME" in refused.value.fix
    assert not (tmp_path / "runs").exists()


def test_a_queue_that_lies_there_already_starts_no_supervisor(tmp_path: Path, monkeypatch):
    bench = Bench(
        paths=ExperimentPaths(tmp_path / "runs" / "x"), kind="workstation", cluster=Workstation(folder=tmp_path / "q")
    )
    started = []
    monkeypatch.setattr("orchestrator.local.workstation.start_detached", lambda *args, **_: started.append(args))
    launched = bench.launch([scripted()])
    assert len(started) == 1
    monkeypatch.setattr(fcntl, "flock", _fails(errno.ENOLCK))
    seen = Workstation(folder=tmp_path / "q").observe(launched.paths, [0])
    assert seen[0].state is JobState.UNKNOWN
    assert "cannot be locked" in seen[0].reason
    assert len(started) == 1


def test_who_has_the_lock_keeps_others_out(tmp_path: Path):
    with Queue(tmp_path / "q").lock() as first, Queue(tmp_path / "q").lock() as second:
        assert (first, second) == (True, False)
