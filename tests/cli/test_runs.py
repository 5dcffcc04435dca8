"""Runs from the command line to their records: done, failed, killed, resumed, under old code and new."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from git_desk import BROKEN_NET, NET, PLAY, Desk, environ
from processes import wait_for
from states import own_state

from orchestrator.layout import ExperimentPaths
from orchestrator.records.attempts import read_events
from orchestrator.records.checkpoints import latest_of
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import publish_launch, read_launch
from orchestrator.records.planned import PlannedRun, read_plan
from orchestrator.records.record import RunState
from orchestrator.testing.launches import WORKER
from orchestrator.tracking import Metrics, read

# MLflow's own tables use a loader that SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


@pytest.fixture
def desk(tmp_path: Path, tidy: None) -> Desk:
    return Desk(tmp_path / "my project's folder", environ())


# --- the real worker: one story, told once ----------------------------------------------------------------


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, warm_parent: None) -> SimpleNamespace:
    """Launch a run that is done, one that raises and one that is killed; break the code; launch again."""
    base = tmp_path_factory.mktemp("story")
    state = own_state(tmp_path_factory)
    desk = Desk(base / "nets", {**environ(), "XDG_STATE_HOME": state, "XDG_CACHE_HOME": str(base / "c")})
    told = SimpleNamespace(desk=desk, experiment=desk.paths("nets"))
    told.first = desk.orch("launch", "experiment=nets", status=1, played=False)
    told.runs = {describe(run["point"]): run for run in desk.json("status", "nets")["runs"]}
    told.first_logs = [path.read_text() for path in sorted(told.experiment.path.glob("runs/*/a001/log"))]
    told.status, told.logs = desk.orch("status", "nets").out, desk.orch("logs", "nets", "state=failed").out
    told.children = children(desk)
    (desk.folder / "nets.py").write_text(BROKEN_NET)
    told.plan = {describe(step["point"]): step for step in desk.json("plan", "experiment=nets")["steps"]}
    told.second = desk.orch("launch", "experiment=nets", status=1, played=False)
    told.runs_after = {describe(run["point"]): run for run in desk.json("status", "nets")["runs"]}
    told.children_after = children(desk)
    return told


def describe(point: dict[str, object]) -> str:
    return {"seed": "done", "model.fails": "raises", "model.dies_at": "dies"}[next(iter(point))]


def children(desk: Desk) -> dict[str, list[SimpleNamespace]]:
    """Return the child runs in MLflow by our run id."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{desk.folder / 'runs' / '.mlflow' / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found: dict[str, list[SimpleNamespace]] = {}
    for run in client.search_runs(experiments):
        if "orch.run" in run.data.tags:
            history = {
                name: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
                for name in run.data.metrics
            }
            child = SimpleNamespace(id=run.info.run_id, status=run.info.status, tags=run.data.tags, metrics=history)
            found.setdefault(run.data.tags["orch.run"], []).append(child)
    return found


def spooled(experiment: ExperimentPaths, run: str, attempt: int) -> dict[str, list[tuple[int, float]]]:
    """Return what an attempt logged: step and value by metric."""
    found: dict[str, list[tuple[int, float]]] = {}
    for record, _ in read(experiment.run(run).attempt(attempt).metrics):
        if isinstance(record, Metrics):
            for name, value in record.values.items():
                found.setdefault(name, []).append((record.step, value))
    return found


def test_a_done_run_leaves_its_config_events_metrics_checkpoints_and_log(story):
    run = story.runs["done"]
    folder = story.experiment.run(run["run"])
    attempt = folder.attempt(1)
    config = yaml.safe_load(folder.config.read_text())
    assert (config["seed"], config["model"]["_target_"]) == (1, "nets.Net")
    assert [event.kind for event in read_events(attempt.events)][-1] == "done"
    assert {"best.ckpt", "latest.json"} <= {path.name for path in attempt.state.iterdir()}
    assert [step for step, _ in spooled(story.experiment, run["run"], 1)["train/loss"]] == list(range(12))
    assert run["best"]["metric"] == "val/loss"
    assert (folder.path / run["best"]["checkpoint"]).is_file()
    assert "done" in attempt.log.read_text()


def test_runs_that_train_are_forked_from_the_tests_warm_parent(story):
    """Or else each imports torch and Lightning itself, and all tests that train take five times as long."""
    assert [re.findall(r"started as .*/(\w+\.py) ", log) for log in story.first_logs] == [["warm_parent.py"]] * 3


