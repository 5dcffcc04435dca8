"""Runs that died without a word, put right by whoever looks next: what is written, once, and when nothing is."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import Counter

import psutil
import pytest
from launches import planned_run
from processes import of_this_test, wait_for

from orchestrator import api, cli
from orchestrator.cli import status
from orchestrator.cluster import JobState, Observation
from orchestrator.layout import RunsRoot
from orchestrator.project import Project
from orchestrator.records.attempts import EventWriter, claim_attempt, mark_state, read_events, read_marks
from orchestrator.records.experiment import read_experiment
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import publish_launch
from orchestrator.records.orphans import record_orphans
from orchestrator.records.record import Claim, RunState
from orchestrator.system.files import make_private
from orchestrator.system.processes import ProcessId
from orchestrator.tracking import sidecar, stores
from orchestrator.worker.context import ProcessContext
from orchestrator.worker.monitor.usage import Usage

DEAD, OTHER = "0123456789ab", "ba9876543210"
KILLED = Observation(state=JobState.ENDED, reason="out of memory: killed by Slurm", ended=50.0, unattended=True)
GONE = Observation(state=JobState.ENDED, reason="Slurm no longer knows its job", unattended=True, forgotten=True)


class Scheduler:
    """Says the same of every task."""

    background = True

    def __init__(self, word):
        self.word = word

    def observe(self, launch, tasks):
        return dict.fromkeys(tasks, self.word)


@pytest.fixture
def project(tmp_path):
    return Project(folder=tmp_path, runs=RunsRoot(tmp_path / "it's runs"))


@pytest.fixture
def experiment(project):
    """An experiment whose launch asked for two runs, and of which nothing has begun."""
    experiment = project.runs.experiment("x")
    planned = [planned_run(index=i, run=run, point={"seed": i}) for i, run in enumerate((DEAD, OTHER))]
    publish_launch(experiment, 1, LaunchHeader(cluster={"kind": "fake"}), [{"seed": 0}], planned).complete.touch()
    return experiment


def begin(experiment, run=DEAD, number=1, *events):
    """Claim an attempt, as a job of a scheduler does, and write its first events."""
    paths = experiment.run(run).attempt(number)
    claim = Claim(
        launch=1, index=0, code="c0de", generation=1, history=1, process=ProcessId.current(), time=5.0, job="7_0"
    )
    assert claim_attempt(paths, claim)
    mark_state(experiment, run, number, "running")
    for kind, data in (("started", {}), *events):
        EventWriter(paths.events).write(kind, **data)


def look(experiment, word):
    state = read_experiment(experiment, {"fake": Scheduler(word)})
    return [record.id for record in record_orphans(state)], state.records[DEAD]


def files(experiment):
    return sorted(path for path in experiment.path.rglob("*"))


def test_the_end_of_a_dead_run_is_written_down_once_and_outlives_the_schedulers_memory(experiment):
    begin(experiment)
    assert look(experiment, KILLED)[0] == [DEAD]
    written = files(experiment)
    assert look(experiment, KILLED)[0] == []
    news, record = look(experiment, GONE)
    assert (news, record.state, record.reason) == ([], RunState.INTERRUPTED, KILLED.reason)
    assert record.ended == 50.0  # when it ended, not when somebody looked
    assert files(experiment) == written
    assert read_marks(experiment) == {DEAD: (1, "interrupted")}


def test_what_a_job_that_failed_by_itself_printed_is_kept(experiment):
    begin(experiment)
    look(experiment, Observation(state=JobState.ENDED, status=3, output="a\nno room\n", unattended=True))
    _, record = look(experiment, GONE)
    assert (record.state, record.failure.signature, record.failure.message) == (
        RunState.FAILED,
        "exit status 3",
        "no room",
    )
    assert read_marks(experiment) == {DEAD: (1, "failed"), OTHER: (1, "failed")}


@pytest.mark.parametrize(
    "word",
    [
        Observation(state=JobState.RUNNING),
        Observation(state=JobState.PENDING),
        Observation(state=JobState.UNKNOWN),
        Observation(state=JobState.ENDED, reason="its supervisor has yet to say why"),
    ],
)
def test_nothing_is_written_of_a_run_that_may_live_or_that_somebody_watches(experiment, word):
    begin(experiment)
    before = files(experiment)
    assert look(experiment, word)[0] == []
    assert files(experiment) == before


def test_nothing_is_written_of_runs_that_never_began_or_that_said_how_they_ended(experiment):
    begin(experiment, OTHER, 1, ("done", {}))
    mark_state(experiment, OTHER, 1, "done")
    before = files(experiment)
    assert look(experiment, KILLED)[0] == []
    assert files(experiment) == before


def test_a_run_that_was_taken_for_dead_goes_on_as_if_nothing_had_been_said(experiment):
    begin(experiment)
    look(experiment, KILLED)
    assert look(experiment, Observation(state=JobState.RUNNING))[1].state is RunState.RUNNING
    EventWriter(experiment.run(DEAD).attempt(1).events).write("done")
    mark_state(experiment, DEAD, 1, "done")
    assert look(experiment, KILLED)[1].state is RunState.DONE
    assert read_marks(experiment)[DEAD] == (1, "done")


def test_an_attempt_that_its_successor_replaced_has_ended(experiment):
    begin(experiment)
    begin(experiment, DEAD, 2)
    news, _ = look(experiment, Observation(state=JobState.RUNNING))
    assert news == [DEAD]
    news, record = look(experiment, Observation(state=JobState.RUNNING))
    assert news == []
    assert [attempt.state for attempt in record.attempts] == [RunState.INTERRUPTED, RunState.RUNNING]
    assert record.attempts[0].ended < time.time()


def test_where_nothing_can_be_written_one_looks_all_the_same(experiment):
    begin(experiment)
    experiment.run(DEAD).observed.write_text("no folder")
    news, record = look(experiment, KILLED)
    assert (news, record.reason) == ([], KILLED.reason)


def test_of_an_attempts_marks_the_strongest_counts(experiment):
    for state in ("failed", "running", "interrupted"):
        mark_state(experiment, DEAD, 1, state)
    for state in ("cancelled", "interrupted"):
        mark_state(experiment, OTHER, 2, state)
    assert read_marks(experiment) == {DEAD: (1, "failed"), OTHER: (2, "cancelled")}


# --- the overview, and the tracking store -----------------------------------------------------------------


def publish(project, tracking):
    """Publish an inline launch of one run, by a process that is dead by now; the run's is, too."""
    experiment = project.runs.experiment("x")
    child = psutil.Popen(["true"])
    gone = ProcessId.of(child.pid)
    child.wait()
    header = LaunchHeader(
        experiment="x",
        cluster={"kind": "inline"},
        tracking={"kind": tracking},
        process=gone,
        code=({"tree": "c0de", "dirty": False},),
    )
    publish_launch(experiment, 1, header, [{"seed": 0}], [planned_run(run=DEAD, point={"seed": 0})]).complete.touch()
    claim = Claim(launch=1, index=0, code="c0de", generation=1, history=1, process=gone, time=5.0)
    assert claim_attempt(experiment.run(DEAD).attempt(1), claim)
    mark_state(experiment, DEAD, 1, "running")
    return experiment


