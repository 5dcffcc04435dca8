"""What a trial is given, from what is known of the others: pure, with Optuna."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from statistics import mean
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState

from orchestrator.errors import ConfigError
from orchestrator.identity import trial_id
from orchestrator.layout import ExperimentPaths
from orchestrator.records.planned import PlannedRun
from orchestrator.records.record import Attempt, Claim, Record, RunState
from orchestrator.search.study import Asked, Known, Study, ask, check, known
from orchestrator.spec import Objective, Resources
from orchestrator.spec.search import Distribution, Search, Template
from orchestrator.system.processes import ProcessId

TPE = {"_target_": "optuna.samplers.TPESampler"}
SPACE = {
    "x": Distribution(kind="uniform", arguments=(-5, 5)),
    "lr": Distribution(kind="loguniform", arguments=(1e-4, 1e-1)),
    "n": Distribution(kind="int", arguments=(1, 9)),
    "width": Distribution(kind="int", arguments=(16, 70, 16)),
    "layers": Distribution(kind="choice", arguments=([8], [8, 8])),
    "act": Distribution(kind="choice", arguments=("relu", None, 3)),
}


def search(sampler=TPE, space=SPACE, *, seed=0, modes=("min",), pruner=None) -> Search:
    template = Template(choices={}, keys=tuple(space), fills=(), config={})
    return Search(
        id="0" * 12,
        space=space,
        sampler=sampler,
        pruner=pruner,
        seed=seed,
        templates=(template,),
        objectives=tuple(Objective(metric=f"m{i}", mode=mode) for i, mode in enumerate(modes)),
    )


def played(wanted: Search, count: int, value, others=()) -> list[Known]:
    """Ask for trials one after another, each ended before the next begins."""
    done = list(others)
    for number in range(len(done), count):
        asked = ask(wanted, done, number)
        values = value(asked.point)
        values = values if isinstance(values, tuple) else (values,)
        done.append(
            Known(
                number=number,
                point=asked.point,
                state=TrialState.COMPLETE,
                values=values,
                attrs=asked.attrs,
                study=asked.study,
            )
        )
    return done


def bowl(point) -> float:
    return (point["x"] - 2) ** 2 + abs(math.log10(point["lr"]) + 2) + (point["act"] is not None)


def test_values_are_of_their_distributions_and_can_be_read():
    for trial in played(search(), 25, bowl):
        point = trial.point
        assert -5 <= point["x"] <= 5
        assert 1e-4 <= point["lr"] <= 1e-1
        assert point["n"] in range(1, 10)
        assert point["width"] in {16, 32, 48, 64}
        assert point["layers"] in ([8], [8, 8])
        assert point["act"] in ("relu", None, 3)
        assert all(len(repr(point[key]).strip("-").replace(".", "").strip("0")) <= 10 for key in ("x", "lr"))
        assert json.loads(json.dumps(point)) == point


def test_one_trial_at_a_time_takes_the_same_course_and_another_seed_another_one():
    one, again, other = (played(search(seed=seed), 15, bowl) for seed in (0, 0, 1))
    assert one == again
    assert one != other
    assert len({trial.point["x"] for trial in one}) == 15  # no sampler begins where the one before it began


def test_a_search_that_goes_on_is_the_same_as_one_that_never_ended():
    half = played(search(), 12, bowl)
    assert played(search(), 20, bowl, half) == played(search(), 20, bowl)


def test_it_gets_better_at_it():
    scores = [bowl(trial.point) for trial in played(search(), 60, bowl)]
    assert mean(scores[40:]) < 0.5 * mean(scores[:20])


def test_trials_that_run_and_gaps_of_trials_that_have_not_begun_do_no_harm():
    done = played(search(), 12, bowl)
    some = [trial for trial in done if trial.number not in {3, 4}]
    running = Known(number=20, point=done[0].point, state=TrialState.RUNNING, reports={1: 3.0})
    failed = Known(number=14, point=done[1].point, state=TrialState.FAIL)
    assert ask(search(), [*some, running, failed], 13).point.keys() == SPACE.keys()
    assert ask(search(), [*some, running, failed], 4).point.keys() == SPACE.keys()


def test_several_trials_at_once_are_not_all_sent_to_the_same_place():
    done = played(search(), 20, bowl)
    at_once = list(done)
    for number in range(20, 28):
        point = ask(search(), at_once, number).point
        at_once.append(Known(number=number, point=point, state=TrialState.RUNNING))
    assert len({trial.point["x"] for trial in at_once[20:]}) == 8


@pytest.mark.parametrize("name", ["RandomSampler", "NSGAIISampler", "TPESampler"])
def test_several_objectives(name):
    wanted = search({"_target_": f"optuna.samplers.{name}"}, modes=("min", "max"))
    done = played(wanted, 15, lambda point: (bowl(point), point["x"]))
    assert len({trial.point["x"] for trial in done}) == 15


def test_any_sampler_of_optuna_nested_ones_too():
    """A grid knows its place by the trial's number, and keeps it with the trial."""
    space = {"n": SPACE["n"], "act": SPACE["act"]}
    grid = {"_target_": "optuna.samplers.GridSampler", "search_space": {"n": [1, 2, 3], "act": ["relu", 3]}}
    done = played(search(grid, space), 6, lambda point: point["n"])
    assert len({json.dumps(trial.point) for trial in done}) == 6
    qmc = played(search({"_target_": "optuna.samplers.QMCSampler"}), 16, bowl)
    assert len({trial.point["x"] for trial in qmc}) == 16
    assert len({trial.point["act"] for trial in qmc}) > 1
    halves = [trial.point["x"] < 0 for trial in qmc[1:]]
    assert 6 <= sum(halves) <= 9  # they are spread evenly
    fixed = {"_target_": "optuna.samplers.PartialFixedSampler", "fixed_params": {"n": 4}, "base_sampler": TPE}
    done = played(search(fixed, space), 6, lambda point: point["n"])
    assert {trial.point["n"] for trial in done} == {4}
    assert len({trial.point["act"] for trial in done}) > 1