def test_a_done_run_is_finished_in_mlflow_with_the_same_metrics(story):
    run = story.runs["done"]
    (child,) = story.children[run["run"]]
    assert child.status == "FINISHED"
    logged = spooled(story.experiment, run["run"], 1)
    own = {name: values for name, values in child.metrics.items() if not name.startswith("system/")}  # of the node
    assert {name: sorted(values) for name, values in own.items()} == {
        name: sorted(set(values)) for name, values in logged.items()
    }


def test_a_run_that_raises_is_failed_everywhere(story):
    run = story.runs["raises"]
    line = NET.splitlines().index('            raise KeyError("label")') + 1
    assert (run["state"], run["failure"]["signature"]) == ("failed", f"KeyError at nets.py:{line}")
    assert f"1 x KeyError at nets.py:{line}" in story.status
    assert 'raise KeyError("label")' in story.logs
    assert [child.status for child in story.children[run["run"]]] == ["FAILED"]


def test_a_run_that_was_killed_is_interrupted_not_failed(story):
    run = story.runs["dies"]
    assert (run["state"], run["reason"]) == ("interrupted", "killed by SIGKILL")
    assert [child.status for child in story.children[run["run"]]] not in (["FINISHED"], ["FAILED"])


def test_after_an_edit_the_plan_keeps_the_done_resumes_the_killed_and_retries_the_failed(story):
    assert story.plan["done"]["action"] == "skip"
    assert story.plan["done"]["reason"].startswith("done, under other code")
    assert (story.plan["dies"]["action"], story.plan["raises"]["action"]) == ("resume", "retry")
    assert story.plan["dies"]["code"] == story.runs["dies"]["code"]
    assert story.plan["raises"]["code"] != story.runs["raises"]["code"]


def test_a_killed_run_goes_on_with_its_own_code_from_its_last_checkpoint_in_the_same_mlflow_run(story):
    run = story.runs_after["dies"]
    assert (run["state"], run["attempt"], run["code"]) == ("done", 2, story.runs["dies"]["code"])
    steps = [[s for s, _ in spooled(story.experiment, run["run"], number)["train/loss"]] for number in (1, 2)]
    assert steps == [list(range(6)), list(range(4, 12))], "an epoch has 4 steps: the checkpoint is at step 4"
    (before,), (after,) = story.children[run["run"]], story.children_after[run["run"]]
    assert (after.id, after.status) == (before.id, "FINISHED")
    assert sorted({step for step, _ in after.metrics["train/loss"]}) == list(range(12))


def test_a_failed_run_is_retried_with_todays_code(story):
    run = story.runs_after["raises"]
    assert run["failure"]["message"] == "edited after the launch"
    assert run["failure"]["signature"].startswith("RuntimeError at nets.py:")


def test_compare_ranks_runs_for_eyes_scripts_and_spreadsheets(story):
    desk = story.desk
    rows = desk.json("compare", "nets")
    assert [row["state"] for row in rows] == ["done", "done", "failed"]
    assert rows[0]["val/loss"] <= rows[1]["val/loss"]
    table = list(csv.DictReader(io.StringIO(desk.orch("compare", "nets", "--csv").out)))
    assert [row["run"] for row in table] == [row["run"] for row in rows]
    assert rows[0]["run"] in desk.orch("compare", "nets").out


def test_show_tells_everything_of_one_run(story):
    shown = story.desk.json("show", story.runs["dies"]["run"][:6])
    assert [attempt["state"] for attempt in shown["attempts"]] == ["interrupted", "done"]
    assert shown["config"]["model"]["dies_at"] == 6


def test_what_runs_took_is_measured_and_told(story):
    (line,) = [line for line in story.status.splitlines() if line.startswith("memory: ")]
    assert re.fullmatch(r"memory: [0-9.]+ GB at most; time: [0-9]+ (s|min) at most", line)
    for run in story.runs.values():  # also of the one that was killed
        assert 0.02 < run["usage"]["memory_gb"] < 20
        assert run["usage"]["hours"] > 0


def test_show_tells_people_the_local_time_and_how_long_it_took(story):
    done = story.runs["done"]
    shown = yaml.safe_load(story.desk.orch("show", done["run"]).out)
    began = datetime.strptime(shown["started"], "%Y-%m-%d %H:%M:%S %z")
    assert began.timestamp() == int(done["started"])
    assert re.fullmatch(r"\d+:\d\d", shown["took"])
    assert datetime.strptime(shown["launched"]["time"], "%Y-%m-%d %H:%M:%S %z") <= began
    assert isinstance(story.desk.json("show", done["run"])["launched"]["time"], float)


