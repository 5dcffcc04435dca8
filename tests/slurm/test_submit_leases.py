"""The submit lease: one at a time, the last one says all, and who lost it stops. Needs no Slurm."""

from __future__ import annotations

import threading

import pytest

from orchestrator.layout import RunsRoot
from orchestrator.slurm import leases
from orchestrator.slurm.leases import Job
from orchestrator.system.files import make_private
from orchestrator.system.processes import ProcessId

FIRST, SECOND = Job(id="7", offset=0, indices=(0, 1)), Job(id="8", offset=0, indices=(2,))


@pytest.fixture
def launch(tmp_path):
    launch = RunsRoot(tmp_path / "it's a folder").experiment("x.y").launch(3)
    make_private(launch.path)
    return launch


def test_a_turn_tells_who_took_it_what_is_known_and_how_it_ended(launch):
    assert leases.last(launch) is None
    own = leases.take(launch, after=0, jobs=(), job="")
    own.add(FIRST)
    found = leases.last(launch)
    assert (found.number, found.submitter, found.jobs, found.end) == (1, ProcessId.current(), (FIRST,), None)
    assert launch.runs.launches_waiting() == [launch]
    own.finish(reason="submit limit")
    assert leases.last(launch).end.reason == "submit limit"
    assert launch.runs.launches_waiting() == [launch]
    later = leases.take(launch, after=1, jobs=found.jobs, job="7_1")
    later.add(SECOND)
    later.finish()
    assert (later.tasks, leases.last(launch).jobs, leases.last(launch).holder) == ((2,), (FIRST, SECOND), "job 7_1")
    assert launch.runs.launches_waiting() == []


def test_of_many_who_take_a_turn_one_has_it(launch):
    start, won = threading.Barrier(8), []

    def take():
        start.wait()
        won.append(leases.take(launch, after=0, jobs=(), job=""))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([lease for lease in won if lease]) == 1
    assert [path.name for path in (launch.path / "turns").iterdir()] == ["0001"]


def test_who_was_taken_for_dead_submits_no_more_and_says_no_more(launch):
    slow = leases.take(launch, after=0, jobs=(), job="")
    slow.renew()
    other = leases.take(launch, after=1, jobs=(), job="")
    with pytest.raises(leases.LeaseLostError, match="another process submits this launch"):
        slow.renew()
    slow.add(FIRST)
    slow.finish()
    assert (leases.last(launch).jobs, leases.last(launch).end) == ((), None)
    assert launch.runs.launches_waiting() == [launch]
    other.renew()


def test_who_comes_late_with_a_number_that_was_deleted_is_stopped(launch):
    for number in range(5):
        leases.take(launch, after=number, jobs=(), job="").finish(reason="full")
    assert [lease.number for lease in launch.leases()] == [4, 5]
    late = leases.take(launch, after=1, jobs=(), job="")
    with pytest.raises(leases.LeaseLostError):
        late.renew()
