"""`orch ui`: what a person sees of a sweep in MLflow, in a real browser; and that it leaves nothing behind."""

from __future__ import annotations

import itertools
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from browser import Browser
from processes import wait_for
from swept import swept

GRID = [{"model.lr": lr, "seed": seed} for lr, seed in itertools.product([0.001, 0.01], [0, 1])]
EXPANDS = ".ag-row button[data-component-id*=runnamecellrenderer]"
ASSISTANT = "[data-component-id='mlflow.assistant.chat_panel.close']"


class Ui:
    """A running `orch ui`, and the server that it has started."""

    def __init__(self, runs: Path, log: Path) -> None:
        self._log = log
        argv = [sys.executable, "-m", "orchestrator", "ui", "--runs", str(runs)]
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
    port = address.rpartition(":")[2]
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
    browser.open(f"{address}/#/experiments/1/runs")
    browser.wait_for_text("5 matching runs")
    browser.ask(f'document.querySelector("{ASSISTANT}")?.click()')


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
    assert len(started) >= 2
    ui.process.kill()
    ui.process.wait()
    wait_for(lambda: not any(process.is_running() for process in started), "the server's end")