def test_diff_of_two_runs_shows_config_and_code(story):
    ids = [story.runs[name]["run"] for name in ("done", "raises")]
    told = story.desk.orch("diff", *ids).out
    assert "model.fails: False -> True" in told
    assert "+        raise RuntimeError('edited after the launch')" in told
    assert "environment: the same" in told


# --- code, data and environment are frozen ----------------------------------------------------------------


def test_editing_and_breaking_the_code_does_not_reach_queued_runs(desk):
    gate = desk.folder.parent / "open"
    words = ("experiment=plays", "cluster=workstation", "cluster.cpus=1", f"model.until={json.dumps(str(gate))}")
    desk.orch("launch", *words)
    wait_for(lambda: RunState.RUNNING in desk.states(), "the first run to begin")
    (desk.folder / "plays.py").write_text("raise RuntimeError('edited after the launch')\n")
    gate.touch()
    wait_for(lambda: not any(state.active for state in desk.states()), "the runs to end")
    assert desk.states() == [RunState.DONE] * 3


def test_rerun_changed_makes_a_second_generation_next_to_the_first(desk):
    tracked = ("experiment=plays", "tracking.kind=embedded", "sweep=none")
    desk.orch("launch", *tracked)
    (desk.folder / "plays.py").write_text(PLAY.replace("1.0", "2.0"))
    assert desk.json("plan", *tracked)["steps"][0]["action"] == "skip"
    desk.orch("launch", *tracked, "--rerun", "changed")
    (run,) = desk.json("status", "plays")["runs"]
    assert (run["state"], run["generation"], run["attempt"]) == ("done", 2, 2)
    found = children(desk)[run["run"]]
    assert sorted((c.tags["orch.generation"], c.status, c.metrics["value"]) for c in found) == [
        ("1", "FINISHED", [(1, 1.0)]),
        ("2", "FINISHED", [(1, 2.0)]),
    ]


def test_while_a_rerun_waits_the_generation_before_stays_as_it_ended_in_mlflow(desk):
    gate = desk.folder.parent / "open"
    gate.touch()
    words = ("experiment=plays", "tracking.kind=embedded", f"model.until={json.dumps(str(gate))}")
    desk.orch("launch", *words, "cluster=workstation", "cluster.cpus=1", "--wait")
    desk.orch("ui", "--once")
    first = {child.id: child.tags["orch.code"] for found in children(desk).values() for child in found}
    gate.unlink()
    (desk.folder / "plays.py").write_text(PLAY.replace("1.0", "2.0"))
    desk.orch("launch", *words, "cluster=workstation", "cluster.cpus=1", "--rerun", "changed")
    wait_for(lambda: RunState.RUNNING in desk.states(), "the first rerun to begin")
    desk.orch("ui", "--once")
    found = [child for each in children(desk).values() for child in each if child.tags["orch.generation"] == "1"]
    assert {child.id: child.tags["orch.code"] for child in found} == first
    assert {(child.status, child.tags["orch.launch"]) for child in found} == {("FINISHED", "0001")}
    gate.touch()
    wait_for(lambda: desk.states() == [RunState.DONE] * 3, "the reruns to end")


