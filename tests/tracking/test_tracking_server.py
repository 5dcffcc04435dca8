"""Tracking by a server: whatever becomes of it, training does not wait, and everything arrives in the end."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import many_uploaders
import pytest
from campaigns import SEED, amount
from faulty_server import MlflowServer, Proxy
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from postgres import postgresql
from processes import of_this_test, wait_for

from bench.records import make_experiment
from orchestrator import api
from orchestrator.config import schema
from orchestrator.errors import ConfigError, TrackingError
from orchestrator.layout import ExperimentPaths, RunsRoot
from orchestrator.local.workstation import Workstation
from orchestrator.project import Project
from orchestrator.records.record import RunState
from orchestrator.testing.launches import WORKER, Bench, scripted
from orchestrator.tracking import Metrics, SpoolWriter, TrackedExperiment, TrackedRun, read, stores
from orchestrator.tracking.mlflow_store import MlflowStore
from orchestrator.tracking.uploader import Carrier
from orchestrator.worker.upload import Uploader

pytestmark = pytest.mark.usefixtures("tidy")
POINTS = 3_000
UPLOADERS = amount(16, 96)


@pytest.fixture(scope="module")
def over_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    made = MlflowServer(tmp_path_factory.mktemp("mlflow server"))
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture(scope="module")
def over_postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with postgresql() as backend:
        made = MlflowServer(tmp_path_factory.mktemp("mlflow server on postgresql"), backend=backend)
        try:
            made.start()
            yield made
        finally:
            made.kill()


@pytest.fixture(scope="module")
def server(over_sqlite: MlflowServer) -> str:
    return over_sqlite.address


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    made = Proxy(server)
    yield made
    made.close()


def tracking(uri: str, name: str, **changes: object) -> dict[str, object]:
    given = {"kind": "server", "uri": uri, "experiment": name, "end_seconds": 60, "system_metrics": False}
    return schema.tracking({**given, **changes})


@pytest.fixture
def bench(tmp_path: Path, proxy: Proxy) -> Iterator[Bench]:
    """An experiment on the workstation that sends to the server through the proxy."""
    paths = ExperimentPaths(tmp_path / "runs" / "e")
    options = tracking(proxy.address, str(tmp_path))
    yield Bench(paths=paths, kind="workstation", cluster=Workstation(cpus=2), tracking=options)
    wait_for(lambda: not uploaders(), "the uploaders to end, before their server does")


def uploaders() -> list[int]:
    return [p.pid for p in of_this_test() if "orchestrator.tracking.uploader" in (p.info["cmdline"] or [])]


def project(bench: Bench) -> Project:
    runs = bench.paths.path.parent
    return Project(folder=runs.parent, runs=RunsRoot(runs))


def runs_on(server: str, bench: Bench, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    client = MlflowClient(server)
    found = client.get_experiment_by_name(str(bench.tracking["experiment"]))
    return client.search_runs([found.experiment_id], run_view_type=view) if found else []


def children(server: str, bench: Bench) -> list[Run]:
    return [run for run in runs_on(server, bench) if run.data.tags["orch.kind"] == "run"]


def stored(server: str, run: Run) -> set[tuple[str, int, float]]:
    client = MlflowClient(server)
    found: set[tuple[str, int, float]] = set()
    for key in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, key)
        assert len(history) == len({metric.step for metric in history}), f"{key} is stored twice"
        found |= {(key, metric.step, metric.value) for metric in history}
    return found


def spooled(*spools: Path) -> set[tuple[str, int, float]]:
    lines = [record for spool in spools for record, _ in read(spool)]
    return {(key, r.step, value) for r in lines if isinstance(r, Metrics) for key, value in r.values.items()}


def ended(bench: Bench) -> bool:
    return all(record.state not in {RunState.QUEUED, RunState.RUNNING} for record in bench.records().values())


# --- a launch -----------------------------------------------------------------------------------------------


def test_runs_carry_themselves_to_the_server_and_the_last_one_their_parent(bench, server):
    bench.launch([scripted({"steps": 3}, seed=seed) for seed in (1, 2)], worker=WORKER)
    bench.launch([scripted({"ends": ["raise"]}, seed=3)], worker=WORKER)
    wait_for(lambda: ended(bench), "the runs to end")
    wait_for(lambda: {r.info.status for r in runs_on(server, bench)} == {"FINISHED", "FAILED"}, "the last words")
    wait_for(lambda: "1 failed" in parent(server, bench).data.tags.get("mlflow.note.content", ""), "the summary")
    assert parent(server, bench).info.status == "FAILED"
    assert [child.info.status for child in children(server, bench)].count("FINISHED") == 2
    for child in children(server, bench):
        attempt = bench.paths.run(child.data.tags["orch.run"]).attempt(1)
        assert stored(server, child) == (spooled(attempt.metrics) if attempt.metrics.exists() else set())
        names = {entry.path for entry in MlflowClient(server).list_artifacts(child.info.run_id)}
        assert {"config.yaml", "logs"} <= names


def parent(server: str, bench: Bench) -> Run:
    (found,) = [run for run in runs_on(server, bench) if run.data.tags["orch.kind"] == "parent"]
    return found


@pytest.mark.parametrize("fault", ["down", "frozen", "500", "slow"])
def test_a_server_that_fails_costs_the_run_a_limited_time_at_its_end_and_nothing_else(bench, server, proxy, fault):
    proxy.fault = fault
    quick = Bench(
        paths=bench.paths, kind="workstation", cluster=bench.cluster, tracking={**bench.tracking, "end_seconds": 0.5}
    )
    run = scripted({"steps": 30, "seconds": 0.01})
    quick.launch([run], worker=WORKER)
    wait_for(lambda: ended(bench), "the run to end")
    assert bench.records()[run.id].state is RunState.DONE
    assert len(spooled(bench.paths.run(run.id).attempt(1).metrics)) == 60
    proxy.fault = None
    stores.sync(project(bench), "e")
    (child,) = children(server, bench)
    assert child.info.status == "FINISHED"
    assert stored(server, child) == spooled(bench.paths.run(run.id).attempt(1).metrics)


def test_where_nodes_have_no_network_nothing_is_sent_until_the_login_node_does(bench, server, proxy):
    offline = Bench(
        paths=bench.paths, kind="workstation", cluster=bench.cluster, tracking={**bench.tracking, "upload": "login"}
    )
    run = scripted({"steps": 3})
    offline.launch([run], worker=WORKER)
    wait_for(lambda: ended(bench), "the run to end")
    assert proxy.calls == 0
    stores.sync(project(bench), "e")
    (child,) = children(server, bench)
    assert stored(server, child) == spooled(bench.paths.run(run.id).attempt(1).metrics)


def test_a_cancelled_run_is_killed_on_the_server_too(bench, server, tmp_path):
    run = scripted({"steps": 2, "until": str(tmp_path / "never")})
    bench.launch([run], worker=WORKER)
    wait_for(lambda: bool(children(server, bench)), "the run to appear")
    bench.cancel(run)
    wait_for(lambda: [child.info.status for child in children(server, bench)] == ["KILLED"], "its last word")


# --- the uploader, beside a spool that grows -----------------------------------------------------------------


@pytest.fixture
def carried(bench: Bench, proxy: Proxy, tmp_path: Path) -> tuple[Bench, Path, list[str]]:
    """A run that waits while the test writes to its spool: its experiment, the spool, and an uploader's command."""
    offline = Bench(
        paths=bench.paths, kind="workstation", cluster=bench.cluster, tracking={**bench.tracking, "upload": "login"}
    )
    run = scripted({"steps": 1, "until": str(tmp_path / "open")})
    launched = offline.launch([run], worker=WORKER)
    wait_for(lambda: bench.records()[run.id].state is RunState.RUNNING, "the run to begin")
    attempt = bench.paths.run(run.id).attempt(1)
    return (
        bench,
        attempt.metrics,
        [sys.executable, "-m", "orchestrator.tracking.uploader", str(launched.paths.path), "0"],
    )


