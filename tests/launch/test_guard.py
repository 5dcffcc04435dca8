"""Care for the queue on one machine: canary, brake, hold and release, the word at the end; what is refused."""

from __future__ import annotations

import pytest
from cluster_contract import Gate, states, wait_for_end
from processes import tidy, wait_for  # noqa: F401 - one is a fixture

from orchestrator import api
from orchestrator.cluster import Change
from orchestrator.config import schema
from orchestrator.errors import ConfigError, RequestError
from orchestrator.launch import canary, notification
from orchestrator.layout import ExperimentPaths, RunsRoot
from orchestrator.local.workstation import Workstation
from orchestrator.project import Project
from orchestrator.records.record import RunState
from orchestrator.testing.launches import Bench, scripted

pytestmark = pytest.mark.usefixtures("tidy")
NAME = "x"


@pytest.fixture
def bench(tmp_path):
    folder = tmp_path / "a run's folder" / NAME
    return Bench(paths=ExperimentPaths(folder), kind="workstation", cluster=Workstation(cpus=3))


@pytest.fixture
def project(bench):
    return Project.around(RunsRoot(bench.paths.path.parent))


@pytest.fixture
def gate(tmp_path):
    gate = Gate(tmp_path / "open")
    yield gate
    gate.open()


def test_the_others_begin_once_the_canary_is_done(bench, gate):
    runs = [scripted(gate.script(), seed=seed) for seed in range(4)]
    bench.launch(runs, canary=1)
    wait_for(bench.played, "the canary to begin")
    told = "the canary comes first: 0 of 1 runs are done"
    assert {bench.records()[run.id].reason for run in runs[1:]} == {told}
    assert states(bench, runs) == [RunState.RUNNING, *[RunState.QUEUED] * 3]
    gate.open()
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 4
    assert bench.played()[0].run == runs[0].id


def test_a_canary_of_all_runs_is_none(bench):
    runs = [scripted(seed=seed) for seed in range(2)]
    launched = bench.launch(runs, canary=2)
    assert canary.safeguards(launched.paths).canary == 0
    wait_for_end(bench)


def test_nothing_else_begins_where_the_canary_fails(bench):
    runs = [scripted({"ends": ["exit", "done"]}), *(scripted(seed=seed) for seed in (1, 2))]
    bench.launch(runs, canary=1)  # it exits without a word of its own: the supervisor notes that
    wait_for_end(bench)
    records = bench.records()
    assert [records[run.id].state for run in runs] == [RunState.FAILED, RunState.CANCELLED, RunState.CANCELLED]
    assert records[runs[1].id].reason == f"stopped: run {runs[0].id[:8]} of the canary failed with exit status 3"
    bench.launch(runs, canary=1)
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 3


def test_a_canary_that_was_interrupted_and_goes_on_lets_the_others_begin(bench):
    runs = [scripted({"ends": ["kill", "done"]}), scripted(seed=1)]
    bench.launch(runs, canary=1)
    wait_for(lambda: states(bench, runs) == [RunState.INTERRUPTED, RunState.QUEUED], "the canary to be killed")
    bench.launch(runs)
    wait_for_end(bench)
    assert states(bench, runs) == [RunState.DONE] * 2


def test_the_brake_counts_equal_failures_only_and_leaves_what_runs(bench, gate, tmp_path):
    trouble = Gate(tmp_path / "trouble")
    goes_on = scripted(gate.script())
    fail = [scripted(trouble.script(ends=[end]), seed=seed) for seed, end in enumerate(("exit", "raise", "raise"), 1)]
    behind = [scripted(seed=seed, cpus_per_node=3) for seed in (10, 11)]
    bench.launch([goes_on, *fail, *behind], brake=2)
    wait_for(lambda: len(bench.played()) == 3, "three to begin")
    trouble.open()
    wait_for(lambda: states(bench, behind) == [RunState.CANCELLED] * 2, "the brake")
    assert bench.records()[behind[0].id].reason.startswith(
        "stopped by the failure limit: 2 runs failed with ArithmeticError"
    )
    assert states(bench, [goes_on]) == [RunState.RUNNING]
    gate.open()
    wait_for_end(bench)
    assert states(bench, [goes_on]) == [RunState.DONE]


def test_held_runs_begin_once_they_are_released_and_others_go_ahead(bench, project, gate):
    first = scripted(gate.script(), cpus_per_node=3)
    behind = [scripted(seed=seed, cpus_per_node=3) for seed in (1, 2)]
    bench.launch([first, *behind])
    wait_for(bench.played, "the first to begin")
    assert [one.id for one in api.hold(project, NAME, bench.records().values())] == [run.id for run in behind]
    api.release(project, NAME, [bench.records()[behind[1].id]])
    gate.open()
    wait_for(lambda: states(bench, [first, behind[1]]) == [RunState.DONE] * 2, "the released one to overtake")
    assert bench.records()[behind[0].id].reason == "held: `orch release` lets it go"
    assert behind[0].id not in {played.run for played in bench.played()}
    api.release(project, NAME, bench.records().values())
    wait_for_end(bench)
    assert states(bench, behind) == [RunState.DONE] * 2


def test_only_slurm_has_limits_to_change(bench, project, gate):
    runs = [scripted(gate.script(), seed=seed, cpus_per_node=3) for seed in range(2)]
    bench.launch(runs)
    wait_for(bench.played, "the first to begin")
    with pytest.raises(RequestError, match="cluster=workstation cannot change what is queued"):
        api.change(project, NAME, bench.records().values(), Change(hours=1.0))


def test_a_person_is_told_once_of_each_event_also_of_runs_that_were_killed(bench, tmp_path):
    told = tmp_path / "told"
    runs = [scripted({"ends": [end]}, seed=seed) for seed, end in enumerate(("raise", "raise", "kill", "done"))]
    bench.launch(runs, notify=("tee", "-a", str(told)))
    wait_for_end(bench)
    wait_for(lambda: told.exists() and "has ended" in told.read_text(), "the end to be told")
    assert told.read_text().count("launch 0001: run ") == 1
    assert told.read_text().count("has ended: ") == 1


def test_a_command_that_cannot_be_run_changes_nothing(bench):
    run = scripted({"ends": ["raise"]})
    launched = bench.launch([run], notify=("/no/such program",))
    wait_for_end(bench)
    assert states(bench, [run]) == [RunState.FAILED]
    wait_for(launched.paths.notified(notification.Event.ENDED).exists, "both events to be taken note of")


def test_launches_of_before_have_no_guard(bench):
    launched = bench.launch([scripted()])
    header = launched.paths.header
    text = header.read_text()
    assert '"launch"' in text
    header.write_text(text.replace('"launch"', '"another"'))
    assert canary.safeguards(launched.paths).admits(0)
    wait_for_end(bench)


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ({"canary": -1}, "launch.canary is -1"),
        ({"brake": 0}, "launch.brake is 0"),
        ({"brake": True}, "launch.brake is True"),
        ({"notify": "mail me"}, "launch.notify is 'mail me'"),
        ({"notify": ["mail", 3]}, "launch.notify is"),
        ({"canery": 1}, "launch.canery is unknown .did you mean .canary"),
    ],
)
def test_what_is_wrong_is_refused(value, wrong):
    with pytest.raises(ConfigError, match=wrong):
        schema.launch(value)


@pytest.mark.parametrize("value", ["paper", ["two words"], [""], ["-x"], [3]])
def test_a_tag_is_one_word(value):
    with pytest.raises(ConfigError, match="tags are"):
        schema.tags(value)