def test_a_sampler_that_cannot_be_used_is_refused_before_the_launch():
    with pytest.raises(ConfigError, match="cannot be asked"):
        check(search({"_target_": "optuna.samplers.GridSampler", "search_space": {"x": [1]}}))
    check(search())


TOUCH = {"_target_": "os.system", "command": "touch ran"}


@pytest.mark.parametrize(
    "nodes",
    [
        {"sampler": TOUCH},
        {"pruner": TOUCH},
        {"sampler": {"_target_": "optuna.pruners.NopPruner"}},
        {"sampler": {**TPE, "gamma": {**TOUCH, "_partial_": True}}},
        {"sampler": {**TPE, "gamma": {"_target_": "subprocess.call", "_args_": [["touch", "ran"]], "_partial_": True}}},
        {"sampler": {"_target_": "optuna.samplers.PartialFixedSampler", "fixed_params": {}, "base_sampler": TOUCH}},
        {"sampler": {**TPE, "_args_": [[{"deep": TOUCH}]]}},
        {"sampler": {**TPE, "_recursive_": False, "weights": TOUCH}},
        {"pruner": {"_target_": "optuna.pruners.PatientPruner", "patience": 1, "wrapped_pruner": TOUCH}},
    ],
)
def test_what_is_no_sampler_or_pruner_is_not_called(nodes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="not a class of Optuna's"):
        ask(search(**nodes), (), 0)
    assert not (tmp_path / "ran").exists()


# --- records -> trials --------------------------------------------------------------------------------------


def record(number: int, state: RunState, *, value: float | None = None, trial=None, cancelled: bool = False) -> Record:
    claim = Claim(
        launch=1,
        index=number,
        code="c",
        generation=1,
        history=1,
        time=0.0,
        process=ProcessId(host="h", pid=1, started=0.0),
    )
    given = {"point": {"x": number / 2}, "attrs": {"a": 1}, "reports": []} if trial is None else trial
    best = {"metric": "m0", "value": value} if value is not None else {}
    attempt = Attempt(number=1, claim=claim, state=state, best=best, trial=given)
    planned = PlannedRun(
        run=trial_id("0" * 12, number),
        launch=1,
        index=number,
        action="submit",
        attempt=1,
        generation=1,
        history=1,
        code="c",
        point={"trial": number},
        resources=Resources(),
    )
    return Record(planned=planned, state=RunState.CANCELLED if cancelled else state, reason="", attempts=(attempt,))


def test_what_became_of_runs_is_what_the_study_knows():
    pruned = {"point": {"x": 4.0}, "attrs": {}, "reports": [(1, 0.5), (2, None)], "pruned": 2}
    records = [
        record(0, RunState.DONE, value=0.25),
        record(1, RunState.FAILED),
        record(2, RunState.RUNNING),
        record(3, RunState.INTERRUPTED),
        record(4, RunState.DONE, trial=pruned),
        record(5, RunState.DONE),
        record(6, RunState.INTERRUPTED, cancelled=True),
        record(7, RunState.RUNNING, trial={}),
    ]
    found = known(search(), {each.id: each for each in records})
    assert [trial.number for trial in found] == [0, 1, 2, 3, 4, 5, 6]
    assert [trial.state.name for trial in found] == [
        "COMPLETE",
        "FAIL",
        "RUNNING",
        "RUNNING",
        "PRUNED",
        "FAIL",
        "FAIL",
    ]
    assert found[0].values == (0.25,)
    assert found[0].attrs == {"a": 1}
    assert found[4].reports[1] == 0.5
    assert math.isnan(found[4].reports[2])
    assert ask(search(space={"x": SPACE["x"]}), found, 7).point["x"] <= 5


