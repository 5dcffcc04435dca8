"""`orch ui`: what a person sees of a sweep in MLflow, in a real browser; and that it leaves nothing behind."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from browser import Browser
from processes import wait_for
from swept import swept

from orchestrator.system.ports import holders, usual_port

GRID = [{"model.lr": lr, "seed": seed} for lr, seed in itertools.product([0.001, 0.01], [0, 1])]
EXPANDS = ".ag-row button[data-component-id*=runnamecellrenderer]"
ASSISTANT = "[data-component-id='mlflow.assistant.chat_panel.close']"


class Ui:
    """A running `orch ui`, and the server that it has started."""

    def __init__(self, runs: Path, log: Path, *options: str) -> None:
        self._log = log
        argv = [sys.executable, "-m", "orchestrator", "ui", "--runs", str(runs), *options]
        before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # below `nohup` it would be ignored, and rightly so
        try:
            with log.open("w") as file:
                self.process = subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        finally:
            signal.signal(signal.SIGHUP, before)

    @property
    def said(self) -> list[str]:
        return self._log.read_text().splitlines()

    @property
    def address(self) -> str:
        wait_for(lambda: any(line.startswith("http://") for line in self.said), f"an address in {self.said}")
        return next(line for line in self.said if line.startswith("http://"))

    @property
    def port(self) -> int:
        return int(urlsplit(self.address).port)

    @property
    def token(self) -> str:
        return self.address.partition("?token=")[2]

    def ask(self, path: str, method: str = "GET", sent: object = None, **headers: str) -> tuple[int, bytes]:
        """Return status and body of an answer, with the token unless other headers are given."""
        given = headers or {"Authorization": f"Bearer {self.token}"}
        return asked(self.port, path, method, sent, given)

    def servers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self, number: signal.Signals) -> int:
        """Send it a signal, and return its exit status once it and all that it has started are gone."""
        started = self.servers()
        assert started
        self.process.send_signal(number)
        status = self.process.wait(timeout=600)
        assert [process for process in started if process.is_running()] == []
        return status


def asked(port, path, method="GET", sent=None, headers=None):
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request(method, path, body=None if sent is None else json.dumps(sent), headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A sweep that the first of these tests brings into MLflow, for all of them."""
    folder = tmp_path_factory.mktemp("a folder") / "runs"
    swept(folder, GRID, tracking="embedded", reach=lambda point: 0.5 + 10 * point["model.lr"])
    return folder


@pytest.fixture
def ui(tidy, runs, tmp_path) -> Iterator[Ui]:
    started = Ui(runs, tmp_path / "said")
    yield started
    if started.process.poll() is None:
        started.process.kill()
        started.process.wait()


