"""When a run is saved: as often as is worth it, and never so often that the training waits for it."""

from __future__ import annotations

import pytest

from orchestrator.spec import CheckpointOptions
from orchestrator.worker.fit.cadence import Cadence


def cadence(waited: float = 0.0, size: int = 0, jitter: float = 0.0, **options: object) -> Cadence:
    made = Cadence(CheckpointOptions(**options), 0.0, jitter)
    made.saved(100.0, 10, waited=waited, size=size)
    return made


@pytest.mark.parametrize(
    ("size", "waited", "seconds"),
    [
        (1_000, 0.0, 60),
        (99_000_000, 0.5, 60),
        (100_000_000, 0.5, 300),
        (10**10, 10.0, 1_000),  # 1 % of the time
    ],
)
def test_it_is_due_by_size_and_by_what_it_costs(size, waited, seconds):
    made = cadence(waited, size)
    assert not made.due(100 + seconds - 1, 11)
    assert made.due(100 + seconds, 11)


@pytest.mark.parametrize(("waited", "seconds"), [(0.0, 0), (0.02, 2), (0.3, 30), (3.0, 300)])
def test_after_an_epoch_it_is_due_as_soon_as_it_costs_little(waited, seconds):
    made = cadence(waited, 1_000)
    assert made.due_after_epoch(100 + seconds, 11)
    assert not seconds or not made.due_after_epoch(100 + seconds - 0.1, 11)


def test_what_the_user_sets_counts():
    assert cadence(waited=10.0, size=10**10, minutes=0.5).due(130, 11)
    assert not cadence(minutes=0.5).due(129, 11)
    assert cadence(steps=3).due(101, 13)
    assert not cadence(steps=3).due(101, 12)


def test_runs_of_one_launch_do_not_save_together():
    assert not cadence(jitter=1.0).due(165, 11)
    assert cadence(jitter=-1.0).due(155, 11)
    assert len({Cadence(CheckpointOptions(), 0.0)._factor for _ in range(5)}) > 1
