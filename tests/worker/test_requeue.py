"""When a run that is started again and again is at an end: once it gets no further."""

import pytest

from orchestrator.records.record import Attempt
from orchestrator.worker.requeue import in_vain


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], 0),
        ([None], 0),  # the first start is none again
        ([None, None, None], 2),
        ([10, 20, 30], 0),  # a training of three weeks, a day each
        ([10, 10], 1),
        ([150, 140, 145], 2),  # again and again from the same checkpoint, and never past the first attempt
        ([10, None, None, 11], 0),  # it has got further after all
        ([10, None, None, 11, 5], 1),
    ],
)
def test_starts_again_are_in_vain_that_take_no_new_step(steps, expected):
    starts = [Attempt(number=n, claim=None, progress={} if s is None else {"step": s}) for n, s in enumerate(steps, 1)]
    assert in_vain(starts) == expected
