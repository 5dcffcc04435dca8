"""`orch status`, small and large, next to just reading the same files, which is the lower bound.

Also other readers of the records: the overview, the redraw of `status -w`, a launch that finds all runs done.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable

from bench.measure import Row, Seconds, in_turns, say
from bench.records import files_read, finish, make_experiment
from bench.sandbox import PYTHON, Sandbox
from orchestrator.layout import ExperimentPaths, RunsRoot

_LARGE = 10_000
_SIZES = {10: None, 1_000: None, _LARGE: 0.6}
_RUNNING_AT_MOST = 0.7
_RUNNING = 300
_ROUNDS = 5
_PEER = "read and parse the same files, no more"
_READ = """
import json, sys
for path in sys.stdin.read().splitlines():
    with open(path, 'rb') as file:
        for line in file:
            json.loads(line)
"""
_REDRAW = """
import sys, time
from pathlib import Path
from orchestrator import api
from orchestrator.cli.status_table import status_lines
from orchestrator.project import find_project
read = api.reader(find_project(Path(), runs=sys.argv[1]), "sweep")
read()
began, times = time.process_time(), 5
for _ in range(times):
    state = read()
    status_lines(state, list(state.records.values()))
print((time.process_time() - began) / times)
"""


def rows(box: Sandbox) -> list[Row]:
    experiments = {count: _experiment(box, count) for count in _SIZES}
    ended = [
        _row(box, f"orch status ({n:,} runs)", _status(box, experiments[n]), _SIZES[n], experiments[n]) for n in _SIZES
    ]
    running = _experiment(box, _LARGE, running=_RUNNING)
    return [
        *ended,
        _row(box, f"... {_RUNNING} of {_LARGE:,} running", _status(box, running), _RUNNING_AT_MOST, running),
        _row(
            box,
            f"... {_LARGE:,} runs, the first time",
            _first_status(box, experiments[_LARGE]),
            None,
            experiments[_LARGE],
        ),
        *_others(box, running),
    ]


def _others(box: Sandbox, running: ExperimentPaths) -> list[Row]:
    runs = running.path.parent
    make_experiment(runs, "another", _LARGE)
    again = _launched(box)
    box.settle()
    sides = {
        f"orch status (2 experiments of {_LARGE:,} runs)": lambda: box.seconds(box.orch("status", "--runs", str(runs))),
        f"orch status -w ({_LARGE:,} runs), CPU of a redraw": lambda: float(
            box.run([PYTHON, "-c", _REDRAW, str(runs)])
        ),
        f"orch launch ({_LARGE:,} runs, all done)": again,
    }
    found = in_turns("what else reads the records", 3, sides)
    return [Row(what=what, measured=seconds) for what, seconds in found.items()]


def _launched(box: Sandbox) -> Callable[[], Seconds]:
    """Launch a large experiment, record that its runs are done, and return a function that launches it again."""
    project, runs = box.folder / "project", box.folder / "runs-again"
    project.mkdir()
    words = ["name=again", "model=mlp", "data=synthetic", "cluster=workstation", f"seed=range(0,{_LARGE})"]
    argv = box.orch("launch", *words, "--yes", "--runs", str(runs))
    say(f"status: launching {_LARGE:,} runs")
    with box.idle_workstation():
        box.run(argv, cwd=project)
    finish(RunsRoot(runs).experiment("again"))
    return lambda: box.seconds(argv, cwd=project)


def _experiment(box: Sandbox, count: int, *, running: int = 0) -> ExperimentPaths:
    say(f"status: writing the records of {count:,} runs")
    return make_experiment(box.folder / f"runs-{count}-{running}", "sweep", count, running=running)


def _status(box: Sandbox, paths: ExperimentPaths) -> Callable[[], Seconds]:
    return lambda: box.seconds(box.orch("status", paths.name, "--runs", str(paths.path.parent)))


def _first_status(box: Sandbox, paths: ExperimentPaths) -> Callable[[], Seconds]:
    def look() -> Seconds:
        shutil.rmtree(box.folder / "cache" / "orchestrator" / "records", ignore_errors=True)
        return _status(box, paths)()

    return look


def _row(box: Sandbox, what: str, ours: Callable[[], Seconds], at_most: float | None, paths: ExperimentPaths) -> Row:
    listing = box.folder / "files"
    listing.write_text("\n".join(map(str, files_read(paths))))
    box.settle()
    peer = ["sh", "-c", 'exec "$0" -c "$1" < "$2"', PYTHON, _READ, str(listing)]
    found = in_turns(what, _ROUNDS, {"ours": ours, "peer": lambda: box.seconds(peer)})
    return Row(what=what, measured=found["ours"], at_most=at_most, peer=_PEER, peer_measured=found["peer"])
