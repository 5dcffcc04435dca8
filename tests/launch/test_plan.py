"""A plan never runs a run twice, never guesses, and says why it does what it does."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.launch.launch import difference
from orchestrator.launch.plan import Action, make_plan, to_do
from orchestrator.records.planned import PlannedRun
from orchestrator.records.record import Attempt, Claim, Record, RunState
from orchestrator.spec import Resources, RunId
from orchestrator.spec.experiment import Run
from orchestrator.system.processes import ProcessId

RUN = Run(id=RunId("0123456789ab"), point={"seed": 1}, config={}, resources=Resources(), data_digest=None)
STOPPED = [RunState.INTERRUPTED, RunState.CANCELLED]


def attempt(number, *, state=RunState.RUNNING, code="old", history=1, generation=1, claimed=True):
    claim = Claim(
        launch=1,
        index=0,
        code=code,
        generation=generation,
        history=history,
        time=1.0,
        process=ProcessId(host="node7", pid=42, started=1.0),
    )
    return Attempt(number=number, claim=claim if claimed else None, state=state)


def record(state, attempts=(), *, at=1, history=1, generation=1, code="old", reason="why"):
    planned = PlannedRun(
        run=RUN.id,
        launch=3,
        index=0,
        action="submit",
        attempt=at,
        generation=generation,
        history=history,
        code=code,
        point=RUN.point,
        resources=Resources(),
    )
    return Record(planned=planned, state=state, reason=reason, attempts=tuple(attempts))


def step_for(known, *, code="new", rerun="never"):
    (step,) = make_plan([RUN], {RUN.id: known} if known else {}, code=code, rerun=rerun)
    assert step.run is RUN
    return step


def told(step):
    return step.action, step.attempt, step.history, step.generation, step.code


def test_a_new_run_is_submitted():
    step = step_for(None)
    assert told(step) == (Action.SUBMIT, 1, 1, 1, "new")
    assert step.reason == "new"


ONE = (attempt(1),)
TWO = (attempt(1), attempt(2))


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (record(RunState.RUNNING, ONE), (Action.SKIP, 1, 1, 1, "old")),
        (record(RunState.QUEUED), (Action.SKIP, 0, 1, 1, "old")),
        (record(RunState.QUEUED, ONE, at=2), (Action.SKIP, 1, 1, 1, "old")),
        (record(RunState.UNKNOWN, ONE), (Action.SKIP, 1, 1, 1, "old")),
        (record(RunState.UNKNOWN), (Action.SKIP, 0, 1, 1, "old")),
        (record(RunState.DONE, ONE), (Action.SKIP, 1, 1, 1, "old")),
        (record(RunState.FAILED, ONE), (Action.RETRY, 2, 2, 1, "new")),
        (record(RunState.FAILED, TWO, at=2), (Action.RETRY, 3, 3, 1, "new")),
        (record(RunState.INTERRUPTED, ONE), (Action.RESUME, 2, 1, 1, "old")),
        (record(RunState.INTERRUPTED, TWO), (Action.RESUME, 3, 1, 1, "old")),
        (record(RunState.INTERRUPTED), (Action.SUBMIT, 1, 1, 1, "new")),
        (record(RunState.CANCELLED, ONE), (Action.RESUME, 2, 1, 1, "old")),
        (record(RunState.CANCELLED), (Action.SUBMIT, 1, 1, 1, "new")),
        (record(RunState.WAITING), (Action.SKIP, 0, 1, 1, "old")),
        (record(RunState.WAITING, ONE, at=2), (Action.SKIP, 1, 1, 1, "old")),
    ],
)
def test_every_state_has_one_step(known, expected):
    assert told(step_for(known)) == expected


def test_the_table_above_knows_every_state():
    states = {case[0].state for case in test_every_state_has_one_step.pytestmark[0].args[1]}
    assert states == set(RunState)


@pytest.mark.parametrize(
    ("rerun", "code", "expected"),
    [
        ("never", "old", (Action.SKIP, 1, 1, 1, "old")),
        ("never", "new", (Action.SKIP, 1, 1, 1, "old")),
        ("changed", "old", (Action.SKIP, 1, 1, 1, "old")),
        ("changed", "new", (Action.SUBMIT, 2, 2, 2, "new")),
        ("always", "old", (Action.SUBMIT, 2, 2, 2, "old")),
        ("always", "new", (Action.SUBMIT, 2, 2, 2, "new")),
    ],
)
def test_a_done_run_runs_again_only_when_asked(rerun, code, expected):
    assert told(step_for(record(RunState.DONE, ONE), rerun=rerun, code=code)) == expected


@pytest.mark.parametrize("rerun", ["never", "changed", "always"])
@pytest.mark.parametrize("state", [state for state in RunState if state.active])
def test_nothing_makes_an_active_run_start_again(state, rerun):
    assert step_for(record(state, ONE), rerun=rerun).action is Action.SKIP


def test_done_under_other_code_is_kept_and_says_so():
    assert step_for(record(RunState.DONE, ONE), code="new").reason == "done, under other code old"
    assert step_for(record(RunState.DONE, ONE), code="old").reason == "done"


def test_an_unknown_run_says_what_is_not_known():
    step = step_for(record(RunState.UNKNOWN, ONE, reason="squeue does not answer"))
    assert step.reason == "its state in launch 0003 is unknown: squeue does not answer"


def test_a_run_that_waits_for_room_says_who_submits_it():
    step = step_for(record(RunState.WAITING, reason="submit limit: the next orch command submits it"))
    assert step.reason == "waiting in launch 0003: submit limit: the next orch command submits it"


@pytest.mark.parametrize("state", STOPPED)
def test_a_retry_that_never_started_keeps_its_attempt_number(state):
    failed = attempt(1, state=RunState.FAILED)
    step = step_for(record(state, [failed], at=2, history=2, code="mid"))
    assert told(step) == (Action.SUBMIT, 2, 2, 1, "new")


@pytest.mark.parametrize("state", STOPPED)
def test_a_second_generation_that_never_started_stays_the_second(state):
    step = step_for(record(state, [attempt(1, state=RunState.DONE)], at=2, history=2, generation=2))
    assert told(step) == (Action.SUBMIT, 2, 2, 2, "new")


def test_a_resumed_run_keeps_its_own_code_and_history():
    attempts = [
        attempt(1, state=RunState.FAILED, code="first"),
        attempt(2, history=2, generation=3, code="second"),
        attempt(3, history=2, generation=3, code="second"),
    ]
    known = record(RunState.INTERRUPTED, attempts, at=3, history=2, generation=3, code="second")
    assert told(step_for(known, code="today")) == (Action.RESUME, 4, 2, 3, "second")


def test_an_attempt_that_died_before_its_claim_does_not_lose_the_checkpoints_before_it():
    attempts = [attempt(1), attempt(2, claimed=False, state=RunState.INTERRUPTED)]
    known = record(RunState.INTERRUPTED, attempts, at=2)
    assert told(step_for(known)) == (Action.RESUME, 3, 1, 1, "old")


def test_a_first_attempt_that_died_before_its_claim_starts_anew():
    attempts = [attempt(1, state=RunState.FAILED), attempt(2, claimed=False)]
    known = record(RunState.INTERRUPTED, attempts, at=2, history=2)
    assert told(step_for(known)) == (Action.SUBMIT, 3, 3, 1, "new")


def test_the_steps_are_in_the_order_of_the_runs_and_only_acting_ones_are_to_do():
    runs = [Run(id=RunId(f"{i:012x}"), point={}, config={}, resources=Resources(), data_digest=None) for i in range(4)]
    known = {runs[2].id: record(RunState.DONE, ONE), runs[0].id: record(RunState.RUNNING, ONE)}
    steps = make_plan(runs, known, code="new")
    assert [step.run for step in steps] == runs
    assert [step.run for step in to_do(steps)] == [runs[1], runs[3]]


@st.composite
def records(draw):
    """Any record that attempts, plans and clusters can leave behind, also odd ones."""
    numbers = draw(st.lists(st.integers(1, 6), unique=True, max_size=4).map(sorted))
    attempts = [
        attempt(
            n,
            state=draw(st.sampled_from([RunState.RUNNING, RunState.DONE, RunState.FAILED, RunState.INTERRUPTED])),
            history=draw(st.integers(1, n)),
            claimed=draw(st.booleans()),
        )
        for n in numbers
    ]
    at = draw(st.integers(1, 8))
    state = draw(st.sampled_from(list(RunState)))
    return record(state, attempts, at=at, history=draw(st.integers(1, at)), generation=draw(st.integers(1, 3)))


@given(records(), st.sampled_from(["never", "changed", "always"]), st.sampled_from(["old", "new"]))
def test_no_attempt_is_planned_twice_and_no_active_run_is_acted_on(known, rerun, code):
    step = step_for(known, rerun=rerun, code=code)
    if step.action is Action.SKIP:
        assert known.state.active or known.state is RunState.DONE
        return
    assert not known.state.active
    assert step.attempt > max((a.number for a in known.attempts), default=0)
    assert step.history <= step.attempt
    assert (step.history < step.attempt) == (step.action is Action.RESUME)
    assert step.code in {code, "old"}
    assert step.reason


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (1, True), (0.0, -0.0), ("1", 1), (None, "null"), ([1], [1.0]), ([], None), (1e-3, 2e-3)],
)
def test_leaves_of_a_config_differ_where_their_json_does(one, other):
    assert difference({"a": one, "b": 2}, {"a": other, "b": 2}) == [(["a"], other)]
    assert difference({"a": one}, {"a": copy.deepcopy(one)}) == []


def test_configs_of_other_keys_have_no_difference_but_another_base():
    assert difference({"a": {"b": 1}}, {"a": {"c": 1}}) is None
    assert difference({"a": {"b": 1}}, {"a": 1}) is None
