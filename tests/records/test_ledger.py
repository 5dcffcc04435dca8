"""The records on disk: one winner of every race, whole files or none, and nothing concluded from silence."""

import json
import multiprocessing
import os
import stat
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from launches import planned_run

from orchestrator.cluster import Cluster, JobState, Observation
from orchestrator.errors import StateError
from orchestrator.layout import ExperimentPaths, RunsRoot
from orchestrator.records.attempts import (
    EventWriter,
    claim_attempt,
    mark_state,
    read_attempt,
    read_claim,
    read_events,
    read_marks,
    write_observed,
)
from orchestrator.records.experiment import read_experiment
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import SILENT_SECONDS, publish_launch, read_launch, read_run_config
from orchestrator.records.planned import read_plan, read_planned_run
from orchestrator.records.record import Claim, RunState
from orchestrator.system.files import check_private, make_private, replace_text
from orchestrator.system.processes import ProcessId

RACERS = 8
RUN, OTHER = "0123456789ab", "ba9876543210"


@pytest.fixture(params=["plain", "a b'c\"d\né"])
def experiment(request, tmp_path):
    return RunsRoot(tmp_path / request.param).experiment("digits-lr")


def claim(launch=1, index=0, **changes):
    values = {"code": "c0de", "generation": 1, "history": 1, "process": ProcessId.current(), "time": 5.0}
    return Claim(**{"launch": launch, "index": index, **values, **changes})


def fake(**header):
    return LaunchHeader(**{"cluster": {"kind": "fake"}, **header})


def publish(experiment, number=1, planned=None, *, submitted=True, bases=({"seed": 0},), **header):
    paths = publish_launch(experiment, number, fake(**header), bases, planned or [planned_run(launch=number)])
    if submitted:
        paths.complete.touch()
    return paths


class Scheduler:
    """A cluster that only answers: with one word, after doing what happens meanwhile."""

    background = True

    def __init__(self, state, *, reason="", meanwhile=lambda: None):
        self.state, self.reason, self.meanwhile, self.asked = state, reason, meanwhile, []

    def check(self, shapes, folder):
        raise AssertionError(shapes)

    def submit(self, launch):
        raise AssertionError(launch)

    def observe(self, launch, tasks):
        self.asked.append((launch.number, sorted(tasks)))
        self.meanwhile()
        return {task: Observation(state=self.state, reason=self.reason) for task in tasks}

    def cancel(self, launch, tasks):
        raise AssertionError(launch)


def read(experiment, scheduler):
    told: Cluster = scheduler
    return read_experiment(experiment, {"fake": told}).records


# --- launches ---------------------------------------------------------------------------------------------


def race_to_publish(folder, number, racer, barrier):
    barrier.wait()
    planned = [planned_run(run=f"{racer:012x}", index=i) for i in range(20)]
    header = fake(unknown={"racer": racer})
    return publish_launch(ExperimentPaths(Path(folder)), number, header, [{"racer": racer}] * 3, planned) is not None


def race_to_claim(folder, number, racer, barrier):
    attempt = RunsRoot(Path(folder)).experiment("e").run(RUN).attempt(number)
    barrier.wait()
    return claim_attempt(attempt, claim(launch=racer + 1))


def race(task, folder, rounds):
    """Return which racers won each round, in processes of their own that start together."""
    with multiprocessing.get_context("spawn").Manager() as manager:
        barrier = manager.Barrier(RACERS)
        with ProcessPoolExecutor(RACERS, mp_context=multiprocessing.get_context("spawn")) as pool:
            for number in range(1, rounds + 1):
                futures = [pool.submit(task, str(folder), number, racer, barrier) for racer in range(RACERS)]
                yield number, [racer for racer, future in enumerate(futures) if future.result()]


def test_of_many_launchers_one_publishes_a_number_and_what_it_wrote_is_whole(tmp_path):
    experiment = RunsRoot(tmp_path).experiment("race")
    for number, winners in race(race_to_publish, experiment.path, 25):
        (winner,) = winners
        launch = read_launch(experiment.launch(number))
        assert launch.header.unknown == {"racer": winner}
        assert {planned.run for planned in read_plan(launch.paths)} == {f"{winner:012x}"}
        assert [json.loads(launch.paths.base(i).read_text())["racer"] for i in range(3)] == [winner] * 3
    assert [launch.number for launch in experiment.launches()] == list(range(1, 26))
    assert len(list((experiment.path / "launches").iterdir())) == 25  # the losers left nothing


