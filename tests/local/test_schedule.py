"""Which waiting run starts next: by examples, and by whole queues with a clock that is only counted."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.local.schedule import Choice, Device, Taken, Terms, Wanted, choose, describe_wait, shortage
from orchestrator.spec import Resources

GPUS = tuple(Device(id=str(i), address=f"0000:0{i}:00.0") for i in range(4))
TERMS = Terms(cpus=16, mem_gb=64, devices=GPUS, grace_seconds=0)


def wanted(gpus: int = 0, *, cpus: int = 1, gb: float | None = None, hours: float | None = None, **terms) -> Wanted:
    resources = Resources(gpus_per_node=gpus, cpus_per_node=cpus, mem_gb_per_node=gb, hours=hours)
    return Wanted(resources=resources, terms=replace(TERMS, **terms))


def on(one: Wanted, *numbers: int, until: float = math.inf) -> Taken:
    return Taken(wanted=one, devices=tuple(GPUS[number] for number in numbers), until=until)


def chosen(waiting, taken=(), closed=(), now=0.0) -> tuple[int, str] | None:
    choice = choose(waiting, taken, closed={GPUS[number].address for number in closed}, now=now)
    return choice and (choice.place, ",".join(device.id for device in choice.devices))


@pytest.mark.parametrize(
    ("waiting", "taken", "closed", "starts"),
    [
        ([], [], (), None),
        ([wanted(2)], [], (), (0, "0,1")),
        ([wanted(2)], [on(wanted(1), 1)], (), (0, "0,2")),
        ([wanted(2)], [on(wanted(1), 1)], (0, 2), None),
        ([wanted(4), wanted(1)], [on(wanted(1), 0)], (), None),  # it would have to be waited for, too
        ([wanted(4), wanted(0)], [on(wanted(1), 0)], (), (1, "")),  # takes nothing that the head waits for
        ([wanted(4, cpus=16), wanted(0)], [on(wanted(1, cpus=1), 0)], (), None),  # but here a CPU
        ([wanted(4, cpus=14), wanted(0), wanted(0)], [on(wanted(1), 0)], (), (1, "")),
        ([wanted(4, cpus=14), wanted(0)], [on(wanted(1), 0), on(wanted(0))], (), None),
        ([wanted(0, gb=40), wanted(1)], [on(wanted(0, gb=30))], (), (1, "0")),
        ([wanted(0, gb=40), wanted(1, gb=1)], [on(wanted(0, gb=30))], (), None),
        ([wanted(4), wanted(1, hours=1)], [on(wanted(1), 0, until=7200)], (), (1, "1")),  # has ended before
        ([wanted(4), wanted(1, hours=3)], [on(wanted(1), 0, until=7200)], (), None),
        ([wanted(4), wanted(1, hours=1)], [on(wanted(1), 0, until=7200), on(wanted(1), 1)], (), None),
        ([wanted(4), wanted(1, hours=1)], [on(wanted(1), 0, until=7200)], (3,), None),  # nobody knows until when
        ([wanted(0, cpus=99)], [], (), (0, "")),  # alone, any starts
        ([wanted(0, cpus=99)], [on(wanted(0))], (), None),
        ([wanted(3, devices=())], [], (), (0, "")),  # none are known: none are counted
    ],
)
def test_what_starts(waiting, taken, closed, starts):
    assert chosen(waiting, taken, closed) == starts


def test_runs_of_one_gpu_share_it_and_fill_a_shared_one_first():
    half = wanted(1, runs_per_gpu=2)
    assert chosen([half], [on(half, 2)]) == (0, "2")
    assert chosen([half], [on(half, 2), on(half, 2)]) == (0, "0")
    assert chosen([wanted(1)], [on(half, 0), on(half, 1), on(half, 2)]) == (0, "3")  # another launch's: all of one
    assert chosen([wanted(2, runs_per_gpu=2)], [on(half, 0), on(half, 1), on(half, 2)]) is None


def test_only_the_named_devices_are_used():
    assert chosen([wanted(1, devices=GPUS[2:])]) == (0, "2")
    assert chosen([wanted(1, devices=GPUS[2:])], [on(wanted(2), 2, 3)]) is None


def test_what_a_run_waits_for_in_words():
    taken = [on(wanted(2, cpus=10, gb=60), 0, 1)]
    closed = {GPUS[3].address: "used by pid 7 of alice"}
    assert describe_wait(wanted(2), taken, closed) == "waits for 2 GPUs (1 free; GPU 3 is used by pid 7 of alice)"
    assert describe_wait(wanted(0, cpus=8, gb=5), taken, {}) == "waits for 8 CPUs (6 free) and 5 GB (4 free)"
    assert describe_wait(wanted(1), [], {}) == "is about to start"


# --- whole queues --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    wanted: Wanted
    arrives: float
    takes: float  # at most its limit


@st.composite
def jobs(draw) -> Job:
    limit = draw(st.sampled_from([1, 3, 3, 5, 5, None]))
    one = wanted(
        draw(st.sampled_from([1, 4, 2, 0])),
        cpus=draw(st.sampled_from([1, 1, 8])),
        gb=draw(st.sampled_from([None, None, 50])),
        hours=limit,
        runs_per_gpu=draw(st.sampled_from([1, 1, 2])),
    )
    takes = (limit or 5) * 3600 * draw(st.sampled_from([1.0, 0.5]))
    return Job(wanted=one, arrives=draw(st.floats(0, 1)) * 3600, takes=takes)


def simulate(todo: list[Job]) -> list[float]:
    """Work off a queue and return when each job starts; holds on the way what must always hold."""
    coming = sorted(range(len(todo)), key=lambda i: (todo[i].arrives, i))
    waiting: list[int] = []
    running: dict[int, tuple[Taken, float]] = {}
    starts, sure, now = [math.inf] * len(todo), {}, 0.0
    while coming or waiting or running:
        now = min([todo[coming[0]].arrives] if coming else [], default=math.inf)
        now = min([now, *(end for _, end in running.values())])
        running = {i: (taken, end) for i, (taken, end) in running.items() if end > now}
        while coming and todo[coming[0]].arrives <= now:
            waiting.append(coming.pop(0))
        while waiting and (choice := _choose(todo, waiting, running, now)):
            number = waiting.pop(choice.place)
            job = todo[number]
            taken = Taken(wanted=job.wanted, devices=choice.devices, until=now + job.wanted.seconds)
            running[number], starts[number] = (taken, now + job.takes), now
            _check_room([one for one, _ in running.values()])
        if waiting:
            sure.setdefault(waiting[0], _surely(todo[waiting[0]].wanted, [one for one, _ in running.values()]))
            assert running, "what waits is waited for in vain"
    for number, latest in sure.items():
        assert starts[number] <= latest + 1e-6, "the head of the queue was delayed by one that went ahead"
    return starts


def _choose(todo, waiting, running, now) -> Choice | None:
    return choose([todo[i].wanted for i in waiting], [one for one, _ in running.values()], closed=(), now=now)


def _check_room(running: list[Taken]) -> None:
    load: dict[str, Fraction] = defaultdict(Fraction)
    for taken in running:
        assert len(set(taken.devices)) == taken.wanted.resources.gpus_per_node
        for device in taken.devices:
            load[device.id] += taken.wanted.share
    assert all(value <= 1 for value in load.values())
    if len(running) > 1:
        assert sum(taken.wanted.resources.cpus_per_node for taken in running) <= TERMS.cpus
        assert sum(taken.wanted.resources.mem_gb_per_node or 0 for taken in running) <= TERMS.mem_gb


def _surely(head: Wanted, running: list[Taken]) -> float:
    """When the last of those that run has ended by its limit: a bound that is much easier to see than the code's."""
    return max(taken.until for taken in running)


@given(st.lists(jobs(), min_size=1, max_size=25))
def test_in_a_queue_of_all_widths_none_starves_and_nothing_is_given_twice(todo):
    starts = simulate(todo)
    assert all(math.isfinite(start) for start in starts)


def test_a_wide_run_starts_as_soon_as_those_before_it_have_ended_however_many_narrow_ones_come():
    before = [Job(wanted=wanted(1), arrives=0, takes=100 * number) for number in (1, 2, 3, 4)]
    wide = Job(wanted=wanted(4), arrives=1, takes=100)
    narrow = [Job(wanted=wanted(1), arrives=2 + i, takes=100) for i in range(200)]
    starts = simulate([*before, wide, *narrow])
    assert starts[4] == 400
    assert min(starts[5:]) == 500


def test_room_that_the_head_cannot_use_yet_is_used_by_short_runs():
    long = Job(wanted=wanted(2, hours=1), arrives=0, takes=3600)
    wide, short = Job(wanted=wanted(4), arrives=1, takes=60), Job(wanted=wanted(2, hours=0.5), arrives=2, takes=1800)
    starts = simulate([long, wide, short])
    assert starts == [0, 3600, 2]
    assert shortage(wide.wanted, [], ()) == frozenset()