def write(spool: Path, first: int, count: int) -> None:
    with SpoolWriter(spool) as writer:
        for step in range(first, first + count):
            writer.metrics({"loss": step / 7, "acc": -step}, step)


@pytest.mark.parametrize("fault", ["413", "500", "down"])
def test_what_a_faulty_server_refused_arrives_once_it_answers(carried, server, proxy, tmp_path, fault):
    bench, spool, argv = carried
    proxy.fault = fault
    write(spool, 0, POINTS)
    uploader = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: proxy.calls or uploader.poll() is not None, "some calls")
    if fault != "413":  # that one stays: smaller batches pass
        proxy.fault = None
    _, told = uploader.communicate()
    assert uploader.returncode == 0, told
    (child,) = children(server, bench)
    assert stored(server, child) == spooled(spool)
    (tmp_path / "open").touch()
    wait_for(lambda: ended(bench), "the run to end")


@pytest.mark.campaign("chaos", sample=True)
def test_killed_at_random_moments_uploaders_lose_and_double_nothing(carried, server, tmp_path):
    bench, spool, argv = carried
    moments = random.Random(SEED)
    for kill in range(amount(3, 25)):
        write(spool, kill * POINTS // 4, POINTS // 4)
        uploader = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.5, 4.0))
        uploader.send_signal(signal.SIGKILL)
        uploader.wait()
    assert subprocess.run(argv, stdin=subprocess.DEVNULL, check=False).returncode == 0
    (child,) = children(server, bench)
    assert stored(server, child) == spooled(spool)
    (tmp_path / "open").touch()
    wait_for(lambda: ended(bench), "the run to end")