def test_the_overview_counts_a_run_whose_process_is_gone_as_interrupted(project):
    experiment = publish(project, "none")
    assert api.count_states(project, experiment) == {"interrupted": 1}
    assert Counter(state for _, state in read_marks(experiment).values()) == {"interrupted": 1}
    assert not experiment.unsynced.exists()  # nobody tracks it


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
def test_who_looks_has_the_tracking_store_told_without_waiting_for_it(project, tidy):
    experiment = publish(project, "embedded")
    assert api.refresh(project, "x").records[DEAD].state is RunState.INTERRUPTED
    assert experiment.unsynced.exists()
    wait_for(lambda: not of_this_test() and not experiment.unsynced.exists(), "the sync in the background")
    assert statuses(project) == ["KILLED"]
    api.refresh(project, "x")
    assert of_this_test() == []  # no news: nothing to tell


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
def test_a_sync_that_failed_is_tried_again_by_a_later_look(project, tidy):
    experiment = publish(project, "embedded")
    project.runs.mlflow.write_text("no folder")
    api.refresh(project, "x")
    wait_for(lambda: not of_this_test() and experiment.unsynced.exists(), "the sync in the background")
    api.refresh(project, "x")
    assert of_this_test() == []  # not at once
    project.runs.mlflow.unlink()
    long_ago = time.time() - 3600
    os.utime(experiment.unsynced, (long_ago, long_ago))
    api.refresh(project, "x")
    wait_for(lambda: not of_this_test() and not experiment.unsynced.exists(), "the sync in the background")
    assert statuses(project) == ["KILLED"]


