"""A budget is a ratio to something measured in the same run, and a missed one is the exit status."""

from __future__ import annotations

import pytest

from bench.__main__ import exit_status
from bench.measure import Row
from bench.table import lines

AT_MOST = {"peer": "the peer", "at_most": 1.5}
AT_LEAST = {"peer": "the peer", "at_least": 80}


@pytest.mark.parametrize(
    ("row", "budget", "read", "kept"),
    [
        (Row(what="x", measured=[1.2, 9.0, 1.4], peer_measured=[1.0], **AT_MOST), "ours/peer <= 1.5x", "1.4x", True),
        (Row(what="x", measured=[1.6], peer_measured=[1.0], **AT_MOST), "ours/peer <= 1.5x", "1.6x", False),
        (Row(what="x", measured=[16.0], peer_measured=[10.0], **AT_MOST), "ours/peer <= 1.5x", "1.6x", False),
        (Row(what="x", measured=[1.0], peer_measured=[87.0], **AT_LEAST), "peer/ours >= 80x", "87x", True),
        (Row(what="x", measured=[10.0], peer_measured=[190.0], **AT_LEAST), "peer/ours >= 80x", "19x", False),
        (Row(what="x", measured=[0.2], limit=0.1, unit=""), "<= 0.1", "0.2", False),
    ],
)
def test_a_row_says_its_budget_what_was_read_and_whether_that_is_ok(row, budget, read, kept):
    assert row.kept is kept
    header, line = lines([row])
    assert header.split()[-2:] == ["BUDGET", "READ"]
    assert " ".join(line.split()).endswith(f"{budget} {read} {'ok' if kept else 'not ok'}")
    assert exit_status([row]) == (0 if kept else 1)


def test_without_a_budget_nothing_is_missed():
    row = Row(what="x", measured=[9.0], peer="the peer", peer_measured=[1.0])
    assert row.kept is None
    assert lines([row])[1].endswith("0.111x")
    assert exit_status([row]) == 0


def test_a_ratio_needs_something_beside_it():
    with pytest.raises(ValueError, match="no peer was measured"):
        _ = Row(what="x", measured=[1.0], at_most=2.0).kept
