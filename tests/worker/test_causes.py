"""What an attempt that ends early says of its cause, and which exceptions a run is started again after."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.layout import ExperimentPaths
from orchestrator.local.inline import Inline
from orchestrator.records.record import RunState
from orchestrator.spec import Attempts
from orchestrator.testing.launches import Bench, scripted
from orchestrator.worker import cause
from orchestrator.worker.attempt import signature


def test_an_exception_that_matches_a_pattern_is_tried_again_and_then_is_a_failure(tmp_path):
    bench = Bench(paths=ExperimentPaths(tmp_path / "x"), kind="inline", cluster=Inline(grace_seconds=1.0))
    policy = Attempts(backoff_minutes=0.0, exceptions=("was to fail$",))
    once = scripted({"steps": 2, "ends": ["raise", "done"]}, seed=1, attempts=policy)
    always = scripted({"steps": 2, "ends": ["raise"]}, seed=2, attempts=policy)
    bench.launch([once, always])
    bench.cluster.run()
    records = bench.records()
    first, second = records[once.id].attempts
    assert (first.state, first.cause, second.state) == (RunState.INTERRUPTED, "exception", RunState.DONE)
    assert first.reason.startswith("exception: ArithmeticError at script.py:")
    assert [attempt.state for attempt in records[always.id].attempts] == [RunState.INTERRUPTED] * 2 + [RunState.FAILED]


class OutOfMemoryError(RuntimeError):
    """As torch's."""


def test_a_full_gpu_is_a_failure_with_a_signature_and_advice():
    with pytest.raises(OutOfMemoryError) as caught:
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert signature(caught.value, [str(Path(__file__).parent)]).startswith("GPU out of memory at test_causes.py:")
    assert "data.batch_size" in cause.advice(caught.value)
    assert cause.advice(ValueError("x")) == ""
    assert cause.infrastructure(caught.value, Path("/")) is None


def test_a_data_loader_s_worker_that_was_killed_is_no_failure_of_the_user_s(tmp_path):
    error = RuntimeError("DataLoader worker (pid 41) is killed by signal: Killed. ")
    assert cause.infrastructure(error, tmp_path) == ("killed", "a data loader's worker was killed by SIGKILL (pid 41)")
    assert cause.infrastructure(RuntimeError("DataLoader worker (pid 41) exited unexpectedly"), tmp_path) is None
