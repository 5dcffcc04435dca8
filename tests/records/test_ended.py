"""What can never change any more is kept, and `status` is the same with it and without it, whatever has happened."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from campaigns import amount
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from launches import planned_run

from orchestrator.cluster import JobState, Observation
from orchestrator.launch.plan import make_plan, to_do
from orchestrator.layout import AttemptPaths, ExperimentPaths, LaunchPaths, RunsRoot
from orchestrator.records.attempts import EventWriter, claim_attempt, read_events, write_observed
from orchestrator.records.ended import EndedRuns
from orchestrator.records.experiment import ExperimentReader
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import publish_launch
from orchestrator.records.record import Claim, Record, RunState
from orchestrator.spec import Resources, RunId
from orchestrator.spec.experiment import Run
from orchestrator.system.processes import ProcessId

RUNS = [
    Run(id=RunId(f"{i:012x}"), point={"seed": i}, config={"seed": i}, resources=Resources(), data_digest=None)
    for i in range(3)
]
FINAL = {"done", "failed", "interrupted"}
chosen = st.sampled_from(RUNS)
words = st.lists(st.sampled_from(["progress", "done", "failed", "interrupted", "torn"]), max_size=2)


class Scheduler:
    """A cluster that says the same of a task until it is told otherwise."""

    background = True

    def __init__(self, state: JobState = JobState.ENDED) -> None:
        self.state, self.says = state, {}

    def observe(self, launch: LaunchPaths, tasks) -> Mapping[int, Observation]:
        return {task: Observation(state=self.says.get((launch.number, task), self.state)) for task in tasks}


def publish(paths: ExperimentPaths, runs, records: Mapping[RunId, Record], *, code="c0de", rerun="never") -> None:
    steps = to_do(make_plan(runs, records, code=code, rerun=rerun))
    number = len(paths.launches()) + 1
    planned = [
        planned_run(
            launch=number,
            index=index,
            run=step.run.id,
            action=step.action.value,
            reason=step.reason,
            attempt=step.attempt,
            generation=step.generation,
            history=step.history,
            code=step.code,
            point=step.run.point,
        )
        for index, step in enumerate(steps)
    ]
    if planned:
        launch = publish_launch(paths, number, LaunchHeader(cluster={"kind": "fake"}), [{}], planned)
        assert launch is not None
        launch.complete.touch()


def claim(attempt: AttemptPaths, record: Record) -> bool:
    planned = record.planned
    took = Claim(
        launch=planned.launch,
        index=planned.index,
        code=planned.code,
        generation=planned.generation,
        history=planned.history,
        process=ProcessId(host="node7", pid=attempt.number, started=1.5),
        time=5.0,
        job="7_0",
    )
    return claim_attempt(attempt, took)


class Histories(RuleBasedStateMachine):
    """What launches, workers, schedulers and people do to an experiment; and three readers of it.

    One reads the runs' own files only; one looks again and again; one is a new process each time, with a file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.experiment = RunsRoot(self.folder / "runs").experiment("e")
        self.scheduler = Scheduler()
        self.file = self.folder / "cache" / "e"
        self.writers: dict[Path, EventWriter] = {}
        self.torn: set[Path] = set()
        self.watch = ExperimentReader(self.experiment, EndedRuns(self.folder / "another"))

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def truth(self) -> Mapping[RunId, Record]:
        return self.read(ExperimentReader(self.experiment, EndedRuns(self.folder / "nothing", worth_a_file=10**6)))

    def read(self, reader: ExperimentReader) -> Mapping[RunId, Record]:
        return reader.read({"fake": self.scheduler}).records

    @initialize(state=st.sampled_from(list(JobState)))
    def begin(self, state) -> None:
        self.scheduler.state = state
        publish(self.experiment, RUNS[:2], {})

    @rule(code=st.sampled_from(["c0de", "new"]), rerun=st.sampled_from(["never", "changed", "always"]))
    def launch(self, code, rerun) -> None:
        publish(self.experiment, RUNS, self.truth(), code=code, rerun=rerun)

    @rule(run=chosen, words=words, value=st.floats())
    def work(self, run, words, value) -> None:
        """Start what is planned, or, as a requeued job does, go on after an interruption; then say some words."""
        record = self.truth().get(run.id)
        if record is None:
            return
        last = record.last.number if record.last else 0
        goes_on = record.begun and record.last.state is RunState.INTERRUPTED
        attempt = self.experiment.run(run.id).attempt(last + 1 if goes_on else record.planned.attempt)
        claim(attempt, record)
        for word in words:
            self.say(attempt.events, word, value)

    def say(self, events: Path, word: str, value: float) -> None:
        """Write an event, or die within one; the first last word is the process's last."""
        if events in self.torn or FINAL & {event.kind for event in read_events(events)}:
            return
        if word == "torn":
            self.torn.add(events)
            with events.open("ab") as file:
                file.write(b'{"v": 1, "seq": 99, "kind": "done", "time": 1.0, "metrics": {"a": 1')
        else:
            writer = self.writers.setdefault(events, EventWriter(events))
            writer.write(word, metrics={"a": value}, reason="r", signature="s", progress={"epoch": 1})

    @rule(run=chosen, data=st.data())
    def observe(self, run, data) -> None:
        """Have an observer tell of an attempt that is silent, perhaps long after the next one has begun."""
        record = self.truth().get(run.id)
        silent = [a.number for a in record.attempts if not a.final] if record else []
        if silent:
            kind = data.draw(st.sampled_from(["interrupted", "failed"]))
            paths = self.experiment.run(run.id)
            write_observed(paths, data.draw(st.sampled_from(silent)), kind, reason="seen", signature="s")

    @rule(run=chosen)
    def fail_in_another_rank(self, run) -> None:
        record = self.truth().get(run.id)
        if record and record.last and record.last.claim:
            attempt = self.experiment.run(run.id).attempt(record.last.number)
            EventWriter(attempt.rank_events(1)).write("failed", signature="in rank 1")

    @rule(run=chosen, state=st.sampled_from(list(JobState)))
    def schedule(self, run, state) -> None:
        record = self.truth().get(run.id)
        if record is not None:
            self.scheduler.says[record.task] = state

    @rule(run=chosen)
    def cancel(self, run) -> None:
        record = self.truth().get(run.id)
        if record is not None:
            (self.experiment.launch(record.task[0]).cancelled / run.id).touch()

    @rule(run=chosen)
    def delete_a_run(self, run) -> None:
        self.forget(self.experiment.run(run.id).path)

    @rule()
    def begin_anew(self) -> None:
        """Delete the experiment and launch it again: the ids are the same, and perhaps the inodes."""
        self.forget(self.experiment.path)
        publish(self.experiment, RUNS, {})

    def forget(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.writers = {path: writer for path, writer in self.writers.items() if path.exists()}
        self.torn = {path for path in self.torn if path.exists()}

    @rule(seed=st.integers(0, 2**32), how=st.sampled_from(["cut", "flip", "nothing", "noise", "delete"]))
    def damage(self, seed, how) -> None:
        if self.file.exists():
            damage(self.file, how, random.Random(seed))

    @invariant()
    def all_readers_agree(self) -> None:
        told = repr(self.truth())  # repr: NaN is equal to itself, and 1 is not 1.0
        assert repr(self.read(self.watch)) == told
        assert repr(self.read(ExperimentReader(self.experiment, EndedRuns(self.file, worth_a_file=1)))) == told


def damage(file: Path, how: str, chance: random.Random) -> None:
    content = bytearray(file.read_bytes())
    if how == "cut":
        del content[chance.randrange(len(content) + 1) :]
    elif how == "flip" and content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif how == "nothing":
        content.clear()
    elif how == "noise":
        content[:] = chance.randbytes(300)
    file.unlink() if how == "delete" else file.write_bytes(content)


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=amount(20, 400), stateful_step_count=30)


