"""When a sweep ends, and what it took of what it asked for: formulas that can be worked out by hand."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path
from unittest.mock import ANY

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.status import outlook_json
from orchestrator.cli.status_table import outlook
from orchestrator.layout import RunsRoot
from orchestrator.records.experiment import ExperimentState
from orchestrator.records.planned import PlannedRun
from orchestrator.records.record import Attempt, Claim, Record, RunState
from orchestrator.report.forecast import Forecast, forecast, fraction, seconds_left
from orchestrator.report.usage import consumption, most
from orchestrator.spec import Resources, RunId
from orchestrator.system.processes import ProcessId
from orchestrator.system.units import about

NOW = 10_000.0
_NUMBERS = count()


def attempt(number=1, *, began, state=RunState.RUNNING, ended=None, history=1, **more):
    claim = Claim(
        launch=1,
        index=0,
        code="c",
        generation=1,
        history=history,
        time=began,
        process=ProcessId(host="n0", pid=1, started=0.0),
    )
    return Attempt(number=number, claim=claim, state=state, ended=ended, heard=ended or NOW, **more)


def record(state, *attempts, run="a", resources=None):
    planned = PlannedRun(
        run=RunId(run),
        launch=1,
        index=0,
        action="submit",
        attempt=1,
        generation=1,
        history=1,
        code="c",
        point={},
        resources=resources or Resources(),
    )
    return Record(planned=planned, state=state, reason="", attempts=attempts)


def done(seconds, **more):
    return record(RunState.DONE, attempt(began=0.0, state=RunState.DONE, ended=seconds), **more)


def running(since, *, step=None, steps=100, trains=None):
    """Return a run that began so many seconds ago; it has first reported, step 0, `trains` seconds ago."""
    progress = {"step": step, "steps": steps} if step is not None else {}
    first = {"first_progress": {**progress, "step": 0}, "first_progressed": NOW - (since if trains is None else trains)}
    more = {**first, "progressed": NOW} if progress else {}
    return record(RunState.RUNNING, attempt(began=NOW - since, progress=progress, **more), run=f"r{next(_NUMBERS)}")


def waiting(number):
    return [record(RunState.QUEUED, run=f"w{i}") for i in range(number)]


@pytest.mark.parametrize(
    ("records", "seconds"),
    [
        ([running(60, step=25)], 180),  # a quarter in a minute
        ([running(660, trains=60, step=25)], 180),  # what came before training says nothing of its pace
        ([running(60, step=25), running(60, step=50)], 180),  # the last one counts
        ([running(60, step=50), *waiting(1)], 60 + 120),  # the next is as long as this one will have been
        ([running(660, trains=60, step=50), *waiting(1)], 60 + 720),  # ... what came before its training as well
        ([running(60, step=50), *waiting(3)], 60 + 3 * 120),
        ([running(60, step=50), running(60, step=50), *waiting(3)], 60 + 2 * 120),  # two at once
        ([done(100), running(30)], 70),  # nothing reported yet: as long as those that are done
        ([done(100), done(200), running(30)], 120),
        ([done(100), running(500)], 0),  # it takes longer than it should: any moment now
        ([done(100), running(60, step=50), *waiting(2)], 60 + 2 * 100),  # those that are done know better
        ([done(100), running(30), *waiting(4)], 70 + 4 * 100),
        ([done(5), record(RunState.FAILED), running(60, step=50)], 60),
    ],
)
def test_the_end_of_a_sweep(records, seconds):
    assert forecast(records, NOW).seconds == pytest.approx(seconds)


def test_a_requeued_run_has_its_earlier_attempts_behind_it():
    half = attempt(began=0.0, state=RunState.INTERRUPTED, ended=50.0, progress={"step": 50, "steps": 100})
    requeued = record(RunState.QUEUED, half)
    assert forecast([done(100), running(60, step=50), requeued], NOW).seconds == pytest.approx(60 + 50)
    more = {"progress": {"step": 75, "steps": 100}, "first_progress": {"step": 50, "steps": 100}}
    more |= {"first_progressed": NOW - 30, "progressed": NOW}
    resumed = record(RunState.RUNNING, half, attempt(2, began=NOW - 40, **more))
    assert seconds_left(resumed) == pytest.approx(30)  # a quarter in half a minute, and a quarter to go


@pytest.mark.parametrize(
    ("records", "why"),
    [
        (waiting(3), "nothing runs now"),
        ([done(10), *waiting(3)], "nothing runs now"),
        ([record(RunState.WAITING)], "nothing runs now"),
        ([running(60)], "no run has come far enough"),
        ([running(60, step=0)], "no run has come far enough"),
        ([running(60, step=5, steps=None)], "no run has come far enough"),  # a training without an end
        ([running(60, step=50), running(60), *waiting(1)], None),
        ([done(10), running(5), record(RunState.UNKNOWN)], "the state of 1 of 3 runs is unknown"),
    ],
)
def test_what_cannot_be_known_is_said(records, why):
    found = forecast(records, NOW)
    assert (found.seconds is None, found.unknown) == (why is not None, why or "")


@pytest.mark.parametrize("state", [RunState.DONE, RunState.FAILED, RunState.INTERRUPTED, RunState.CANCELLED])
def test_a_sweep_that_has_ended_has_no_forecast(state):
    assert forecast([record(state)], NOW) is None
    assert forecast([], NOW) is None


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        ({}, None),
        ({"epoch": 3, "step": 50}, None),
        ({"step": 5, "steps": 20}, 0.25),
        ({"steps": 20}, 0.0),
        ({"epoch": 1, "epochs": 4, "step": 7}, 0.25),
        ({"epoch": 1, "epochs": 4, "batch": 5, "batches": 10}, 0.375),
        ({"epoch": 0, "epochs": 10, "step": 9, "steps": 10}, 0.9),  # whichever ends it first
        ({"epoch": 5, "epochs": 4}, 1.0),
    ],
)
def test_how_much_of_a_training_is_done(progress, expected):
    assert fraction(progress) == expected


@given(
    st.lists(st.floats(1, 1e6)),
    st.lists(st.tuples(st.floats(0, 1e6), st.none() | st.integers(0, 100)), max_size=20),
    st.integers(0, 50),
)
def test_a_forecast_is_an_answer_whatever_there_is(ended, under_way, queued):
    records = [*map(done, ended), *(running(since, step=step) for since, step in under_way), *waiting(queued)]
    found = forecast(records, NOW)
    assert (found is None) == (not under_way and not queued)
    if found is not None:
        assert (found.seconds is None) == bool(found.unknown)
        assert found == Forecast(seconds=found.seconds, unknown=found.unknown)
        assert found.seconds is None or found.seconds >= 0


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "1 s"),
        (0.4, "1 s"),
        (20, "20 s"),
        (60, "1 min"),
        (719, "12 min"),
        (3600, "1 h"),
        (12_000, "3 h 20 min"),
        (86_400, "1 d"),
        (200_000, "2 d 7 h"),
    ],
)
def test_a_duration_in_words(seconds, told):
    assert about(seconds) == told


def told(*records):
    state = ExperimentState(
        experiment=RunsRoot(Path("runs")).experiment("x"), launches=(), records={each.id: each for each in records}
    )
    return outlook(state, NOW), outlook_json(state, NOW)


def test_the_end_and_what_was_taken_are_two_lines_and_json():
    ended = took(2.1, 720, asked=32, hours=4, gpu_bytes=30 * 2**30)
    lines, document = told(ended, running(60, step=1, steps=201))
    at = time.strftime("%a %H:%M", time.localtime(NOW + 12_000))
    assert lines == [
        f"end: about 3 h 20 min left, done {at}",
        "memory: 2.1 of 32 GB asked at most; GPU memory: 30 GB at most; time: 12 min of 4 h asked at most",
    ]
    assert document["end"] == {"seconds": pytest.approx(12_000), "unknown": "", "at": pytest.approx(NOW + 12_000)}
    assert document["usage"]["memory_gb_asked"] == 32


def test_what_is_not_known_or_over_is_said_in_the_lines_too():
    assert told(*waiting(1)) == (
        ["end: unknown, nothing runs now"],
        {
            "end": {"seconds": None, "unknown": "nothing runs now", "at": None},
            "usage": ANY,
        },
    )
    assert told(record(RunState.CANCELLED))[0] == []
    assert told(record(RunState.CANCELLED))[1]["end"] is None


# --- asked and taken --------------------------------------------------------------------------------------


def took(gb, seconds=60.0, *, asked=None, hours=None, **more):
    usage = {"memory_bytes": gb * 2**30, **more} if gb is not None else {}
    ended = attempt(began=0.0, state=RunState.DONE, ended=seconds, usage=usage)
    return record(RunState.DONE, ended, resources=Resources(mem_gb_per_node=asked, hours=hours))


def test_of_several_runs_the_one_nearest_to_its_limit_counts():
    found = most([took(8, asked=32), took(3, asked=4), took(2, asked=8)], NOW)
    assert (found.memory_gb, found.memory_gb_asked) == (3, 4)
    found = most([took(1, 1800, hours=4), took(1, 3600, hours=10)], NOW)
    assert (found.hours, found.hours_asked) == (0.5, 4)


def test_without_a_limit_the_most_counts_and_what_was_not_measured_does_not():
    found = most([took(8), took(3), took(None), record(RunState.CANCELLED), running(60)], NOW)
    assert (found.memory_gb, found.memory_gb_asked, found.gpu_memory_gb) == (8, None, None)
    assert most([took(1, gpu_bytes=2**31), took(1)], NOW).gpu_memory_gb == 2
    assert most([running(60)], NOW).hours is None


def test_memory_and_time_are_those_of_the_attempt_that_took_most():
    first = attempt(began=0.0, state=RunState.INTERRUPTED, ended=100.0, usage={"memory_bytes": 2**31})
    second = attempt(2, began=5000.0, state=RunState.DONE, ended=5010.0, usage={"memory_bytes": 2**30})
    found = consumption(record(RunState.DONE, first, second), NOW)
    assert (found.memory_gb, found.hours) == (2, 100 / 3600)
    assert record(RunState.DONE, first, second).seconds(NOW) == 110


def test_an_attempt_without_an_end_lasted_until_it_was_last_heard_of():
    first = attempt(began=0.0, history=1)
    ended = Attempt(number=1, claim=first.claim, heard=40.0)
    assert record(RunState.INTERRUPTED, ended).seconds(NOW) == 40
    assert record(RunState.RUNNING, ended).seconds(NOW) == NOW
    assert record(RunState.QUEUED, ended).seconds(NOW) == 40