def test_many_that_begin_at_once_agree_on_one_child_and_one_parent(server, tmp_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from orchestrator.tracking.mlflow_store import MlflowStore\n"
        "from orchestrator.tracking import TrackedExperiment, TrackedRun\n"
        "store = MlflowStore.server(sys.argv[1], Path(sys.argv[2]) / 'ids')\n"
        "run = TrackedRun(experiment='e', run_id='r', generation=1, history=1, name='r', params={'a': 1},\n"
        "                 tags={}, state='running')\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "store.follow(TrackedExperiment(name=sys.argv[2], project='p')).send(run)\n"
    )
    argv = [sys.executable, "-c", program, server, str(tmp_path)]
    started = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    answers = [process.communicate("go\n")[1] for process in started]
    assert [process.returncode for process in started] == [0] * 6, answers
    client = MlflowClient(server)
    found = client.search_runs([client.get_experiment_by_name(str(tmp_path)).experiment_id])
    assert sorted(run.data.tags["orch.kind"] for run in found) == ["parent", "run"]


def test_a_server_that_was_emptied_is_filled_again(server, tmp_path):
    run = TrackedRun(experiment="e", run_id="r", generation=1, history=1, name="r", params={}, tags={}, state="done")
    experiment = TrackedExperiment(name=str(tmp_path), project="p", runs=[run])
    ids = tmp_path / "ids"
    MlflowStore.server(server, ids).sync(experiment)
    for agreed in ids.glob("*/id"):
        agreed.write_text("0" * 32)  # as another server's, or one that began anew
    report = MlflowStore.server(server, ids).sync(experiment)
    assert report.created == 0, "found again by its tags"
    assert MlflowStore.server(server, ids).sync(experiment).created == 0


def test_two_projects_with_an_experiment_of_the_same_name_keep_apart(server, tmp_path):
    run = TrackedRun(experiment="e", run_id="r", generation=1, history=1, name="r", params={}, tags={}, state="done")
    for owner in ("one-project", "two-project"):
        experiment = TrackedExperiment(name=str(tmp_path), project=owner, runs=[run])
        for _ in range(2):
            MlflowStore.server(server, tmp_path / owner).sync(experiment)
    client = MlflowClient(server)
    for name in (str(tmp_path), f"{tmp_path} two-pr"):
        found = client.search_runs([client.get_experiment_by_name(name).experiment_id])
        assert len(found) == 2


def test_an_uploaders_own_start_is_not_taken_for_a_slow_server(caplog):
    """Loading MLflow takes seconds: a twentieth of the time would be a pause of a minute."""
    clock, sent = [0.0], []

    class Stub:
        end_seconds = 0.0

        def read(self):
            return TrackedRun(
                experiment="e", run_id="r", generation=1, history=1, name="r", params={}, tags={}, state="running"
            )

        def open(self):
            clock[0] += 7.0
            return self

        def send(self, run):
            sent.append(run)
            clock[0] += 3.0 if len(sent) == 1 else 0.1

    carrier = Carrier(Stub(), clock=lambda: clock[0])
    assert carrier._send(last=False)
    assert carrier._pause_seconds == 5.0
    assert carrier._send(last=False)
    assert carrier._pause_seconds == 5.0
    assert "answers again" not in caplog.text