def test_a_sweep_in_the_browser_and_a_terminal_that_is_closed(ui, browser):
    address = ui.address
    port = ui.port
    assert any(line.startswith(f"from another machine: ssh -L {port}:127.0.0.1:{port} ") for line in ui.said)
    listening = [
        connection.laddr.ip
        for process in ui.servers()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert set(listening) == {"127.0.0.1"}

    open_runs(browser, address)
    expand(browser)
    table = browser.ask("document.querySelector('.ag-root').innerText")
    assert table.count("lr=0.001 seed=") == 2
    assert table.count("lr=0.01 seed=") == 2
    assert table.count("orch launch experiment=sweep") == 5  # the column Source, of their parent too
    assert table.count("data/digits") == 4  # the column Dataset

    show_charts(browser)
    titles = browser.ask("document.body.innerText")
    assert "val/acc" in titles
    assert "val/loss" in titles
    assert browser.ask(f"document.querySelectorAll('{CURVES}').length") >= 4

    # As a terminal that is closed does; `tidy` sees that nothing is left.
    assert ui.stop(signal.SIGHUP) == 0


CURVES = ".plot-container .scatterlayer .trace path.js-line"


def open_runs(browser: Browser, address: str) -> None:
    """Open the only experiment's table of runs, without the assistant that MLflow opens beside it."""
    browser.driver.set_window_size(1500, 1000)
    browser.open(log_in(browser, address) + "#/experiments/1/runs")
    browser.wait_for_text("5 matching runs")
    browser.ask(f'document.querySelector("{ASSISTANT}")?.click()')


def log_in(browser: Browser, address: str) -> str:
    """Open the printed URL, and return the one that it leads to: without the token."""
    browser.open(address)
    browser.wait("location.pathname.length > 60")
    return str(browser.ask("location.origin + location.pathname"))


def expand(browser: Browser) -> None:
    """Show the runs below their parent."""
    browser.wait("document.querySelectorAll('.ag-center-cols-container .ag-row').length === 1")
    browser.wait(f"document.querySelector('{EXPANDS}')").click()
    browser.wait("document.querySelectorAll('.ag-center-cols-container .ag-row').length === 5")


def show_charts(browser: Browser) -> None:
    browser.ask("document.querySelectorAll('input[type=radio]')[1].click()")
    browser.wait(f"document.querySelectorAll('{CURVES}').length")


def test_stopped_while_a_sync_hangs_it_ends_all_the_same(ui, runs):
    assert ui.address
    with closing(sqlite3.connect(runs / ".mlflow" / "mlflow.db", isolation_level=None)) as database:
        wait_for(lambda: locked(database), "the database to be free")
        time.sleep(6)  # until the next sync waits for it
        assert ui.stop(signal.SIGTERM) == 0
        assert database.in_transaction


def locked(database):
    try:
        database.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_stopped_while_the_server_starts_nothing_is_left(ui, number):
    wait_for(ui.servers, "a server")
    assert ui.stop(number) == 0


def test_a_server_that_ends_by_itself_is_told(ui):
    wait_for(ui.servers, "a server")
    ui.servers()[0].kill()
    assert ui.process.wait(timeout=600) == 1
    assert any("the MLflow server" in line for line in ui.said)


def test_killed_it_leaves_no_server_either(ui):
    assert ui.address
    started = ui.servers()
    assert len(started) == 1
    ui.process.kill()
    ui.process.wait()
    wait_for(lambda: not any(process.is_running() for process in started), "the server's end")


# --- one machine, several users -----------------------------------------------------------------------------------

OTHER = 64001
NEEDS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="becomes another user; CI runs as root")


@pytest.fixture(scope="module")
def shared(runs, tmp_path_factory) -> Iterator[Ui]:
    """One `orch ui` for the tests that only ask."""
    started = Ui(runs, tmp_path_factory.mktemp("shared") / "said")
    assert started.address
    yield started
    started.process.terminate()
    started.process.wait(timeout=600)