def test_of_many_workers_one_claims_an_attempt(tmp_path):
    for number, winners in race(race_to_claim, tmp_path, 25):
        (winner,) = winners
        attempt = RunsRoot(tmp_path).experiment("e").run(RUN).attempt(number)
        assert read_claim(attempt).launch == winner + 1
        assert [path.name for path in attempt.path.iterdir()] == ["claim.json"]


def test_a_launch_says_who_published_it_and_when(experiment):
    launch = read_launch(publish(experiment, message="why"))
    assert (launch.number, launch.header.message) == (1, "why")
    assert json.loads(launch.paths.header.read_text())["v"] == 1
    assert launch.launcher == ProcessId.current()
    assert launch.header.time > 0
    assert launch.paths.cancelled.is_dir()


def test_the_second_launcher_of_a_number_is_told_so_and_changes_nothing(experiment):
    first = publish(experiment, message="first")
    assert publish_launch(experiment, 1, fake(message="second"), [], []) is None
    assert read_launch(first).header.message == "first"


def test_a_publication_that_fails_is_no_lost_race(experiment):
    """Otherwise a full or forbidden disk would look like somebody else's launch, and be tried again for ever."""
    publish(experiment)
    (experiment.path / "launches" / "0002").symlink_to("nowhere/at all")
    with pytest.raises(StateError, match="cannot publish") as caught:
        publish_launch(experiment, 2, fake(), [], [])
    assert caught.value.fix


def test_a_line_is_read_alone_as_it_is_read_with_all(experiment):
    points = [{"text": "größe \n\r\u2028'\"\\" * i, "x": [i, None, 1e-3]} for i in range(50)]
    planned = [planned_run(index=i, point=point) for i, point in enumerate(points)]
    paths = publish(experiment, planned=planned)
    assert read_plan(paths) == planned
    assert [read_planned_run(paths, i) for i in range(50)] == planned


@pytest.mark.parametrize("index", [50, 10**6, -1])
def test_a_line_that_is_not_there_is_refused(experiment, index):
    paths = publish(experiment, planned=[planned_run(index=i) for i in range(50)])
    with pytest.raises(StateError, match=r"plan\.jsonl is damaged"):
        read_planned_run(paths, index)


def test_a_config_is_its_base_with_the_leaves_of_its_line(experiment):
    bases = [{"model": {"lr": 1, "layers": [1]}, "seed": 0}, {"seed": 9}]
    planned = [
        planned_run(changes=[[["model", "lr"], 0.1], [["model", "layers"], [2, 3]]]),
        planned_run(base=1, index=1, changes=[[["seed"], None]]),
    ]
    paths = publish(experiment, planned=planned, bases=bases)
    assert read_run_config(paths, planned[0]) == {"model": {"lr": 0.1, "layers": [2, 3]}, "seed": 0}
    assert read_run_config(paths, planned[1]) == {"seed": None}
    assert read_run_config(paths, planned_run()) == bases[0]


@pytest.mark.parametrize("damage", [b"", b"\0" * 64, b'{"v": 1, "proc', b"[1]", b"\xff\xfe", None])
def test_a_damaged_header_is_told_with_what_to_do(experiment, damage):
    paths = publish(experiment)
    paths.header.unlink() if damage is None else paths.header.write_bytes(damage)
    with pytest.raises(StateError, match=r"launch\.json is damaged") as caught:
        read_experiment(experiment, {})
    assert "restore it" in caught.value.fix


@pytest.mark.parametrize("damage", [b"\0" * 64, b'{"index": 0, "ru', b"\xff\xfe", None])
def test_a_damaged_plan_is_told_with_what_to_do(experiment, damage):
    paths = publish(experiment)
    paths.plan.unlink() if damage is None else paths.plan.write_bytes(damage)
    for look in (lambda: read_experiment(experiment, {}), lambda: read_planned_run(paths, 0)):
        with pytest.raises(StateError, match=r"plan\.jsonl is damaged") as caught:
            look()
        assert "restore it" in caught.value.fix


@pytest.mark.parametrize("damage", [b"", b"\0" * 17, b"garbage", b"9999999999999999\n", None])
def test_damaged_offsets_are_told_with_what_to_do(experiment, damage):
    paths = publish(experiment)
    paths.offsets.unlink() if damage is None else paths.offsets.write_bytes(damage)
    with pytest.raises(StateError, match="is damaged") as caught:
        read_planned_run(paths, 0)
    assert "restore it" in caught.value.fix


