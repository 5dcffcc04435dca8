"""Threads that share a list answer in its order, and end with the first error."""

import threading

import pytest

from orchestrator.system.threads import map_in_threads


@pytest.mark.parametrize("threads", [1, 4, 50])
@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_results_come_in_the_order_of_the_items(threads, count):
    assert map_in_threads(lambda item: item * 2, range(count), threads=threads) == [2 * i for i in range(count)]


def test_all_threads_are_at_work_at_once():
    together = threading.Barrier(8, timeout=600)
    assert map_in_threads(lambda _: together.wait() >= 0, range(8), threads=8) == [True] * 8


@pytest.mark.parametrize("error", [IndexError, KeyError])
def test_after_an_error_no_more_are_begun(error):
    begun = []

    def act(item):
        begun.append(item)
        if item == 3:
            raise error("three")

    with pytest.raises(error, match="three"):
        map_in_threads(act, range(1000), threads=1)
    assert begun == [0, 1, 2, 3]