def as_other(act):
    """Return what a function returns, as JSON, in a process of another user without any group or capability."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            os.setgroups([])
            os.setresgid(OTHER, OTHER, OTHER)
            os.setresuid(OTHER, OTHER, OTHER)
            os.write(writing, json.dumps(act()).encode())
        os._exit(0)  # without an answer, as after an error, the parent's `loads` fails
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        found = answer.read()
    os.waitpid(child, 0)
    return json.loads(found)


ASSISTANT_API = "/ajax-api/3.0/mlflow/assistant"
ATTACKS = [
    ("GET", "/", None),
    ("GET", "/health", None),
    ("HEAD", "/", None),
    ("OPTIONS", "/ajax-api/2.0/mlflow/runs/search", None),
    # The assistant, which ran a shell for everybody on the same machine, with the model of the attacker's address.
    ("PUT", f"{ASSISTANT_API}/config", {"providers": {"openai": {"base_url": "http://127.0.0.1:1", "selected": True}}}),
    ("POST", f"{ASSISTANT_API}/message", {"message": "touch PWNED", "experiment_id": "1"}),
    # Any file of the owner's: mlflow/mlflow#7166, and by a model's source: mlflow/mlflow#23500.
    ("GET", "/get-artifact?path=../../../../../../etc/passwd&run_uuid=x", None),
    ("POST", "/api/2.0/mlflow/model-versions/create", {"name": "m", "source": "file:///etc", "run_id": "x"}),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/PWNED", {"a": 1}),
    ("POST", "/ajax-api/2.0/mlflow/upload-artifact?run_uuid=x&path=PWNED", {"a": 1}),
    # A server of the attacker's that gets what we know: webhooks, and the gateway as a proxy.
    ("POST", "/api/2.0/mlflow/webhooks", {"name": "w", "url": "http://127.0.0.1:1"}),
    ("GET", "/ajax-api/2.0/mlflow/gateway-proxy?gateway_path=http://127.0.0.1:1", None),
    ("POST", "/ajax-api/3.0/mlflow/scorer/invoke", {"serialized_scorer": "__import__('os')"}),
    ("POST", "/api/2.0/mlflow/runs/search", {"experiment_ids": ["1"]}),
    ("POST", "/graphql", {"query": "{ mlflowSearchRuns { runs { info { runId } } } }"}),
    ("GET", "/static-files/index.html", None),
]


@NEEDS_ROOT
def test_another_user_gets_nothing_without_the_token_and_leaves_nothing(shared, runs):
    before, port = sorted(runs.rglob("*")), shared.port
    assert asked(port, "/")[0] == 401  # and all is imported that the other user may not read
    tries = [*ATTACKS, ("GET", "/?token=guessed", None), ("GET", f"/{'0' * 64}/", None)]
    found = as_other(lambda: [asked(port, path, method, sent)[0] for method, path, sent in tries])
    assert found == [401] * len(tries)
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "a" * 24,
        "Sec-WebSocket-Version": "13",
    }
    assert as_other(lambda: asked(port, "/", headers=upgrade)[0]) == 401
    assert sorted(runs.rglob("*")) == before


def test_with_the_token_too_the_attacks_get_no_shell_no_file_and_no_write(shared, runs):
    before = sorted(runs.rglob("*"))
    for method, path, sent in ATTACKS[4:13]:
        status, content = shared.ask(path, method, sent)
        assert status >= 400, path
        assert b"root:" not in content
    assert sorted(runs.rglob("*")) == before


@NEEDS_ROOT
def test_another_user_sees_no_secret_in_arguments_and_environments(shared):
    processes = [shared.process.pid, *(process.pid for process in shared.servers())]
    assert len(processes) >= 2
    shown = b"".join(Path(f"/proc/{pid}/{name}").read_bytes() for pid in processes for name in ("cmdline", "environ"))
    token = shared.token
    assert b"ui_server" in shown
    assert token.encode() not in shown

    def read():
        found = []
        for pid in processes:
            found.append(token in Path(f"/proc/{pid}/cmdline").read_text())
            for name in ("environ", "fd/0", "mem"):
                with suppress(PermissionError):
                    Path(f"/proc/{pid}/{name}").read_bytes()
                    found.append(True)
        return found

    assert as_other(read) == [False] * len(processes)


def test_the_server_has_loaded_no_assistant_gateway_or_job_runner(shared):
    server = shared.servers()[0]
    assert "orchestrator.tracking.ui_server" in server.cmdline()
    assert server.children() == []
    loaded = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADS], input=b"", capture_output=True, check=True
    ).stdout.decode()
    assert "mlflow.server.handlers" in loaded
    assert [
        name for name in loaded.split() if re.match(r"mlflow\.server\.(assistant|gateway_api|job_api|fastapi)", name)
    ] == []


LOADS = """
import sys
from pathlib import Path
from orchestrator.tracking.ui_server import _application
_application()
print(*sys.modules)
"""


def test_mlflows_client_reads_and_annotates_with_the_token(shared, monkeypatch):
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", shared.token)
    client = MlflowClient(f"http://127.0.0.1:{shared.port}")
    runs = client.search_runs(["1"])
    assert len(runs) == 5
    run = next(each.info.run_id for each in runs if each.data.tags["orch.kind"] == "run")  # and not their parent
    assert len(client.get_metric_history(run, "val/acc")) > 1
    client.set_tag(run, "verdict", "good")
    assert client.get_run(run).data.tags["verdict"] == "good"
    client.delete_tag(run, "verdict")
    for refused in (
        lambda: client.create_experiment("another"),
        lambda: client.rename_experiment("1", "another"),
        lambda: client.delete_experiment("1"),
        lambda: client.delete_run(run),
        lambda: client.log_metric(run, "val/acc", 1.0),
        lambda: client.set_terminated(run),
        lambda: client.set_tag(run, "orch.run", "x"),
        lambda: client.create_registered_model("m"),
    ):
        with pytest.raises(MlflowException, match="orch ui does not serve this"):
            refused()
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "another")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(MlflowException, match="401"):
        client.search_runs(["1"])


def test_it_answers_through_a_forwarded_port_by_both_names(shared):
    for host in ("localhost:9999", "127.0.0.1:9999"):
        assert shared.ask("/health", Host=host, Authorization=f"Bearer {shared.token}") == (200, b"OK")
    assert shared.ask("/health", Host="evil.example:9999", Authorization=f"Bearer {shared.token}")[0] == 403


def test_the_cookie_is_not_sent_to_another_port(shared, browser):
    """What another user's server on this machine gets from the browser of who looks at both."""
    base = log_in(browser, shared.address)
    browser.wait_for_text("sweep")
    assert [cookie["path"] for cookie in browser.driver.get_cookies() if cookie["name"] == "orch_ui"] == [
        urlsplit(base).path
    ]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        address = f"http://127.0.0.1:{port}/"
        browser.driver.execute_script("fetch(arguments[0], {mode: 'no-cors', credentials: 'include'})", address)
        connection, _ = listening.accept()
        with connection:
            asked_for = connection.recv(65536).decode()
    assert asked_for.startswith("GET / ")
    assert shared.token not in asked_for
    assert urlsplit(base).path not in asked_for
    assert "orch_ui" not in asked_for