# --- one promise at a time --------------------------------------------------------------------------------


@pytest.fixture
def experiment(tmp_path):
    """Three runs: two are done, one has failed."""
    paths = RunsRoot(tmp_path / "a 'folder'\n").experiment("e")
    publish(paths, RUNS, {})
    for run in RUNS:
        end(paths, run, "failed" if run is RUNS[-1] else "done")
    return paths


def end(paths: ExperimentPaths, run: Run, word: str) -> None:
    attempt = paths.run(run.id).attempt(1)
    assert claim(attempt, read(paths)[run.id])
    EventWriter(attempt.events).write(word, metrics={"acc": 0.5}, signature="KeyError at m.py:3", message="größe")


def go_on(paths: ExperimentPaths, run: Run, number: int, word: str = "") -> None:
    """Have another attempt begin, and perhaps end."""
    attempt = paths.run(run.id).attempt(number)
    assert claim(attempt, read(paths)[run.id])
    if word:
        EventWriter(attempt.events).write(word, reason="preempted")


def read(paths: ExperimentPaths, ended: EndedRuns | None = None, *, state=JobState.ENDED) -> Mapping[RunId, Record]:
    return ExperimentReader(paths, ended).read({"fake": Scheduler(state)}).records


def kept(file: Path) -> EndedRuns:
    return EndedRuns(file, worth_a_file=1)