def test_a_trial_that_goes_on_is_pruned_by_all_that_it_has_reported(tmp_path):
    """But not by what it had reported after the checkpoint from which it goes on."""
    patient = {"_target_": "optuna.pruners.PatientPruner", "wrapped_pruner": None, "patience": 1}
    wanted = search(space={"x": SPACE["x"]}, pruner=patient)
    reports = [(1, 1.0), (2, 2.0), (3, 0.1)]
    mine = record(0, RunState.RUNNING, trial={"point": {"x": 1.0}, "attrs": {}, "reports": reports})

    def after(validation, value):
        study = Study(ExperimentPaths(tmp_path), wanted, 0)
        study._reader = SimpleNamespace(read=lambda _: SimpleNamespace(records={mine.id: mine}, launches=()))
        study.resume(Asked(point={"x": 1.0}, attrs={}))
        return study.report(validation, value)[0]

    assert after(3, 3.0)  # it has got no better since the first
    assert not after(3, 0.5)
    assert not after(2, 2.0)  # the third is yet to come


def test_what_a_pruner_keeps_with_a_trial_is_handed_back_to_be_kept(tmp_path):
    halving = {"_target_": "optuna.pruners.SuccessiveHalvingPruner", "min_resource": 1, "reduction_factor": 2}
    wanted = search(space={"x": SPACE["x"]}, pruner=halving)
    worse = [{"point": {"x": 0.0}, "attrs": {"completed_rung_0": 0.1}, "reports": [(1, 0.1)]} for _ in range(3)]
    others = [record(number, RunState.RUNNING, trial=trial) for number, trial in enumerate(worse, 1)]

    def after_one(records):
        study = Study(ExperimentPaths(tmp_path), wanted, 0)
        study._reader = SimpleNamespace(
            read=lambda _: SimpleNamespace(records={each.id: each for each in records}, launches=())
        )
        study.resume(Asked(point={"x": 1.0}, attrs={}))
        return study.report(1, 0.5)

    assert after_one([]) == (False, {"completed_rung_0": 0.5})
    assert after_one(others) == (True, {"completed_rung_0": 0.5})


def test_a_trial_that_was_cancelled_teaches_nothing_although_its_job_may_go_on_for_all_that_is_known():
    stopped = record(0, RunState.INTERRUPTED)
    [found] = known(search(), {stopped.id: stopped}, cancelled={stopped.id})
    assert found.state is TrialState.FAIL
    done = record(1, RunState.DONE, value=1.0)
    [found] = known(search(), {done.id: done}, cancelled={done.id})
    assert found.state is TrialState.COMPLETE


def test_of_several_objectives_the_last_values_count_which_belong_together():
    wanted = search(modes=("max", "min"))
    attempt = replace(record(0, RunState.DONE, value=0.9).last, metrics={"m0": 0.5, "m1": 3.0})
    done = replace(record(0, RunState.DONE), attempts=(attempt,))
    assert known(wanted, {done.id: done})[0].values == (0.5, 3.0)
    assert known(search(), {done.id: done})[0].values == (0.9,)


def test_reports_later_than_the_checkpoint_that_was_gone_on_from_are_no_history():
    one = {"point": {"x": 1.0}, "attrs": {}, "reports": [(n, float(n)) for n in range(1, 6)]}
    two = {"point": {"x": 1.0}, "attrs": {}, "reports": [(4, 40.0)], "pruned": 4}
    first, last = record(0, RunState.INTERRUPTED, trial=one).last, record(0, RunState.DONE, trial=two).last
    both = replace(record(0, RunState.DONE), attempts=(first, replace(last, number=2)))
    [found] = known(search(), {both.id: both})
    assert found.reports == {1: 1.0, 2: 2.0, 3: 3.0, 4: 40.0}


def test_a_sweep_over_a_key_called_trial_is_none_of_a_searchs(tmp_path):
    other = record(0, RunState.DONE, value=1.0)
    odd = replace(other, planned=replace(other.planned, run="f" * 12, point={"trial": [1, 2]}))
    same = replace(other, planned=replace(other.planned, run="e" * 12, point={"trial": 1.0}))
    assert [each.number for each in known(search(), {each.id: each for each in (odd, same, other)})] == [0]