def test_a_launch_of_a_newer_version_is_not_guessed_at(experiment):
    paths = publish(experiment)
    paths.header.write_text(json.dumps({"v": 2}))
    with pytest.raises(StateError, match="has format 2") as caught:
        read_launch(paths)
    assert "version of orch that wrote it" in caught.value.fix


# --- attempts and events ----------------------------------------------------------------------------------


def test_an_attempt_is_claimed_once(experiment):
    attempt = experiment.run(RUN).attempt(1)
    assert read_claim(attempt) is None
    assert claim_attempt(attempt, claim())
    assert not claim_attempt(attempt, claim(launch=2))
    assert read_claim(attempt) == claim()


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"\0\0", b'{"launch": null}', b"\xff"])
def test_a_torn_claim_is_no_claim(experiment, damage):
    attempt = experiment.run(RUN).attempt(1)
    claim_attempt(attempt, claim())
    attempt.claim.write_bytes(damage)
    assert read_claim(attempt) is None
    assert read_attempt(experiment.run(RUN), attempt).state is RunState.RUNNING


def test_events_are_read_back_in_order(experiment):
    attempt = experiment.run(RUN).attempt(1)
    claim_attempt(attempt, claim())
    writer = EventWriter(attempt.events)
    written = [writer.write("progress", metrics={"loss": float(i)}, text="größe\n\u2028") for i in range(5)]
    assert list(read_events(attempt.events)) == written
    assert [event.sequence for event in written] == list(range(5))


@pytest.mark.parametrize(
    "noise",
    [
        b'{"v": 1, "seq": 1, "kind": "do',
        b"\0" * 4096,
        b"\xff\xfe\n",
        b"[]\n",
        b"null\n",
        b"7\n",
        b'"done"\n',
        b"\n\n",
        b'{"v": 1, "seq": 1, "kind": "done", "time": null}\n',
        b'{"v": 1, "seq": 1, "kind": "done", "time": "x"}\n',
        b'{"v": 1, "seq": null, "kind": "done"}\n',
        b"{}\n",
        b"",
    ],
)
def test_torn_nul_and_foreign_lines_are_skipped(experiment, noise):
    attempt = experiment.run(RUN).attempt(1)
    claim_attempt(attempt, claim())
    started = EventWriter(attempt.events).write("started")
    with attempt.events.open("ab") as file:
        file.write(noise)
    assert list(read_events(attempt.events)) == [started]
    assert read_attempt(experiment.run(RUN), attempt).state is RunState.RUNNING


def test_an_event_of_a_newer_version_is_not_passed_over(experiment):
    """A run that is done by it would be started again."""
    attempt = experiment.run(RUN).attempt(1)
    claim_attempt(attempt, claim())
    attempt.events.write_text('{"v": 2, "seq": 1, "kind": "done", "time": 1}\n')
    with pytest.raises(StateError, match="has events of version 2") as caught:
        read_attempt(experiment.run(RUN), attempt)
    assert "version of orch that ran the job" in caught.value.fix


def test_an_observer_is_heard_where_the_attempt_is_silent(experiment):
    run = experiment.run(RUN)
    write_observed(run, 1, "interrupted", reason="killed by SIGKILL")
    write_observed(run, 2, "failed", signature="exit status 3")
    assert read_attempt(run, run.attempt(1)).reason == "killed by SIGKILL"
    assert read_attempt(run, run.attempt(2)).failure.signature == "exit status 3"
    claim_attempt(run.attempt(2), claim())
    EventWriter(run.attempt(2).events).write("done")
    assert read_attempt(run, run.attempt(2)).state is RunState.DONE


def test_an_attempt_that_only_an_observer_saw_is_in_the_record(experiment):
    publish(experiment)
    write_observed(experiment.run(RUN), 1, "failed", signature="exit status 2 before training")
    (experiment.run(RUN).observed / ".nfs000000000001").touch()
    scheduler = Scheduler(JobState.ENDED)
    record = read(experiment, scheduler)[RUN]
    assert (record.state, record.reason) == (RunState.FAILED, "exit status 2 before training")
    assert scheduler.asked == []


# --- records ----------------------------------------------------------------------------------------------


