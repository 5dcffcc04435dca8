"""Whose runs they are: what was made here is acted on; of another user, or copied, they are only read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from launches import planned_run
from states import own_state
from two_users import User, tree, two_users

from orchestrator import api, cli
from orchestrator.errors import StateError
from orchestrator.layout import ExperimentPaths, RunPaths, RunsRoot
from orchestrator.local.schedule import Terms
from orchestrator.local.workstation import Queue, supervise
from orchestrator.project import Project
from orchestrator.records.checkpoints import best_of
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import publish_launch, read_launch
from orchestrator.records.ownership import LAUNCH_ID, why_read_only
from orchestrator.spec import LaunchOptions
from orchestrator.tracking import stores
from orchestrator.tracking.uploader import Source

RUN = "0123456789ab"
MAKE = """
import sys, time
from pathlib import Path
from launches import planned_run
from orchestrator.layout import RunsRoot
from orchestrator.records.attempts import EventWriter, claim_attempt, mark_state
from orchestrator.records.checkpoints import best_of
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import publish_launch
from orchestrator.records.record import Claim
from orchestrator.spec import LaunchOptions
from orchestrator.system.processes import ProcessId

runs, notify = RunsRoot(Path(sys.argv[1])), LaunchOptions(notify=("notify-me",))
dead = ProcessId(host=ProcessId.current().host, pid=2**22 + 5, started=0.0)
tracking = {"kind": "server", "uri": sys.argv[2], "experiment": "x", "end_seconds": 1.0}

ended = runs.experiment("ended")
header = LaunchHeader(cluster={"kind": "inline"}, tracking=tracking, launch=notify)
publish_launch(ended, 1, header, [{"seed": 0}], [planned_run()]).complete.touch()
attempt = ended.run("0123456789ab").attempt(1)
claim_attempt(attempt, Claim(launch=1, index=0, code="c0de", generation=1, history=1, process=dead, time=5.0))
EventWriter(attempt.events).write("started")
attempt.log.write_text("what it printed\\n")
mark_state(ended, "0123456789ab", 1, "running")

waits = runs.experiment("waits")
header = LaunchHeader(cluster={"kind": "slurm"}, process=dead, launch=notify)
publish_launch(waits, 1, header, [{"seed": 0}], [planned_run()])
"""
"""An experiment whose run has died, and one that its dead launcher has not submitted: a look has much to see to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """The two users, and the runs of the first."""

    ada: User
    eve: User
    runs: Path

    def marks(self, user: User) -> list[str]:
        return sorted(path.name for path in user.home.glob("mark-*"))

    def clear(self) -> None:
        for user in (self.ada, self.eve):
            for path in user.home.glob("mark-*"):
                path.unlink()


@pytest.fixture
def here() -> Iterator[Here]:
    with two_users() as (ada, eve):
        for user in (ada, eve):
            for name in ("sbatch", "scontrol", "notify-me"):
                user.program(name, mark=f"mark-{name}")
            for name in ("squeue", "sacct"):
                (user.home / "bin" / name).write_text("#!/bin/sh\nexit 0\n")
                (user.home / "bin" / name).chmod(0o755)
        runs = ada.home / "their runs"
        assert ada.python("-c", MAKE, str(runs), "http://127.0.0.1:9").returncode == 0
        yield Here(ada=ada, eve=eve, runs=runs)


def test_who_has_made_runs_can_have_a_look_see_to_them(here: Here) -> None:
    """Else the tests below would hold for code that never does anything."""
    assert here.ada.orch("status", "ended", runs=here.runs).returncode == 0
    assert here.marks(here.ada) == ["mark-notify-me"]
    assert "waits" in here.ada.orch("status", "waits", runs=here.runs).stdout
    assert {"mark-sbatch", "mark-scontrol"} & set(here.marks(here.ada))


VERBS = (
    ("status", "ended"),
    ("status", "waits"),
    ("status",),
    ("show", "ended"),
    ("logs", "ended"),
    ("compare", "ended"),
    ("cancel", "ended"),
    ("cancel", "waits"),
    ("hold", "waits"),
    ("release", "waits"),
    ("change", "waits", "--hours", "1"),
    ("hide", "ended", RUN),
    ("retry", "ended"),
    ("retry", "waits"),
    ("ui", "--once"),
    ("adopt", "ended", "--yes"),
)