def unreadable(paths: ExperimentPaths) -> None:
    """Empty the attempts' files: what is known of them now was kept."""
    for events in (paths.runs).glob("*/a*/events.jsonl"):
        events.write_bytes(b"")


def test_what_has_ended_is_read_once(experiment, tmp_path):
    file = tmp_path / "cache" / "e"
    first = read(experiment, kept(file))
    unreadable(experiment)
    assert read(experiment, kept(file)) == first
    assert {record.state for record in first.values()} == {RunState.DONE, RunState.FAILED}
    assert RunState.RUNNING in {attempt.state for r in read(experiment).values() for attempt in r.attempts}


def test_a_watch_reads_what_has_ended_once_and_needs_no_file(experiment, tmp_path):
    reader = ExperimentReader(experiment, EndedRuns(tmp_path / "e"))
    first = reader.read({"fake": Scheduler()}).records
    unreadable(experiment)
    assert reader.read({"fake": Scheduler()}).records == first
    assert not (tmp_path / "e").exists()  # three runs are not worth one


@pytest.mark.parametrize("how", ["cut", "flip", "nothing", "noise", "delete"])
def test_a_damaged_file_is_not_used_and_made_again(experiment, tmp_path, how):
    file = tmp_path / "cache" / "e"
    first = read(experiment, kept(file))
    whole = file.read_bytes()
    damage(file, how, random.Random(1))
    assert read(experiment, kept(file)) == first
    assert file.read_bytes() == whole