def test_what_an_attempt_wrote_just_before_its_process_ended_counts(experiment):
    """The attempt was read before its last event, and the scheduler asked after it."""
    publish(experiment)
    attempt = experiment.run(RUN).attempt(1)
    claim_attempt(attempt, claim())
    events = EventWriter(attempt.events)
    events.write("started")
    ended = Scheduler(JobState.ENDED, meanwhile=lambda: events.write("done", metrics={"acc": 1.0}))
    record = read(experiment, ended)[RUN]
    assert (record.state, record.metrics) == (RunState.DONE, {"acc": 1.0})


def test_a_whole_attempt_between_the_reading_and_the_answer_counts(experiment):
    publish(experiment)

    def live():
        attempt = experiment.run(RUN).attempt(1)
        claim_attempt(attempt, claim())
        EventWriter(attempt.events).write("failed", signature="KeyError at m.py:3")

    assert read(experiment, Scheduler(JobState.ENDED, meanwhile=live))[RUN].state is RunState.FAILED


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (JobState.PENDING, RunState.QUEUED),
        (JobState.RUNNING, RunState.RUNNING),
        (JobState.UNKNOWN, RunState.UNKNOWN),
        (JobState.ENDED, RunState.INTERRUPTED),
    ],
)
def test_a_run_that_has_not_begun_is_what_the_scheduler_says(experiment, state, expected):
    publish(experiment)
    record = read(experiment, Scheduler(state, reason="said so"))[RUN]
    assert record.state is expected
    assert record.reason in {"said so", "starting"}


def test_nobody_is_asked_about_what_is_done(experiment):
    publish(experiment, planned=[planned_run(), planned_run(run=OTHER, index=1)])
    for index, run in enumerate([RUN, OTHER]):
        claim_attempt(experiment.run(run).attempt(1), claim(index=index))
    EventWriter(experiment.run(RUN).attempt(1).events).write("done")
    scheduler = Scheduler(JobState.RUNNING)
    records = read(experiment, scheduler)
    assert scheduler.asked == [(1, [1])]
    assert [records[run].state for run in (RUN, OTHER)] == [RunState.DONE, RunState.RUNNING]


def test_the_latest_launch_that_names_a_run_counts(experiment):
    publish(experiment, planned=[planned_run(), planned_run(run=OTHER, index=1)])
    claim_attempt(experiment.run(RUN).attempt(1), claim())
    EventWriter(experiment.run(RUN).attempt(1).events).write("failed", signature="x")
    publish(experiment, 2, [planned_run(launch=2, action="retry", attempt=2, history=2, code="new")])
    scheduler = Scheduler(JobState.PENDING)
    records = read(experiment, scheduler)
    assert sorted(scheduler.asked) == [(1, [1]), (2, [0])]
    assert (records[RUN].planned.launch, records[RUN].state, records[RUN].code) == (2, RunState.QUEUED, "new")
    assert records[OTHER].planned.launch == 1


@pytest.mark.parametrize(
    ("state", "expected"), [(JobState.ENDED, RunState.CANCELLED), (JobState.UNKNOWN, RunState.UNKNOWN)]
)
def test_a_cancelled_run_is_cancelled_once_it_has_ended(experiment, state, expected):
    paths = publish(experiment)
    (paths.cancelled / RUN).touch()
    assert read(experiment, Scheduler(state))[RUN].state is expected


def test_a_mark_of_cancellation_in_an_earlier_launch_does_not_count(experiment):
    (publish(experiment).cancelled / RUN).touch()
    publish(experiment, 2)
    assert read(experiment, Scheduler(JobState.ENDED))[RUN].state is RunState.INTERRUPTED


def test_a_launch_that_is_being_submitted_is_queued_and_nobody_is_asked(experiment):
    publish(experiment, submitted=False)
    scheduler = Scheduler(JobState.ENDED)
    record = read(experiment, scheduler)[RUN]
    assert (record.state, scheduler.asked) == (RunState.QUEUED, [])
    assert f"being submitted by process {os.getpid()}" in record.reason


def rewrite_launcher(paths, **changes):
    written = json.loads(paths.header.read_text())
    written["process"] |= changes
    paths.header.write_text(json.dumps(written))


def test_a_launcher_on_another_host_cannot_be_asked_so_its_runs_are_unknown(experiment):
    rewrite_launcher(publish(experiment, submitted=False), host="elsewhere.example")
    assert read(experiment, Scheduler(JobState.ENDED))[RUN].state is RunState.UNKNOWN