def test_a_look_at_anothers_runs_changes_and_starts_nothing(here: Here) -> None:
    (here.runs / "orchestrator").mkdir()
    (here.runs / "orchestrator" / "__init__.py").write_text(f"open({str(here.eve.home / 'mark-import')!r}, 'w')\n")
    before = tree(here.runs)
    for words in VERBS:
        done = here.eve.orch(*words, runs=here.runs, MLFLOW_TRACKING_TOKEN="eves-own")
        assert done.returncode in (0, 1, 2), (words, done)
        if words != ("status",):
            assert "read only" in done.stderr or "cannot be adopted" in done.stderr, (words, done)
            assert "uid 64001" in done.stderr, (words, done)
        assert here.marks(here.eve) == [], words
        assert tree(here.runs) == before, words
    assert "what it printed" in here.eve.orch("logs", "ended", runs=here.runs).stdout


@pytest.mark.parametrize("mode", [0o775, 0o707])
def test_ones_own_runs_that_others_may_write_are_only_read(here: Here, mode: int) -> None:
    launches = here.runs / "ended" / "launches"
    launches.chmod(mode)
    done = here.ada.orch("status", "ended", runs=here.runs)
    assert f"read only: {launches}: others may write into it (mode {mode:04o})" in done.stderr
    assert here.marks(here.ada) == []
    launches.chmod(0o700)
    here.ada.orch("status", "ended", runs=here.runs)
    assert here.marks(here.ada) == ["mark-notify-me"]


def test_a_copy_of_ones_own_runs_is_only_read_until_it_is_adopted(here: Here) -> None:
    copied = here.ada.home / "copied"
    here.ada.run("cp", "-a", str(here.runs), str(copied))
    before = tree(copied)
    for name in ("ended", "waits"):
        done = here.ada.orch("status", name, runs=copied)
        assert f"`orch adopt {name}` makes it so" in done.stderr
    assert (tree(copied), here.marks(here.ada)) == (before, [])

    refused = here.ada.orch("adopt", "waits", runs=copied)
    assert (refused.returncode, here.marks(here.ada)) == (2, [])
    assert "1 runs that wait can be submitted to slurm" in refused.stderr
    assert "notify command: 'notify-me'" in refused.stderr
    adopted = here.ada.orch("adopt", "waits", "--yes", runs=copied)
    assert (adopted.returncode, here.marks(here.ada)) == (0, [])
    assert "nothing was submitted" in adopted.stderr
    here.ada.orch("status", "waits", runs=copied)
    assert {"mark-sbatch", "mark-scontrol"} & set(here.marks(here.ada))


def test_a_link_of_another_user_leads_to_nothing_that_is_acted_on(here: Here) -> None:
    """It could lead elsewhere a moment later."""
    link = here.eve.home / "runs"
    link.symlink_to(here.runs)
    here.eve.owns(link)
    done = here.ada.orch("status", "ended", runs=link)
    assert "is a link of uid 64002" in done.stderr
    assert here.marks(here.ada) == []
    own = here.ada.home / "runs"
    own.symlink_to(here.runs)
    here.ada.owns(own)
    here.ada.orch("status", "ended", runs=own)
    assert here.marks(here.ada) == ["mark-notify-me"]


def test_a_job_needs_no_home_to_show_whose_it_is(here: Here) -> None:
    token = read_launch(ExperimentPaths(here.runs / "ended").launch(1)).token
    away = str(here.ada.home / "elsewhere")
    here.ada.orch("status", "ended", runs=here.runs, XDG_STATE_HOME=away, **{LAUNCH_ID: "f00d"})
    assert here.marks(here.ada) == []
    here.ada.orch("status", "ended", runs=here.runs, XDG_STATE_HOME=away, **{LAUNCH_ID: token})
    assert here.marks(here.ada) == ["mark-notify-me"]
    here.clear()
    here.eve.orch("status", "ended", runs=here.runs, **{LAUNCH_ID: token})  # it can be read in their files
    assert here.marks(here.eve) == []


@pytest.mark.parametrize("name", ["launch.json", "plan.jsonl", "claim.json", "events.jsonl", "log"])
def test_a_fifo_hangs_nobody_and_a_link_shows_nothing(here: Here, name: str) -> None:
    secret = here.eve.home / "secret"
    secret.write_text("eves-own-secret\n")
    (path,) = here.runs.joinpath("ended").rglob(name)
    for make in (os.mkfifo, lambda path: path.symlink_to(secret)):
        path.unlink()
        make(path)
        here.ada.owns(path)
        for verb in ("status", "show", "logs"):
            done = here.eve.orch(verb, "ended", runs=here.runs)
            assert "eves-own-secret" not in done.stdout + done.stderr


