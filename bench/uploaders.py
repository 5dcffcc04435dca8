"""The uploader: its cost for a job, its throughput to a server, and many uploaders against one server.

ORCH_BENCH_UPLOADERS sets their number (96). At most twelve share a process, each with its own thread, spool and
connections, next to four fits that log, and wait for most of a step as if a GPU computed it. Uploaders have no time
limit, so that points are measured, too, which a run's end would leave for `orch ui --once`. The server may have as many
connections to its database as its threads can need (docs/how-to/tracking.md).
"""

from __future__ import annotations

import os
import subprocess
import time

import psutil
from mlflow import MlflowClient
from mlflow.entities import Metric

from bench.measure import Row, in_turns, say
from bench.records import make_experiment
from bench.sandbox import PYTHON, Sandbox
from bench.servers import many_uploaders, server, tracking
from orchestrator.layout import ExperimentPaths
from orchestrator.tracking import SpoolWriter

_COUNT = int(os.environ.get("ORCH_BENCH_UPLOADERS", "96"))
_POINTS = 10_000
_POINTS_EACH = 2_000
_ROUNDS = 3
_FITS = 4
_END_SECONDS = 3_000


def rows(box: Sandbox) -> list[Row]:
    with server(box, connections=many_uploaders.CONNECTIONS) as mlflow:
        return [_alone(box), *_throughput(box, mlflow.address), _many(box, mlflow.address)]


def _alone(box: Sandbox) -> Row:
    """Return the CPU seconds of a job's uploader until it is idle; the row's name states its memory."""
    paths = _experiment(box, "alone", 1, "http://127.0.0.1:9")
    argv = [PYTHON, "-m", "orchestrator.tracking.uploader", str(paths.launch(1).path), "0"]
    sides: list[tuple[float, float]] = []
    for _ in range(_ROUNDS):
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=_env(box))
        seen = psutil.Process(process.pid)
        busy = [0.0, -1.0]
        while not (busy[-1] > 1 and busy[-1] - busy[-2] < 0.02):  # it has loaded everything, and is idle
            time.sleep(3)
            busy.append(sum(seen.cpu_times()[:2]))
        sides.append((busy[-1], seen.memory_full_info().uss / 1e6))
        process.kill()
        process.wait()
    most = max(memory for _, memory in sides)
    return Row(what=f"an uploader's start (CPU seconds; it holds {most:.0f} MB)", measured=[cpu for cpu, _ in sides])


def _throughput(box: Sandbox, address: str) -> list[Row]:
    """Return the time for points from a spool to the server, next to MLflow's client, which gets them all at once."""
    number = iter(range(1000))

    def ours() -> float:
        paths = _experiment(box, f"points{next(number)}", 1, address, points=_POINTS)
        return _carried(box, paths)

    def nothing() -> float:
        return _carried(box, _experiment(box, f"nothing{next(number)}", 1, address, points=1))

    client = MlflowClient(address)
    experiment = client.create_experiment("peer")

    def peer() -> float:
        run = client.create_run(experiment).info.run_id
        began = time.perf_counter()
        for chunk in _chunks(_POINTS, 1000):
            client.log_batch(run, [Metric("loss", step / 7, 1_000 + step, step) for step in chunk])
        return time.perf_counter() - began

    found = in_turns("uploaders", _ROUNDS, {"ours": ours, "nothing": nothing, "peer": peer})
    sent = [whole - start for whole, start in zip(found["ours"], found["nothing"], strict=True)]
    told = f"{_POINTS:,} points from a spool to the server"
    return [
        Row(what=told, measured=sent, peer="log_batch of 1,000", peer_measured=found["peer"]),
        Row(what="... with the uploader's start and its look-ups", measured=found["ours"]),
    ]


def _many(box: Sandbox, address: str) -> Row:
    paths = _experiment(box, "many", _COUNT, address, points=_POINTS_EACH)
    say(f"uploaders: {_COUNT} at once, and {_FITS} fits")
    fits = [subprocess.Popen([PYTHON, "-c", _FIT, str(box.folder / f"fit{i}")], env=_env(box)) for i in range(_FITS)]
    began = time.perf_counter()
    started = many_uploaders.start(paths.launch(1).path, _COUNT, _env(box))
    statuses = [process.wait() for process in started]
    took = time.perf_counter() - began
    for fit in fits:
        fit.kill()
        fit.wait()
    _check(address, statuses)
    return Row(what=f"{_COUNT} uploaders with {_POINTS_EACH:,} points each, beside {_FITS} fits", measured=[took])


def _chunks(count: int, size: int) -> list[range]:
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


_FIT = """
import itertools, sys, time
from pathlib import Path
import torch
from orchestrator.tracking import SpoolWriter
torch.set_num_threads(1)
net = torch.nn.Linear(512, 512)
Path(sys.argv[1]).mkdir()
spool = SpoolWriter(Path(sys.argv[1]) / "metrics.jsonl")
for step in itertools.count():
    net(torch.ones(32, 512)).square().mean().backward()
    spool.metrics({"loss": 1.0}, step)
    time.sleep(0.02)
"""


def _check(address: str, statuses: list[int]) -> None:
    client = MlflowClient(address)
    experiment = client.get_experiment_by_name("many")
    runs = client.search_runs([experiment.experiment_id], "tags.`orch.kind` = 'run'") if experiment else []
    ids = {run.data.tags["orch.run"] for run in runs}
    whole = all(len(client.get_metric_history(run.info.run_id, "loss")) == _POINTS_EACH for run in runs)
    if any(statuses) or len(runs) != _COUNT or len(ids) != _COUNT or not whole:
        raise RuntimeError(f"{len(runs)} runs of {_COUNT} arrived, whole: {whole}; exit statuses {statuses}")


def _experiment(box: Sandbox, name: str, count: int, address: str, *, points: int = 1) -> ExperimentPaths:
    """Write an experiment whose runs are under way and have logged this many points each."""
    options = tracking(address, name, end_seconds=_END_SECONDS)
    paths = make_experiment(box.folder / "runs", name, count, running=count, tracking=options)
    for run in paths.runs.iterdir():
        with SpoolWriter(run / "a001" / "metrics.jsonl") as spool:
            for step in range(points):
                spool.metrics({"loss": step / 7}, step)
    return paths


def _carried(box: Sandbox, paths: ExperimentPaths) -> float:
    """Return the seconds from an uploader's start until it has sent everything and ended."""
    argv = [PYTHON, "-m", "orchestrator.tracking.uploader", str(paths.launch(1).path), "0"]
    began = time.perf_counter()
    subprocess.run(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=_env(box), check=True)
    return time.perf_counter() - began


def _env(box: Sandbox) -> dict[str, str]:
    return {**os.environ, **box.environment}