def test_what_other_code_has_written_is_not_used(experiment, tmp_path):
    file = tmp_path / "cache" / "e"
    first = read(experiment, kept(file))
    seal, body = file.read_bytes().split(b"\n", 1)
    by_other_code = b"%08x" % (int(seal[:8], 16) ^ 1)
    file.write_bytes(by_other_code + seal[8:] + b"\n" + body.replace(b'"done"', b'"lost"'))
    assert read(experiment, kept(file)) == first


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(experiment, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    assert read(experiment, kept(tmp_path / "cache" / "e")) == read(experiment)


def test_the_file_is_for_its_user_alone(experiment, tmp_path):
    read(experiment, kept(tmp_path / "cache" / "e"))
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_of_two_who_write_at_once_the_last_one_wins_and_both_read_right(experiment, tmp_path):
    file = tmp_path / "cache" / "e"
    early, late = ExperimentReader(experiment, kept(file)), ExperimentReader(experiment, kept(file))
    first = late.read({"fake": Scheduler()}).records
    more = Run(id=RunId("f" * 12), point={}, config={}, resources=Resources(), data_digest=None)
    publish(experiment, [more], first)
    end(experiment, more, "done")
    told = early.read({"fake": Scheduler()}).records
    assert more.id in told
    assert late.read({"fake": Scheduler()}).records == told == read(experiment, kept(file))
    assert [path.name for path in file.parent.iterdir()] == ["e"]


def test_a_run_that_is_launched_again_is_read_anew(experiment, tmp_path):
    file, run = tmp_path / "cache" / "e", RUNS[0]
    publish(experiment, [run], read(experiment, kept(file)), rerun="always")
    go_on(experiment, run, 2, "failed")
    record = read(experiment, kept(file))[run.id]
    assert (record.state, [attempt.state for attempt in record.attempts]) == (RunState.FAILED, ["done", "failed"])


def test_a_job_that_is_started_again_by_its_scheduler_is_seen(tmp_path):
    """No launch says so: an interruption is the end of an attempt, and not of its run."""
    paths, file, run = RunsRoot(tmp_path / "runs").experiment("e"), tmp_path / "cache" / "e", RUNS[0]
    publish(paths, [run], {})
    for number, word in enumerate(["interrupted", "interrupted", "done"], start=1):
        go_on(paths, run, number, word)
        record = read(paths, kept(file), state=JobState.RUNNING)[run.id]
        assert [attempt.number for attempt in record.attempts] == list(range(1, number + 1))
        assert record.state is (RunState.DONE if word == "done" else RunState.RUNNING)


def test_what_is_told_late_of_an_earlier_attempt_is_heard(tmp_path):
    """Its process was killed, and its supervisor too; the next one tells, when the run is long done elsewhere."""
    paths, file, run = RunsRoot(tmp_path / "runs").experiment("e"), tmp_path / "cache" / "e", RUNS[0]
    publish(paths, [run], {})
    go_on(paths, run, 1)
    publish(paths, [run], read(paths))
    go_on(paths, run, 2, "done")
    assert read(paths, kept(file))[run.id].attempts[0].state is RunState.RUNNING
    write_observed(paths.run(run.id), 1, "interrupted", reason="killed")
    assert read(paths, kept(file))[run.id].attempts[0].reason == "killed"


def test_an_earlier_attempt_that_only_seemed_dead_is_heard(tmp_path):
    """An observer took it for dead, and the run was done elsewhere; then its node comes back, and it ends, too."""
    paths, file, run = RunsRoot(tmp_path / "runs").experiment("e"), tmp_path / "cache" / "e", RUNS[0]
    publish(paths, [run], {})
    go_on(paths, run, 1)
    write_observed(paths.run(run.id), 1, "interrupted", reason="its node does not answer")
    publish(paths, [run], read(paths))
    go_on(paths, run, 2, "done")
    assert read(paths, kept(file))[run.id].attempts[0].state is RunState.INTERRUPTED
    EventWriter(paths.run(run.id).attempt(1).events).write("done")
    assert read(paths, kept(file))[run.id].attempts[0].state is RunState.DONE


def test_an_experiment_that_is_launched_anew_is_not_the_old_one(experiment, tmp_path):
    """Its runs have the same ids, and a file system may give their folders the same inodes."""
    file = tmp_path / "cache" / "e"
    read(experiment, kept(file))
    shutil.rmtree(experiment.path / "launches")
    for attempt in experiment.runs.glob("*/a001"):
        shutil.rmtree(attempt)
    publish(experiment, RUNS, {})
    assert {record.state for record in read(experiment, kept(file)).values()} == {RunState.INTERRUPTED}


def test_a_run_restored_from_an_older_backup_is_read_anew(experiment, tmp_path):
    """The launches are the same, and the last attempt is one that had not ended then."""
    file, run = tmp_path / "cache" / "e", experiment.run(RUNS[0].id)
    read(experiment, kept(file))
    shutil.copytree(run.path, tmp_path / "backup")
    run.path.rename(tmp_path / "aside")
    (tmp_path / "backup" / "a001" / "events.jsonl").unlink()
    (tmp_path / "backup").rename(run.path)
    assert read(experiment, kept(file))[RUNS[0].id].state is RunState.INTERRUPTED


def test_many_ended_runs_are_kept_in_the_users_cache(tmp_path):
    paths = RunsRoot(tmp_path / "runs").experiment("many")
    runs = [
        Run(id=RunId(f"{i:012x}"), point={}, config={}, resources=Resources(), data_digest=None) for i in range(200)
    ]
    publish(paths, runs, {})
    records = read(paths)
    for run in runs:
        attempt = paths.run(run.id).attempt(1)
        claim(attempt, records[run.id])
        EventWriter(attempt.events).write("done")
    first = read(paths)
    (file,) = (Path(os.environ["XDG_CACHE_HOME"]) / "orchestrator" / "records").glob("many-*")
    assert len(json.loads(file.read_bytes().split(b"\n", 1)[1])) == len(runs)
    unreadable(paths)
    assert read(paths) == first