def test_the_sidecar_syncs_though_runs_start_all_the_time():
    named, stop = queue.SimpleQueue(), threading.Event()

    def start_runs():
        while not stop.wait(0.05):
            named.put("x")

    runs = threading.Thread(target=start_runs)
    runs.start()
    try:
        assert sidecar._collect(named, {"x"})  # it would never return
    finally:
        stop.set()
        runs.join()


def test_a_folder_that_may_not_be_entered_is_told_in_a_line(project, monkeypatch, capsys):
    def refuse(arguments):
        raise PermissionError(13, "Permission denied", "/theirs/runs")

    monkeypatch.setattr(status, "handle", refuse)
    assert cli.main(["status"]) == 1
    told = capsys.readouterr().err
    assert "error: /theirs/runs: Permission denied" in told
    assert "Traceback" not in told


def statuses(project):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project.runs.mlflow / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("x").experiment_id])
    return [run.info.status for run in runs if run.data.tags.get("orch.run") == DEAD]


# --- what an attempt takes --------------------------------------------------------------------------------


def test_the_memory_of_an_attempt_counts_its_children_and_is_written_while_it_runs(tmp_path):
    path = tmp_path / "events.jsonl"
    events = EventWriter(path)
    usage = Usage.of(ProcessContext())
    with usage.followed(events):
        before = usage.sample()
        grown = max(2**27, before // 2)  # it is written once it has grown by a fifth
        hog = ["python3", "-c", f"x = b'\\xff' * {grown}; print('ready', flush=True); input()"]
        child = psutil.Popen(hog, stdin=-1, stdout=-1)
        assert child.stdout.readline()
        wait_for(lambda: usage.sample() >= before + grown, "the child to be counted")
        least = (before + grown) / 1.2  # what grows by less than a fifth after that is not written
        wait_for(lambda: seen(path) >= least, "it to be written down")
        child.communicate(b"\n")
    assert usage.to_json()["memory_bytes"] >= before + grown  # a peak stays


def seen(path):
    events = list(read_events(path))
    return max((event.data["usage"]["memory_bytes"] for event in events if event.kind == "usage"), default=0)


def test_two_threads_may_write_events(tmp_path):
    events = EventWriter(tmp_path / "events.jsonl")
    threads = [threading.Thread(target=lambda: [events.write("x") for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event.sequence for event in read_events(tmp_path / "events.jsonl")] == list(range(800))


@pytest.mark.parametrize("looks", [3, None], ids=["they leave", "they stay"])
def test_a_store_is_told_again_until_what_was_cancelled_has_left_its_queue(tmp_path, monkeypatch, looks):
    """Slurm takes its time to cancel: until then MLflow is told SCHEDULED. Too long, and who looks next goes on."""
    project = Project.around(RunsRoot(tmp_path))
    paths = project.runs.experiment("x")
    make_private(paths.path)
    paths.unsynced.touch()
    synced = []
    monkeypatch.setattr(sidecar, "_PERIOD_SECONDS", 0.01)
    monkeypatch.setattr(sidecar, "_LEAVING_SECONDS", 0.2)
    monkeypatch.setattr(stores, "sync", lambda _, name: synced.append(name))
    monkeypatch.setattr(stores, "open_in_store", lambda *_: looks is None or len(synced) < looks)
    sidecar.catch_up(project, "x")
    assert set(synced) == {"x"}
    assert len(synced) == looks if looks else len(synced) > 1
    assert paths.unsynced.exists() == (looks is None)
