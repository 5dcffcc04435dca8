"""The truth about a run: done only by its own word, unknown where nobody answers, ordered without a clock."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.records.planned import PlannedRun
from orchestrator.records.record import (
    Attempt,
    Claim,
    Event,
    JobState,
    Observation,
    RunState,
    counted,
    fold,
    parse_event,
    reconcile,
)
from orchestrator.spec import Resources, RunId
from orchestrator.system.processes import ProcessId

FINAL = (RunState.DONE, RunState.FAILED, RunState.INTERRUPTED)


def event(sequence, kind, time=0.0, **data):
    return Event(sequence=sequence, kind=kind, time=time, data=data)


def claim(**changes):
    values = {
        "launch": 1,
        "index": 0,
        "code": "c0de",
        "generation": 1,
        "history": 1,
        "time": 5.0,
        "process": ProcessId(host="node7", pid=42, started=1.0),
    }
    return Claim(**{**values, **changes})


def planned(**changes):
    values = {
        "run": RunId("0123456789ab"),
        "launch": 1,
        "index": 0,
        "action": "submit",
        "attempt": 1,
        "generation": 1,
        "history": 1,
        "code": "c0de",
        "point": {},
        "resources": Resources(),
    }
    return PlannedRun(**{**values, **changes})


# --- the fold ---------------------------------------------------------------------------------------------


def test_how_far_the_copying_is_is_what_a_run_is_at():
    told = "copying data: 1 GB of 2 GB, 3 of 4 files, 100 MB/s, 10 s left"
    assert fold(1, claim(), [event(0, "started"), event(1, "staging", told=told)]).stage == told


def test_a_whole_life_is_folded():
    attempt = fold(
        1,
        claim(),
        [
            event(0, "started"),
            event(1, "staged", digest="abc", files=3),
            event(2, "training"),
            event(3, "progress", progress={"epoch": 1}, metrics={"loss": 2.0, "acc": 0.5}),
            event(4, "progress", progress={"epoch": 2}, metrics={"loss": 1.0}),
            event(5, "done", time=99.0, best={"metric": "acc", "value": 0.5}, metrics={"test": 3.0}),
        ],
    )
    assert (attempt.state, attempt.ended, attempt.final) == (RunState.DONE, 99.0, True)
    assert attempt.metrics == {"loss": 1.0, "acc": 0.5, "test": 3.0}
    assert (attempt.progress, attempt.data["files"], attempt.best["value"]) == ({"epoch": 2}, 3, 0.5)


def test_the_order_is_the_sequence_whatever_the_clock_and_the_file_say():
    events = [
        event(2, "progress", time=1.0, metrics={"loss": 3.0}),
        event(0, "started", time=50.0),
        event(1, "progress", time=99.0, metrics={"loss": 8.0}),
    ]
    assert all(fold(1, None, order).metrics == {"loss": 3.0} for order in itertools.permutations(events))


@pytest.mark.parametrize("kind", ["started", "staged", "training", "progress", "resumed in 2031"])
def test_only_a_done_event_makes_it_done(kind):
    attempt = fold(1, claim(), [event(0, kind), event(1, kind, exit_status=0, state="done")])
    assert attempt.state is RunState.RUNNING
    assert not attempt.final


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(FINAL, 2)))
def test_the_first_last_word_counts_and_only_a_completion_is_stronger(first, second):
    attempt = fold(1, claim(), [event(0, first.value), event(1, second.value), event(2, "progress")])
    assert attempt.state is (RunState.DONE if RunState.DONE in {first, second} else first)
    assert (attempt.failure is not None) == (attempt.state is RunState.FAILED)


def test_a_failure_keeps_what_the_exception_said():
    attempt = fold(1, None, [event(0, "failed", signature="KeyError at m.py:4", message="'x'", traceback="T")])
    assert (attempt.reason, attempt.failure.message, attempt.failure.traceback) == ("KeyError at m.py:4", "'x'", "T")
    assert fold(1, None, [event(0, "failed")]).failure.signature == "unknown"


@pytest.mark.parametrize("own", FINAL)
@pytest.mark.parametrize("seen", FINAL)
def test_an_observer_only_counts_where_the_attempt_has_no_last_word(own, seen):
    observed = [event(0, seen.value, reason="saw it", signature="saw it")]
    assert fold(1, None, [event(0, own.value)], observed).state is own
    silent = fold(1, None, [event(0, "training")], observed)
    assert (silent.state, silent.stage) == (seen, "" if seen is RunState.DONE else "training")


def test_of_two_observers_the_first_counts():
    observed = [event(0, "interrupted", reason="killed"), event(0, "failed", signature="x")]
    assert fold(1, None, [], observed).reason == "killed"


names = st.text(max_size=5)
payloads = st.fixed_dictionaries(
    {},
    optional={
        "progress": st.dictionaries(names, st.integers(), max_size=2),
        "metrics": st.dictionaries(names, st.floats(allow_nan=False), max_size=2),
        "reason": names, "signature": names, "best": st.dictionaries(names, st.floats(), max_size=2),
    },
)  # fmt: skip
kinds = st.sampled_from(["started", "staged", "training", "progress", "done", "failed", "interrupted", "new"])
histories = st.lists(st.tuples(kinds, st.floats(), payloads), max_size=12).map(
    lambda rows: [Event(sequence=i, kind=k, time=t, data=d) for i, (k, t, d) in enumerate(rows)]
)


@given(histories, histories, st.data())
def test_any_prefix_folds_and_a_last_done_is_done(events, observed, data):
    prefix = events[: data.draw(st.integers(0, len(events)))]
    attempt = fold(3, None, data.draw(st.permutations(prefix)), observed)
    assert attempt.number == 3
    kinds_seen = {e.kind for e in prefix}
    if not kinds_seen & set(FINAL) and not {e.kind for e in observed} & set(FINAL):
        assert attempt.state is RunState.RUNNING
    closed = fold(3, None, [*prefix, event(len(prefix), "done")], observed)
    assert closed.state is RunState.DONE
    assert closed.failure is None


@given(histories)
def test_a_final_state_stays_whatever_follows(events):
    states = [fold(1, None, events[:n]).state for n in range(len(events) + 1)]
    for before, after in itertools.pairwise(states):
        assert before is RunState.RUNNING or after is before or after is RunState.DONE


def test_an_event_survives_its_line():
    written = event(3, "progress", time=1.5, metrics={"loss": 1.0})
    assert parse_event(written.to_json()) == written


@pytest.mark.parametrize(
    "line", [{}, {"v": 2, "seq": 0, "kind": "done"}, {"v": 1, "kind": "done"}, {"v": 1, "seq": "0", "kind": "done"}]
)
def test_a_line_of_another_version_is_no_event(line):
    assert parse_event(line) is None


def test_a_claim_survives_its_file():
    assert Claim.from_json(claim().to_json()) == claim()


# --- the reconciliation -----------------------------------------------------------------------------------

R = RunState
# The attempt that the latest plan asks for has begun; per state of it: what each word of the scheduler makes.
BEGUN = {
    R.RUNNING: {
        None: R.INTERRUPTED, JobState.ENDED: R.INTERRUPTED, JobState.UNKNOWN: R.UNKNOWN,
        JobState.WAITING: R.UNKNOWN, JobState.PENDING: R.QUEUED, JobState.RUNNING: R.RUNNING,
    },
    R.DONE: dict.fromkeys([None, *JobState], R.DONE),
    R.FAILED: dict.fromkeys([None, *JobState], R.FAILED),
    R.INTERRUPTED: {  # its job may yet be started again by the scheduler
        None: R.INTERRUPTED, JobState.ENDED: R.INTERRUPTED, JobState.UNKNOWN: R.UNKNOWN,
        JobState.WAITING: R.UNKNOWN, JobState.PENDING: R.QUEUED, JobState.RUNNING: R.RUNNING,
    },
}  # fmt: skip
# It has not begun: what earlier attempts came to says nothing about it.
NOT_BEGUN = {
    None: R.UNKNOWN,
    JobState.ENDED: R.INTERRUPTED,
    JobState.UNKNOWN: R.UNKNOWN,
    JobState.WAITING: R.WAITING,
    JobState.PENDING: R.QUEUED,
    JobState.RUNNING: R.RUNNING,
}
TABLE = [
    (state, job, begun, cancelled, (BEGUN[state][job] if begun else NOT_BEGUN[job]))
    for state in BEGUN
    for job in (None, *JobState)
    for begun in (True, False)
    for cancelled in (True, False)
]


@pytest.mark.parametrize(("state", "job", "begun", "cancelled", "expected"), TABLE)
def test_every_combination_has_one_answer(state, job, begun, cancelled, expected):
    if cancelled and (expected in {R.INTERRUPTED, R.WAITING} or (expected is R.QUEUED and not begun)):
        expected = R.CANCELLED
    attempt = Attempt(number=1, claim=replace(claim(), job="77_0"), state=state, reason="why")
    seen = Observation(state=job, reason="said so", job="77_0", node="n3") if job else None
    record = reconcile(
        planned(attempt=1 if begun else 2), [attempt], observation=seen, cancelled="cancelled" if cancelled else ""
    )
    assert record.state is expected
    assert record.begun is begun
    assert (record.job, record.failure) == ("77_0" if job else "", None)
    if job is JobState.UNKNOWN and (not begun or state is R.RUNNING):
        assert (record.state, record.reason) == (R.UNKNOWN, "said so")


@pytest.mark.parametrize("job", [None, *JobState])
def test_an_interrupted_run_without_a_scheduler_goes_on_by_a_launch_or_if_its_supervisor_says_so(job):
    attempt = Attempt(number=1, claim=claim(), state=R.INTERRUPTED, reason="why")
    seen = Observation(state=job) if job else None
    expected = R.QUEUED if job is JobState.PENDING else R.INTERRUPTED
    assert reconcile(planned(attempt=1), [attempt], observation=seen, cancelled="").state is expected


def test_an_interrupted_job_that_slurm_ended_says_both_why():
    attempt = Attempt(number=1, claim=replace(claim(), job="77_0"), state=R.INTERRUPTED, reason="stopped by SIGTERM")
    seen = Observation(state=JobState.ENDED, reason="preempted")
    assert reconcile(planned(attempt=1), [attempt], observation=seen, cancelled="").reason == (
        "stopped by SIGTERM (preempted)"
    )


@pytest.mark.parametrize("job", [None, *JobState])
@pytest.mark.parametrize("cancelled", [True, False])
def test_a_run_without_any_attempt(job, cancelled):
    seen = Observation(state=job) if job else None
    expected = NOT_BEGUN[job]
    if cancelled and expected in {R.INTERRUPTED, R.WAITING, R.QUEUED}:
        expected = R.CANCELLED
    record = reconcile(planned(), [], observation=seen, cancelled="cancelled" if cancelled else "")
    assert (record.state, record.last, record.started, record.ended) == (expected, None, None, None)
    assert record.code == "c0de"


def test_unknown_is_active_so_that_nobody_starts_it_twice():
    assert {state for state in RunState if state.active} == {R.RUNNING, R.QUEUED, R.WAITING, R.UNKNOWN}


def test_attempts_are_ordered_by_number_and_the_last_counts():
    attempts = [Attempt(number=10, claim=claim(), state=R.DONE), Attempt(number=9, claim=claim(), state=R.FAILED)]
    record = reconcile(planned(attempt=10), attempts, observation=None, cancelled="")
    assert [attempt.number for attempt in record.attempts] == [9, 10]
    assert record.state is R.DONE


def test_the_metrics_are_those_since_the_last_start_from_scratch():
    attempts = [
        Attempt(number=1, claim=claim(time=1.0), state=R.FAILED, metrics={"loss": 9.0, "old": 1.0}),
        Attempt(number=2, claim=claim(history=2, time=2.0), state=R.INTERRUPTED, metrics={"loss": 5.0, "acc": 0.1}),
        Attempt(number=3, claim=claim(history=2, time=3.0), state=R.DONE, metrics={"loss": 4.0}, ended=8.0),
    ]
    record = reconcile(planned(attempt=3, history=2), attempts, observation=None, cancelled="")
    assert record.metrics == {"loss": 4.0, "acc": 0.1}
    assert (record.started, record.ended) == (2.0, 8.0)


def test_a_retry_that_has_not_begun_will_run_the_planned_code():
    failed = Attempt(number=1, claim=claim(code="old"), state=R.FAILED)
    record = reconcile(planned(attempt=2, history=2, code="new"), [failed], observation=None, cancelled="")
    assert (record.code, record.history) == ("new", (failed,))


# --- a scheduler's job that ended by itself ---------------------------------------------------------------


def ended(status, output=""):
    return Observation(state=JobState.ENDED, reason="failed in Slurm", job="5_0", status=status, output=output)


@pytest.mark.parametrize(
    ("ranks", "state", "status", "expected"),
    [
        (1, "running", 3, RunState.FAILED),
        (1, "running", 137, RunState.INTERRUPTED),  # killed: it goes on from its checkpoint
        (1, "running", 143, RunState.INTERRUPTED),
        (1, "interrupted", 143, RunState.INTERRUPTED),
        (2, "running", 3, RunState.FAILED),
        (1, "running", 255, RunState.FAILED),  # no signal
        (2, "running", 137, RunState.INTERRUPTED),  # one rank was killed, and the others ended with it
        (2, "interrupted", 137, RunState.INTERRUPTED),
        (2, "interrupted", 143, RunState.INTERRUPTED),
        (2, "together", 137, RunState.INTERRUPTED),  # all had stopped before: on some node processes are killed sooner
        (2, "done", 137, RunState.DONE),
        (2, "failed", 3, RunState.FAILED),
    ],
)
def test_a_job_that_ended_by_itself_tells_what_its_run_could_not(ranks, state, status, expected):
    wish = planned(resources=Resources(nodes=ranks))
    words = {"running": [], "together": [event(0, "interrupted", together=True)]}
    events = words.get(state, [event(0, state)])
    record = reconcile(wish, [fold(1, claim(job="5_0"), events)], observation=ended(status), cancelled="")
    assert record.state is expected


@pytest.mark.parametrize(("together", "expected"), [(False, RunState.FAILED), (True, RunState.INTERRUPTED)])
def test_a_rank_that_fails_after_all_have_stopped_together_is_no_failure(together, expected):
    own = [event(0, "interrupted", reason="preempted", together=together)]
    assert fold(1, claim(), own, ranks=[event(0, "failed", signature="RuntimeError")]).state is expected


def test_a_job_that_failed_before_its_claim_is_an_attempt_with_what_it_printed():
    record = reconcile(planned(), [], observation=ended(7, "loading\nno such module\n"), cancelled="")
    assert (record.state, record.reason) == (RunState.FAILED, "exit status 7 before training")
    assert (record.failure.message, record.failure.traceback) == ("no such module", "loading\nno such module\n")
    assert [attempt.number for attempt in record.attempts] == [planned().attempt]


@pytest.mark.parametrize(
    ("output", "quoted"),
    [
        ("loading\nno such module\n", "no such module"),
        ("no room\nsubmitit INFO (2026-11-30 10:00:00,000) - Starting with JobEnvironment(job_id=5_0)\n", "no room"),
        ("submitit INFO (2026-11-30) - Loading pickle: x\nsrun: error: n0: task 0: Exited with exit code 3\n", ""),
        ("srun: error: n[0-1]: tasks 0-3: Terminated\nsrun: Terminating StepId=5.0\n", ""),
        (
            "/lib/x.so: undefined symbol: y\n2026-11-30 10:00:00,000 - root - WARNING - retrying\n",
            "/lib/x.so: undefined symbol: y",
        ),
        ("Traceback\n  File x\nValueError: no lr\nINFO:mlflow:bye\nclosing\n", "ValueError: no lr"),
        ("my.mod.CustomError: a\nKeyError: 'b'\n", "KeyError: 'b'"),
        ("slurmstepd: error: *** STEP 5.0 ON n0 CANCELLED AT 10:00 ***\norch: slurmctld does not answer\n", ""),
        ("an error: INFORMATION lost\n", "an error: INFORMATION lost"),
        ("", ""),
        ("\n \n", ""),
    ],
)
def test_a_failures_summary_quotes_its_cause_and_no_routine_message(output, quoted):
    record = reconcile(planned(), [fold(1, claim(job="5_0"), [])], observation=ended(3, output), cancelled="")
    assert (record.failure.message, record.failure.traceback) == (quoted, output)


def test_a_requeued_run_says_what_it_waits_for_and_what_stopped_it():
    first = fold(1, claim(job="5_0"), [event(0, "interrupted", reason="preempted, stopped by SIGTERM")])
    waits = Observation(state=JobState.PENDING, reason="BeginTime", job="5_0")
    record = reconcile(planned(), [first], observation=waits, cancelled="")
    assert (record.state, record.reason) == (RunState.QUEUED, "requeued (BeginTime): preempted, stopped by SIGTERM")


def test_a_run_is_asked_for_where_its_attempt_was_claimed():
    by_another = fold(1, claim(launch=1, index=4), [])
    record = reconcile(planned(launch=2, index=0), [by_another], observation=None, cancelled="")
    assert record.task == (1, 4)
    assert reconcile(planned(launch=2, index=0), [], observation=None, cancelled="").task == (2, 0)


@pytest.mark.parametrize("usage", [None, 7, "much", []])
def test_what_is_no_usage_or_no_time_of_an_end_says_nothing(usage):
    attempt = fold(1, None, [event(0, "interrupted", 9.0, usage=usage, ended="late")])
    assert (attempt.usage, attempt.ended) == ({}, 9.0)


def test_the_latest_usage_counts_and_the_first_progress_is_kept():
    told = [
        ("started", {"usage": {"memory_bytes": 1}}),
        ("progress", {"progress": {"step": 1}}),
        ("usage", {"usage": {"memory_bytes": 2}}),
        ("progress", {"progress": {"step": 2}}),
    ]
    attempt = fold(1, None, [event(i, kind, float(i), **data) for i, (kind, data) in enumerate(told)])
    assert attempt.usage == {"memory_bytes": 2}
    assert (attempt.first_progress, attempt.first_progressed) == ({"step": 1}, 1.0)
    assert (attempt.progress, attempt.progressed, attempt.heard) == ({"step": 2}, 3.0, 3.0)


def test_a_run_that_its_scheduler_has_suspended_runs_and_says_so():
    suspended = Observation(state=JobState.RUNNING, reason="suspended")
    record = reconcile(
        planned(), [Attempt(number=1, claim=claim(), stage="training")], observation=suspended, cancelled=""
    )
    assert (record.state, record.reason) == (RunState.RUNNING, "suspended")


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        (Observation(state=JobState.ENDED, reason="deadline"), "stopped by SIGTERM (deadline)"),
        (Observation(state=JobState.ENDED, reason="stopped by SIGTERM"), "stopped by SIGTERM"),
        (Observation(state=JobState.ENDED, reason="who?", forgotten=True), "stopped by SIGTERM"),
    ],
)
def test_slurms_word_is_added_where_it_is_news(word, reason):
    stopped = Attempt(number=1, claim=replace(claim(), job="7_0"), state=R.INTERRUPTED, reason="stopped by SIGTERM")
    assert reconcile(planned(), [stopped], observation=word, cancelled="").reason == reason


# --- the history of a run is a chain --------------------------------------------------------------------------


def begun(number, origin=None, **more):
    """Return an attempt that has said where it began: in attempt and bytes, from scratch (0), or not at all (None)."""
    data = {} if origin is None else {"from": {"attempt": origin[0], "metrics_bytes": origin[1]} if origin else None}
    return fold(number, None, [event(0, "training", **data), event(1, "progress", **more)])


@pytest.mark.parametrize(
    ("origins", "expected"),
    [
        ([(), (1, 100)], {1: 100}),
        ([(), (1, 100), (2, 50)], {1: 100, 2: 50}),
        ([(), (1, 100), (1, 100)], {1: 100, 2: 0}),  # the second has saved nothing
        ([(), (1, 100), (1, 60)], {1: 60, 2: 0}),  # its checkpoints are damaged, and the last of the first one
        ([(), (1, 100), ()], {1: 0, 2: 0}),
        ([(), (1, 100), None], {1: 100}),  # it has not begun
        ([(), (1, None)], {}),  # from a checkpoint of an older version
        ([None, None], {}),
    ],
)
def test_of_an_attempt_counts_what_it_logged_before_the_checkpoint_that_was_resumed_from(origins, expected):
    assert counted([begun(number, origin) for number, origin in enumerate(origins, 1)]) == expected


def test_what_an_event_says_of_exactness_and_of_what_is_not_saved():
    events = [event(0, "exact", inexact=[]), event(1, "unsaved", reason="step 5 was not saved: no space")]
    found = fold(1, None, events)
    assert (found.exact, found.unsaved) == ("yes", "step 5 was not saved: no space")
    found = fold(1, None, [*events, event(2, "unsaved", reason=""), event(3, "exact", inexact=["a", "b"])])
    assert (found.exact, found.unsaved) == ("a; b", "")
    assert parse_event({"v": 1, "seq": 1, "kind": "exact", "inexact": 3}) is None
    assert parse_event({"v": 1, "seq": 1, "kind": "training", "from": {"attempt": "x"}}) is None
