"""What tracking costs a training step, with a server that works, is down, frozen, slow, or answers with errors.

One process trains: blocks of steps that are logged, with the uploader at work, alternate with blocks that are not, in
which the uploader is stopped. So both see the same machine within a second, and all that the uploader does falls into
the blocks that it is blamed for. Metrics are logged every 50th step, as Lightning's trainer does by default, and in
rows of their own at every step: with a server that works, and so on this machine, too, and with one that is down.
Server, proxy and uploader are processes of their own. The uploader has loaded MLflow by then, and tried to send once:
that is paid once per attempt, and told in CPU-seconds by the benchmark of the uploaders. Afterwards the server works
again, and must get everything.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import mean, median, stdev

import psutil
import torch
from mlflow import MlflowClient

from bench.measure import Row, say
from bench.records import make_experiment
from bench.sandbox import PYTHON, Sandbox
from bench.servers import Proxy, proxied, server, tracking
from orchestrator.layout import AttemptPaths, LaunchPaths
from orchestrator.tracking import SpoolWriter
from orchestrator.tracking.logger import SpoolLogger

_PAIRS = 100
_BLOCK_STEPS = 50  # 5,000 steps of each kind
_STEP_SECONDS = 0.004
_EVERY = 50  # `log_every_n_steps`, as it is unless somebody sets it
_FAULTS = (None, "down", "frozen", "slow", "500", "413")
_CASES = (*((fault, _EVERY) for fault in _FAULTS), (None, 1), ("down", 1))
_START_SECONDS, _LOADED_SECONDS = 60.0, 0.5
_METRICS = {"train/loss": 0.5, "train/acc": 0.9, "lr": 1e-3, "grad_norm": 1.5}


def rows(box: Sandbox) -> list[Row]:
    with server(box) as mlflow:
        found = []
        for fault, every in _CASES:
            with proxied(mlflow) as proxy:
                found.append(_row(box, proxy, fault, mlflow.address, every=every))
    return found


def _row(box: Sandbox, proxy: Proxy, fault: str | None, address: str, *, every: int) -> Row:
    name = f"a server that {'works' if fault is None else f'is {fault}' if fault.isalpha() else f'answers {fault}'}"
    name += "" if every == _EVERY else f", logged every {every}"
    say(f"steps: {name}")
    paths = make_experiment(
        box.folder / "runs", f"steps-{fault}-{every}", 1, running=1, tracking=tracking(proxy.address, name)
    )
    (run,) = paths.runs.iterdir()
    attempt = AttemptPaths(run / "a001")
    proxy.fault = fault
    with _uploader(box, paths.launch(1)) as uploader:
        with multiprocessing.get_context("spawn").Pool(1) as trainer:  # the proxy would hold up its own process
            pairs = trainer.apply(_train, (attempt.metrics, run / "artifacts", uploader.pid, every))
        proxy.fault = None
        uploader.send_signal(signal.SIGCONT)
        _end(uploader)
    _check(address, name, wanted=(_PAIRS + 1) * _BLOCK_STEPS // every)
    shares = [with_it / without - 1 for with_it, without in pairs]
    half = 1.96 * stdev(shares) / math.sqrt(len(shares))
    told = f"{mean(shares):+.2%}, 95 %: {mean(shares) - half:+.2%} .. {mean(shares) + half:+.2%}"
    return Row(
        what=f"a step, tracked, {name}: {told}", measured=[a for a, _ in pairs], peer="the same step, not tracked",
        peer_measured=[b for _, b in pairs], budget=1.01 * mean(b for _, b in pairs),
    )  # fmt: skip


def _train(spool: Path, artifacts: Path, uploader: int, every: int) -> list[tuple[float, float]]:
    """Return the seconds that a step takes, of blocks that are tracked and of ones that are not, pair by pair."""
    torch.set_num_threads(1)
    step = _step()
    with SpoolWriter(spool) as writer:
        logger = SpoolLogger(writer, artifacts)
        logger.log_metrics({"start": 0.0}, 0)
        _settle(psutil.Process(uploader))
        return _pairs(step, logger, uploader, every)


def _settle(uploader: psutil.Process) -> None:
    """Wait until the uploader has tried to send a first time, and waits."""
    used, deadline = 0.0, time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        time.sleep(2.0)
        before, used = used, sum(uploader.cpu_times()[:2])
        if used > _LOADED_SECONDS and used - before < 0.02:
            return
    raise RuntimeError(f"the uploader is still at work after {_START_SECONDS:.0f} s: {used:.1f} CPU-seconds")


def _pairs(step: Callable[[], None], logger: SpoolLogger, uploader: int, every: int) -> list[tuple[float, float]]:
    """Measure pairs of blocks, after one to warm up."""
    number = count()

    def tracked() -> float:
        os.kill(uploader, signal.SIGCONT)
        began = time.perf_counter()
        for _ in range(_BLOCK_STEPS):
            step()
            if (taken := next(number)) % every == 0:
                logger.log_metrics(_METRICS, taken)
        return (time.perf_counter() - began) / _BLOCK_STEPS

    def bare() -> float:
        os.kill(uploader, signal.SIGSTOP)
        began = time.perf_counter()
        for _ in range(_BLOCK_STEPS):
            step()
        return (time.perf_counter() - began) / _BLOCK_STEPS

    found = []
    for pair in range(_PAIRS + 1):  # whoever comes second finds another machine: they take turns
        first, second = (tracked, bare) if pair % 2 else (bare, tracked)
        one, other = first(), second()
        found.append((one, other) if pair % 2 else (other, one))
    return found[1:]


def _step() -> Callable[[], None]:
    """Return a training step of about the seconds wanted, on one core."""
    width = 64
    while True:
        step = _net(width)
        took = median(_timed(step) for _ in range(50))
        if took >= _STEP_SECONDS / 2 or width > 4096:
            break
        width *= 2
    repeats = max(1, round(_STEP_SECONDS / took))
    return lambda: [step() for _ in range(repeats)] and None


def _net(width: int) -> Callable[[], None]:
    net = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.ReLU(), torch.nn.Linear(width, 1))
    optimizer, batch = torch.optim.SGD(net.parameters(), lr=1e-6), torch.ones(32, width)

    def step() -> None:
        optimizer.zero_grad()
        net(batch).square().mean().backward()
        optimizer.step()

    return step


def _timed(act: Callable[[], None]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


@contextmanager
def _uploader(box: Sandbox, launch: LaunchPaths) -> Iterator[subprocess.Popen[bytes]]:
    """Start the uploader of a launch's first run; it is gone in the end, stopped or not."""
    process = subprocess.Popen(
        [PYTHON, "-m", "orchestrator.uploader", str(launch.path), "0"], stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **box.environment},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _end(uploader: subprocess.Popen[bytes]) -> None:
    uploader.communicate(b"\n")
    if uploader.returncode != 0:
        raise RuntimeError(f"the uploader left something behind: exit status {uploader.returncode}")


def _check(address: str, name: str, *, wanted: int) -> None:
    """Raise unless everything has arrived."""
    client = MlflowClient(address)
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id], "tags.`orch.kind` = 'run'") if experiment else []
    for key in _METRICS:
        arrived = len(client.get_metric_history(runs[0].info.run_id, key)) if runs else 0
        if arrived != wanted:
            raise RuntimeError(f"{arrived} of {wanted} values of {key} arrived")