def test_a_data_version_is_read_from_the_nodes_scratch(desk):
    for command in (["init", "-q"], ["config", "core.autostage", "false"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=desk.folder, env=desk.env, check=True)
    images = desk.folder / "images"
    images.mkdir()
    for name in ("a b.txt", "ü.txt"):
        (images / name).write_text(name)
    subprocess.run([sys.executable, "-m", "dvc", "add", "-q", "images"], cwd=desk.folder, env=desk.env, check=True)
    for command in (["add", "--all"], ["commit", "-q", "-m", "data"]):
        subprocess.run(["git", *command], cwd=desk.folder, env=desk.env, check=True)
    scratch = desk.folder.parent / "scratch"
    scratch.mkdir()
    version = "data.version={source: dvc, repo: ., path: images, rev: HEAD}"
    words = ("experiment=plays", "sweep=none", "+model.reads=${view:}", f"cluster.scratch={json.dumps(str(scratch))}")
    desk.orch("launch", *words, version)
    (shown,) = desk.json("status", "plays")["runs"]
    (attempt,) = desk.json("show", shown["run"])["attempts"]
    assert (shown["state"], attempt["staged"]["files"]) == ("done", 2)
    view = Path(attempt["staged"]["view"])
    assert scratch in view.parents
    assert sorted(path.name for path in view.iterdir()) == ["a b.txt", "ü.txt"]


@pytest.mark.parametrize(("env", "state"), [("refuse", "failed"), ("warn", "done")])
def test_an_environment_that_changed_since_the_launch_is_refused_or_told(desk, env, state):
    once = ("model.ends=[kill,done]", "resources.attempts.of=1")
    desk.orch("launch", "experiment=plays", "sweep=none", f"env={env}", *once, status=1)
    planned = _launch_again_with_one_more_distribution(desk.paths("plays"))
    code = os.pathsep.join(desk.paths("plays").python_path(planned.code))
    command = [sys.executable, *WORKER, str(desk.paths("plays").launch(2).path), "0"]
    worker = subprocess.run(command, env={**desk.env, "PYTHONPATH": code}, check=False)
    assert worker.returncode == (1 if state == "failed" else 0)
    assert "cow-say is missing (was 1.0)" in desk.logs()
    (run,) = desk.json("status", "plays")["runs"]
    assert run["state"] == state
    if state == "failed":
        assert run["failure"]["signature"] == "OrchError: the Python environment has changed since the launch"


def _launch_again_with_one_more_distribution(paths: ExperimentPaths) -> PlannedRun:
    """Publish a second launch, as from an environment that had one distribution more; returns what it plans."""
    old = read_launch(paths.launch(1)).header
    environment = {**old.environment, "distributions": {**old.environment["distributions"], "cow-say": "1.0"}}
    new = LaunchHeader(cluster=old.cluster)
    stamps = {"token": new.token, "time": new.time, "user": new.user, "process": new.process}
    (planned,) = read_plan(paths.launch(1))
    planned = replace(planned, attempt=2, action="resume")
    base = json.loads(paths.launch(1).base(0).read_text())
    assert publish_launch(paths, 2, replace(old, environment=environment, **stamps), [base], [planned]) is not None
    return planned


# --- the command line -------------------------------------------------------------------------------------


def test_ctrl_c_stops_the_running_run_and_the_next_launch_does_the_rest(desk):
    gate = desk.folder.parent / "open"
    words = ("launch", "experiment=plays", f"model.until={json.dumps(str(gate))}", "model.steps=2")
    process = subprocess.Popen(
        desk.command(*words), cwd=desk.folder, env=desk.env, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    played = desk.paths("plays").path / "played"
    wait_for(lambda: list(played.glob("*")), "the first run to begin")
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate()[1]
    assert process.returncode == 130
    assert "orch launch" in told
    assert "Traceback" not in told
    assert desk.states() == [RunState.INTERRUPTED] * 3
    gate.touch()
    actions = [step["action"] for step in desk.json("plan", *words[1:])["steps"]]
    assert actions == ["resume", "submit", "submit"]
    desk.orch(*words)
    assert desk.states() == [RunState.DONE] * 3


def test_a_training_that_is_cancelled_keeps_its_data_loaders_until_it_has_saved(desk):
    words = ("name=loads", "data=synthetic", "data.num_workers=2", "model=mlp", "trainer.max_epochs=100000")
    desk.orch("launch", *words, "cluster=workstation", "tracking=none", played=False)
    wait_for(lambda: desk.json("status", "loads")["runs"][0].get("progress"), "the training to begin")
    desk.orch("cancel", "loads")
    wait_for(lambda: desk.states("loads") == [RunState.CANCELLED], "the run to be cancelled, and not to fail")
    (run,) = desk.json("status", "loads")["runs"]
    attempt = desk.paths("loads").run(run["run"]).attempt(1)
    assert latest_of(attempt)
    assert "Traceback" not in attempt.log.read_text()


def test_cancel_then_launch_goes_on(desk):
    gate = desk.folder.parent / "open"
    until = f"model.until={json.dumps(str(gate))}"
    words = ("launch", "experiment=plays", "cluster=workstation", "cluster.cpus=1", until)
    desk.orch(*words)
    wait_for(lambda: RunState.RUNNING in desk.states(), "the first run to begin")
    desk.orch("cancel", "plays", "seed=0,1")
    wait_for(lambda: desk.states()[:2] == [RunState.CANCELLED] * 2, "two runs to be cancelled")
    gate.touch()
    desk.orch(*words, "--wait")
    assert desk.states() == [RunState.DONE] * 3


def test_logs_follow_until_the_run_has_ended(desk):
    gate = desk.folder.parent / "open"
    desk.orch("launch", "experiment=plays", "sweep=none", "cluster=workstation", f"model.until={json.dumps(str(gate))}")
    follow = subprocess.Popen(
        desk.command("logs", "plays", "-f"), cwd=desk.folder, env=desk.env, stdout=subprocess.PIPE, text=True
    )
    wait_for(lambda: RunState.RUNNING in desk.states(), "the run to begin")
    assert follow.poll() is None
    gate.touch()
    assert "step 1" in follow.communicate()[0]
    assert follow.returncode == 0


def test_the_exit_status_says_whether_to_look_at_the_runs_or_at_the_request(desk):
    assert "error: " in desk.orch("launch", "experiment=plays", "model.stepz=3", status=2).err
    assert not (desk.folder / "runs").exists(), "a wrong request leaves nothing behind"
    desk.orch("run", "experiment=plays", status=2)
    desk.orch("run", "experiment=plays", "seed=7", "sweep=none", "model.ends=[raise]", status=1)
    desk.orch("run", "experiment=plays", "sweep=none")
    desk.orch("launch", "experiment=plays", "seed=8", "sweep=none", "model.ends=[raise]", status=1)
    desk.orch("launch", "experiment=plays", "seed=9", "sweep=none")
    again = desk.orch("launch", "experiment=plays", "sweep=none")
    assert "nothing to do; 4 runs: 2 done, 2 failed" in again.err, "what failed before is not of this launch"
    desk.orch("logs", "nothing-of-this-name", status=2)


def test_results_go_to_standard_output_talk_to_standard_error_and_no_colour_to_a_pipe(desk):
    run = desk.orch("run", "experiment=plays", "sweep=none")
    assert "step 1" in run.out
    assert not re.search(r"^\w{8}: done$", run.out, re.MULTILINE)
    assert re.search(r"^\w{8}: done$", run.err, re.MULTILINE)
    launched = desk.orch("launch", "experiment=plays")
    assert launched.out == ""
    assert "launch 0002, 2 runs, 1 already there" in launched.err
    status = desk.orch("status")
    assert "3 done" in status.out
    assert "\x1b" not in status.out + launched.err
    overview = desk.json("status", "plays")
    assert {run["state"] for run in overview["runs"]} == {"done"}
    again = desk.orch("launch", "experiment=plays")
    assert "nothing to do" in again.err


def test_no_color_is_honoured_on_a_terminal(desk):
    assert "\x1b[31m" in _error_on_a_terminal(desk, {})
    assert "\x1b" not in _error_on_a_terminal(desk, {"NO_COLOR": "1"})


def _error_on_a_terminal(desk: Desk, more: dict[str, str]) -> str:
    ours, theirs = os.openpty()
    command = desk.command("status", "nothing-of-this-name")
    subprocess.run(command, cwd=desk.folder, env={**desk.env, **more}, stderr=theirs, check=False)
    os.close(theirs)
    said = os.read(ours, 10_000).decode()
    os.close(ours)
    return said


def test_the_size_is_shown_and_above_a_limit_only_a_yes_submits(desk):
    refused = desk.orch("launch", "experiment=plays", "sweep.ask_above=2", status=2)
    assert "plays: 3 runs, 3 to submit" in refused.err
    assert "3 runs are to be submitted: more than 2 (sweep.ask_above) need a yes" in refused.err
    assert "fix: check `orch plan`, then add --yes; or sweep.ask_above=3" in refused.err
    assert not (desk.folder / "runs").exists()
    assert "not confirmed" in _answered(desk, b"\n", status=2)
    assert not (desk.folder / "runs").exists()
    assert "submit 3 runs? [y/N]" in _answered(desk, b"y\n", status=0)
    assert desk.states() == [RunState.DONE] * 3
    desk.orch("launch", "experiment=plays", "seed=range(5,8)", "sweep.ask_above=2", "--yes")
    desk.orch("launch", "experiment=plays", "seed=range(5,10)", "sweep.ask_above=2")  # two of five are to submit
    assert desk.states() == [RunState.DONE] * 8


def _answered(desk: Desk, answer: bytes, *, status: int) -> str:
    ours, theirs = os.openpty()
    os.write(ours, answer)
    command = desk.command("launch", "experiment=plays", "sweep.ask_above=2")
    done = subprocess.run(
        command, cwd=desk.folder, env=desk.env, stdin=theirs, stdout=theirs, stderr=theirs, check=False
    )
    os.close(theirs)
    said = os.read(ours, 10_000).decode()
    os.close(ours)
    assert done.returncode == status, said
    return said