def test_a_launcher_on_another_host_that_was_silent_for_minutes_is_dead(experiment):
    paths = publish(experiment, submitted=False)
    rewrite_launcher(paths, host="elsewhere.example")
    long_ago = time.time() - SILENT_SECONDS - 1
    os.utime(paths.path, (long_ago, long_ago))
    assert read(experiment, Scheduler(JobState.WAITING))[RUN].state is RunState.WAITING


def test_a_launcher_that_died_while_submitting_is_looked_behind(experiment):
    rewrite_launcher(publish(experiment, submitted=False), started=1.0, ticks="1")
    assert read(experiment, Scheduler(JobState.ENDED, reason="never came"))[RUN].state is RunState.INTERRUPTED


def test_a_cluster_that_is_not_known_here_makes_runs_unknown_not_gone(experiment):
    publish(experiment, cluster={"kind": "of tomorrow"})
    record = read(experiment, Scheduler(JobState.ENDED))[RUN]
    assert (record.state, record.reason) == (RunState.UNKNOWN, "cluster of tomorrow is not known here")


def test_an_answer_that_leaves_a_task_out_says_nothing_good_about_it(experiment):
    publish(experiment, planned=[planned_run(), planned_run(run=OTHER, index=1)])

    class Forgetful(Scheduler):
        def observe(self, launch, tasks):
            return {index: seen for index, seen in super().observe(launch, tasks).items() if index == 0}

    states = [record.state for record in read(experiment, Forgetful(JobState.RUNNING)).values()]
    assert states == [RunState.RUNNING, RunState.UNKNOWN]


def test_an_experiment_without_launches_has_no_records(experiment):
    assert read(experiment, Scheduler(JobState.ENDED)) == {}


def test_reading_writes_nothing(experiment):
    publish(experiment)
    before = sorted((path, path.stat().st_mtime_ns) for path in experiment.path.rglob("*"))
    read(experiment, Scheduler(JobState.UNKNOWN))
    assert sorted((path, path.stat().st_mtime_ns) for path in experiment.path.rglob("*")) == before


def counts(experiment):
    return Counter(state for _, state in read_marks(experiment).values())


# --- the index and the folders ----------------------------------------------------------------------------


def test_the_index_counts_runs_by_the_state_of_their_last_attempt(experiment):
    assert counts(experiment) == {}
    for run, attempt, state in [
        ("a" * 12, 1, "running"),
        ("a" * 12, 1, "done"),
        ("b" * 12, 1, "running"),
        ("c" * 12, 1, "done"),
        ("c" * 12, 2, "running"),
        ("d" * 12, 1, "failed"),
        ("d" * 12, 2, "running"),
        ("d" * 12, 2, "done"),
        ("e" * 12, 1, "interrupted"),
        ("e" * 12, 1, "done"),
        ("f" * 12, 999, "failed"),
        ("f" * 12, 1000, "running"),
    ]:
        mark_state(experiment, run, attempt, state)
    assert counts(experiment) == {"done": 3, "running": 3}


def test_marking_twice_is_marking_once_and_foreign_files_do_not_count(experiment):
    mark_state(experiment, RUN, 1, "done")
    mark_state(experiment, RUN, 1, "done")
    for name in (".nfs000000000001", ".DS_Store", "README", "x.a001.done", "a.b.c"):
        (experiment.index / name).touch()
    assert counts(experiment) == {"done": 1}


def test_folders_are_private_to_their_user(experiment):
    publish(experiment)
    claim_attempt(experiment.run(RUN).attempt(1), claim())
    mark_state(experiment, RUN, 1, "running")
    folders = [path for path in [experiment.path, *experiment.path.rglob("*")] if path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in folders} == {0o700}


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o775])
def test_a_folder_that_others_may_write_is_refused(tmp_path, mode):
    tmp_path.chmod(mode)
    with pytest.raises(StateError, match="others may write") as caught:
        check_private(tmp_path)
    assert caught.value.fix == f"chmod go-w {tmp_path}"


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o750, 0o711])
def test_a_folder_that_others_may_only_read_is_fine(tmp_path, mode):
    tmp_path.chmod(mode)
    check_private(tmp_path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="cannot make") as caught:
        make_private(tmp_path / "file" / "runs")
    assert "--runs" in caught.value.fix


def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "claim.json"
    replace_text(path, "one")
    replace_text(path, "größe\n")
    assert path.read_text(encoding="utf-8") == "größe\n"
    assert list(tmp_path.iterdir()) == [path]