def test_a_server_that_is_slow_is_asked_less_often_and_one_that_failed_is_greeted(caplog):
    clock, fails = [0.0], [False]

    class Stub:
        end_seconds = 0.0

        def read(self):
            return TrackedRun(
                experiment="e", run_id="r", generation=1, history=1, name="r", params={}, tags={}, state="running"
            )

        def open(self):
            return self

        def send(self, run):
            clock[0] += 2.0
            if fails[0]:
                raise TrackingError("no")

    carrier = Carrier(Stub(), clock=lambda: clock[0])
    carrier._send(last=False)
    carrier._send(last=False)
    assert carrier._pause_seconds == 40.0
    fails[0] = True
    assert not carrier._send(last=False)
    assert not carrier._send(last=False)
    assert caplog.text.count("not sent yet") == 1
    fails[0] = False
    assert carrier._send(last=False)
    assert caplog.text.count("answers again") == 1


def test_the_uploader_is_told_to_end_though_a_forked_child_holds_its_input_open():
    uploader = Uploader([sys.executable, "-c", "import sys; sys.exit(sys.stdin.buffer.read(1) != b'\\n')"])
    inherited = os.dup(uploader._process.stdin.fileno())
    try:
        uploader.close(60)
        assert uploader._process.returncode == 0
    finally:
        os.close(inherited)


# --- everything at once ---------------------------------------------------------------------------------------


@pytest.mark.campaign("chaos", sample=True)
@pytest.mark.parametrize("seed", range(SEED, SEED + amount(1, 4)))
@pytest.mark.parametrize("backend", ["over_sqlite", "over_postgresql"])
def test_whatever_dies_hangs_or_is_slow_mlflow_holds_in_the_end_what_the_spools_hold(backend, seed, request, tmp_path):
    """Server killed, frozen and slow, uploaders and runs killed by -9, at random moments while runs log."""
    server: MlflowServer = request.getfixturevalue(backend)
    proxy, moments = Proxy(server.address), random.Random(seed)
    proxy.slow_seconds = 0.5
    paths = ExperimentPaths(tmp_path / "runs" / "e")
    options = tracking(proxy.address, str(tmp_path), end_seconds=3, system_metrics=1)
    bench = Bench(paths=paths, kind="workstation", cluster=Workstation(cpus=3), tracking=options)
    try:
        long = [scripted({"steps": 120, "seconds": 0.05}, seed=seed) for seed in (1, 2)]
        mortal = scripted({"steps": 20, "seconds": 0.05, "ends": ["kill", "done"]}, seed=3)
        failing = scripted({"steps": 5, "ends": ["raise"]}, seed=4)
        runs = [*long, mortal, failing]
        bench.launch(runs, worker=WORKER)
        wait_for(lambda: len(bench.played()) >= 3, "runs to begin")
        for fault in moments.sample(["freeze", "slow", "uploaders", "server", "runs", "500"], 6):
            strike(fault, server, proxy, moments)
        wait_for(lambda: ended(bench), "the runs to end")
        records = bench.records()
        bench.launch([run for run in runs if records[run.id].state is RunState.INTERRUPTED], worker=WORKER)
        wait_for(lambda: ended(bench), "the runs to end, which had been killed")
        wait_for(lambda: not uploaders(), "the uploaders to end")
        stores.sync(project(bench), "e")
        holds_what_the_spools_hold(bench, server.address)
    finally:
        proxy.close()


def strike(fault: str, server: MlflowServer, proxy: Proxy, moments: random.Random) -> None:
    """Let one thing go wrong for a moment."""
    pause = moments.uniform(0.2, 1.5)
    if fault == "server":
        server.kill()
        server.start()
    elif fault == "freeze":
        with server.frozen():
            time.sleep(pause)
    elif fault in {"uploaders", "runs"}:
        module = "orchestrator.tracking.uploader" if fault == "uploaders" else WORKER[-1]
        for process in of_this_test():
            if module in (process.info["cmdline"] or []):
                process.kill()
        time.sleep(pause)
    else:
        proxy.fault = fault
        time.sleep(pause)
        proxy.fault = None