def test_nothing_is_removed_through_a_linked_store(here: Here) -> None:
    precious = here.ada.home / "precious"
    (precious / "artifacts").mkdir(parents=True)
    (precious / "artifacts" / "thesis.txt").write_text("years of work")
    here.ada.owns(precious, precious / "artifacts")
    (here.runs / ".mlflow").symlink_to(precious)
    here.ada.owns(here.runs / ".mlflow")
    header = here.runs / "ended" / "launches" / "0001" / "launch.json"
    header.write_text(json.dumps({**json.loads(header.read_text()), "tracking": {"kind": "embedded"}}))
    done = here.ada.orch("ui", "--once", runs=here.runs)
    assert (done.returncode, "it is a symbolic link" in done.stderr) == (1, True)
    assert (precious / "artifacts" / "thesis.txt").read_text() == "years of work"


# --- what acts asks first, each by itself ---------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path) -> Project:
    """A project with runs that were copied here."""
    runs = RunsRoot(tmp_path / "it's" / "runs")
    header = LaunchHeader(
        cluster={"kind": "workstation"},
        tracking={"kind": "embedded", "register": "net"},
        launch=LaunchOptions(notify=("touch", str(tmp_path / "notified"))),
    )
    publish_launch(runs.experiment("x"), 1, header, [{"seed": 0}], [planned_run()]).complete.touch()
    shutil.copytree(tmp_path / "it's", tmp_path / "copy")
    return Project.around(RunsRoot(tmp_path / "copy" / "runs"))


def test_all_that_acts_refuses_what_was_not_made_here(copied: Project) -> None:
    experiment = copied.runs.experiment("x")
    assert not why_read_only(ExperimentPaths(copied.folder.parent / "it's" / "runs" / "x"))
    records = list(api.read(copied, "x").records.values())
    before = tree(copied.folder)
    acts = (
        lambda: api.cancel(copied, "x", records),
        lambda: api.hold(copied, "x", records),
        lambda: api.release(copied, "x", records),
        lambda: api.hide(copied, "x", records),
        lambda: api.prepare_again(copied, records, "x").__enter__(),
        lambda: stores.sync(copied, "x"),
        lambda: stores.register(copied, "x", model="net"),
        lambda: Source.of(experiment.launch(1).path, 0),
    )
    for act in acts:
        with pytest.raises(StateError, match="x is read only") as caught:
            act()
        assert "orch adopt x" in caught.value.fix
    state = api.refresh(copied, "x")
    assert state.read_only.startswith("launch 0001 was not made here")
    assert tree(copied.folder) == before


def test_a_queue_that_leads_to_other_runs_starts_none(copied: Project, tmp_path: Path) -> None:
    queue = Queue(tmp_path / "queue")
    queue.add(copied.runs.experiment("x").launch(1), Terms(cpus=1))
    supervise(tmp_path / "queue")
    assert queue.entries() == []
    assert not copied.runs.experiment("x").runs.exists()


def test_adopting_is_told_of_what_it_need_not_or_cannot_do(copied: Project, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--runs", str(copied.runs.path)]
    assert cli.main(["adopt", "y", *where]) == 2
    assert "there is no experiment y" in capsys.readouterr().err
    assert cli.main(["adopt", "x", "--yes", *where]) == 0
    assert cli.main(["adopt", "x", *where]) == 0
    assert "it is your own already" in capsys.readouterr().err
    assert not why_read_only(copied.runs.experiment("x"))


def test_where_the_state_cannot_be_written_nothing_is_published(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = Path(own_state(tmp_path_factory))
    (state / "orchestrator" / "launches").unlink()
    (state / "orchestrator" / "launches").write_text("in the way")
    monkeypatch.setenv("XDG_STATE_HOME", str(state))
    experiment = ExperimentPaths(tmp_path / "runs" / "x")
    with pytest.raises(StateError) as caught:
        publish_launch(experiment, 1, LaunchHeader(cluster={"kind": "inline"}), [{}], [planned_run()])
    assert "$XDG_STATE_HOME" in caught.value.fix
    assert list((experiment.path / "launches").iterdir()) == []


def test_what_a_record_names_lies_in_its_runs_folder(tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "its run")
    for name in ("its run/a001/state/best.ckpt", "outside.ckpt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (run.path / "link.ckpt").symlink_to(tmp_path / "outside.ckpt")
    (run.path / "circle.ckpt").symlink_to("circle.ckpt")
    assert best_of(run, {"checkpoint": "a001/state/best.ckpt"}) == run.path / "a001" / "state" / "best.ckpt"
    for name in ("../outside.ckpt", str(tmp_path / "outside.ckpt"), "link.ckpt", "circle.ckpt", "\0.ckpt", "", None):
        assert best_of(run, {"checkpoint": name}) is None
    assert best_of(run, {}) is None