def test_a_page_elsewhere_that_holds_the_url_leads_in(shared, browser, tmp_path):
    """As the file of `--open` is one, and a link in a mail; a browser keeps strict cookies from their redirects."""
    page = tmp_path / "page.html"
    page.write_text(f'<meta http-equiv="refresh" content="0;url={shared.address}">')
    browser.driver.delete_all_cookies()
    browser.open(page.as_uri())
    browser.wait("location.pathname.length > 60")
    browser.wait_for_text("sweep")


@contextmanager
def port_of_another() -> Iterator[int]:
    """A port on which another user's process listens."""
    reading, writing = os.pipe()
    ending, end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        os.setresuid(OTHER, OTHER, OTHER)
        with socket.create_server(("127.0.0.1", 0)) as squatting:
            os.write(writing, str(squatting.getsockname()[1]).encode())
            os.read(ending, 1)
        os._exit(0)
    try:
        yield int(os.read(reading, 10))
    finally:
        os.close(end)
        os.waitpid(child, 0)
        for descriptor in (reading, writing, ending):
            os.close(descriptor)


@NEEDS_ROOT
def test_a_port_that_another_user_has_is_never_presented_as_ours(tidy, runs, tmp_path):
    with port_of_another() as port:
        assert holders(port) == [OTHER]
        refused = Ui(runs, tmp_path / "refused", "--port", str(port))
        assert refused.process.wait(timeout=600) == 2
    assert any(f"port {port} cannot be used" in line for line in refused.said)
    assert any(f"a process of uid {OTHER} listens there" in line for line in refused.said)
    assert not any("http://" in line for line in refused.said)


def test_the_usual_port_or_the_next_free_one(shared):
    usual = usual_port(os.getuid())
    assert usual <= shared.port < usual + 50
    assert shared.port == usual or any(
        line.startswith(f"not on port {usual}, as usual: a process of") for line in shared.said
    )
    assert holders(shared.port) == [os.getuid()]


def test_the_browser_is_opened_by_a_file_and_not_by_an_argument(tidy, runs, tmp_path, monkeypatch):
    """As an argument, every user of the machine could read the token."""
    seen = tmp_path / "seen"
    script = tmp_path / "browser"
    script.write_text(f'#!/bin/sh\necho "$1" > "{seen}.part"; mv "{seen}.part" "{seen}"\n')
    script.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{script} %s")
    ui = Ui(runs, tmp_path / "said", "--open")
    wait_for(seen.exists, "a browser")
    page = Path(seen.read_text().strip().removeprefix("file://"))
    assert page.stat().st_mode & 0o777 == 0o600
    assert page.parent.stat().st_mode & 0o777 == 0o700
    assert ui.address in page.read_text()
    assert ui.token not in seen.read_text()
    assert ui.stop(signal.SIGTERM) == 0
    assert not page.exists()