def holds_what_the_spools_hold(bench: Bench, server: str) -> None:
    """Compare all of it: one child a run, its status, and each (key, step, value) once."""
    records = bench.records()
    found = {child.data.tags["orch.run"]: child for child in children(server, bench)}
    assert len(children(server, bench)) == len(found) == len(records)
    for run_id, record in records.items():
        status = {RunState.DONE: "FINISHED", RunState.FAILED: "FAILED"}[record.state]
        assert found[run_id].info.status == status
        attempts = [bench.paths.run(run_id).attempt(attempt.number) for attempt in record.history]
        spools = [spool for attempt in attempts for spool in (attempt.metrics, *attempt.system_metrics())]
        assert stored(server, found[run_id]) == spooled(*spools)
        assert any(key.startswith("system/") for key, _, _ in spooled(*spools))


@pytest.mark.campaign("uploaders", sample=True)
@pytest.mark.parametrize("database", [nullcontext, postgresql])
def test_many_uploaders_beside_four_trainings_lose_and_double_nothing(database, tmp_path):
    with database() as backend:
        server = MlflowServer(tmp_path / "server", backend=backend or "", connections=many_uploaders.CONNECTIONS)
        try:
            server.start()
            _carry_many(server, tmp_path)
        finally:
            server.kill()


def _carry_many(server: MlflowServer, tmp_path: Path) -> None:
    options = tracking(server.address, "spools", end_seconds=600, system_metrics=1)
    paths = make_experiment(tmp_path / "runs", "spools", UPLOADERS, running=UPLOADERS, tracking=options)
    for run in paths.runs.iterdir():
        write(run / "a001" / "metrics.jsonl", 0, 200)
    desk = Workstation(cpus=4)
    fed = Bench(paths=paths, kind="workstation", cluster=desk, tracking=options)
    trained = Bench(
        paths=ExperimentPaths(tmp_path / "runs" / "trained"),
        kind="workstation",
        cluster=desk,
        tracking={**options, "experiment": "trained"},
    )
    trained.launch([scripted({"steps": 200, "seconds": 0.05}, seed=seed) for seed in range(4)], worker=WORKER)
    wait_for(lambda: len(trained.played()) == 4, "the trainings to begin")
    started = many_uploaders.start(paths.launch(1).path, UPLOADERS, os.environ)
    assert [process.wait() for process in started] == [0] * len(started)
    found = children(server.address, fed)
    assert len({child.data.tags["orch.run"] for child in found}) == len(found) == UPLOADERS
    for child in found:
        spool = paths.run(child.data.tags["orch.run"]).attempt(1).metrics
        assert stored(server.address, child) == spooled(spool) != set()
    wait_for(lambda: ended(trained), "the trainings to end")
    wait_for(lambda: not uploaders(), "the uploaders to end")
    assert all(record.state is RunState.DONE for record in trained.records().values())
    holds_what_the_spools_hold(trained, server.address)


# --- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"uri": "http://me:secret@host"}, "user or password"),
        ({"uri": "host:5000"}, "address of an MLflow server"),
        ({"uri": 5}, "address of an MLflow server"),
        ({"experiment": " "}, "it is a name"),
        ({"upload": "job"}, "did you mean|one of"),
        ({"end_seconds": -1}, "positive number"),
        ({"url": "http://host"}, "uri"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes, told):
    with pytest.raises(ConfigError, match=told) as caught:
        schema.tracking({"kind": "server", "uri": "http://host:5000", **changes})
    assert "secret" not in str(caught.value)


def test_without_an_address_the_launch_says_which_variable_to_set(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = Path(__file__).resolve().parents[2]
    here = Project(folder=root, runs=RunsRoot(root / "runs"))
    with (
        pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"),
        api.prepare(here, ["tracking=server", "experiment=digits_lr"]),
    ):
        pass
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:1"
    try:
        with api.prepare(here, ["tracking=server", "experiment=digits_lr"]) as prepared:
            assert prepared.experiment.tracking["uri"] == "http://127.0.0.1:1"
            assert str(prepared.experiment.tracking["experiment"]).endswith("/digits-lr")
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
