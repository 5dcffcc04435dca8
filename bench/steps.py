"""The cost of tracking for a training step, with a server that works, is down, frozen, slow, or answers with errors.

In a Lightning fit, blocks of steps with the logger and the uploader alternate with blocks without any logger, in which
the uploader is stopped. Both kinds see the same machine within a second, and everything that the uploader does falls
into the blocks that it is charged to. There are as many blocks as are needed to know the difference to 0.25 %, or to
find that the machine is too noisy. Metrics are logged every 50th step, Lightning's default, and in separate rows at
every step. Server, proxy and uploader are separate processes. By then the uploader has loaded MLflow and tried to send
once: this cost occurs once per attempt, and the benchmark of uploaders reports it in CPU seconds. Afterwards the server
works again, and has to receive everything.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from statistics import mean, median, stdev
from typing import Any

import psutil
import torch
from mlflow import MlflowClient
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from bench.measure import Row, say, timed
from bench.records import make_experiment
from bench.sandbox import PYTHON, Sandbox
from bench.servers import Proxy, proxied, server, tracking
from orchestrator.layout import AttemptPaths, LaunchPaths
from orchestrator.tracking import SpoolWriter
from orchestrator.tracking.logger import SpoolLogger

_KNOWN = 0.0025  # the target for half of the 95 % interval
_PAIRS = (100, 1_500)  # at least, and at most
_BLOCK_STEPS = 50
_COMPUTED_SECONDS = 0.003  # of a step; Lightning itself takes about another millisecond
_WIDTH = 256
_EVERY = 50  # the default of `log_every_n_steps`
_FAULTS = (None, "down", "frozen", "slow", "500", "413")
_CASES = (*((fault, _EVERY) for fault in _FAULTS), (None, 1), ("down", 1))
_START_SECONDS, _LOADED_SECONDS = 60.0, 0.5
_METRICS = {"train/loss": 0.5, "train/acc": 0.9, "lr": 1e-3, "grad_norm": 1.5}

Pairs = list[tuple[float, float]]
"""The seconds per step of a tracked block and of the untracked block next to it, for each pair."""


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
        with multiprocessing.get_context("spawn").Pool(1) as trainer:  # the proxy would slow down its own process
            pairs = trainer.apply(_train, (attempt, uploader.pid, every))
        proxy.fault = None
        uploader.send_signal(signal.SIGCONT)
        _end(uploader)
    _check(address, name, wanted=(len(pairs) + 1) * _BLOCK_STEPS // every)
    shares, half = _shares(pairs), _half_interval(pairs)
    told = f"{mean(shares):+.2%}, 95 %: {mean(shares) - half:+.2%} .. {mean(shares) + half:+.2%}, {len(pairs)} pairs"
    return Row(
        what=f"a step, tracked, {name}: {told}",
        measured=[a for a, _ in pairs],
        peer="the same step, no logger",
        peer_measured=[b for _, b in pairs],
        at_most=1.01,
    )


def _shares(pairs: Pairs) -> list[float]:
    return [with_it / without - 1 for with_it, without in pairs]


def _half_interval(pairs: Pairs) -> float:
    return 1.96 * stdev(_shares(pairs)) / math.sqrt(len(pairs))


def _train(attempt: AttemptPaths, uploader: int, every: int) -> Pairs:
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with SpoolWriter(attempt.metrics) as writer:
        logger = SpoolLogger(writer, attempt)
        logger.log_metrics({"start": 0.0}, 0)
        _settle(psutil.Process(uploader))
        blocks = _Blocks(logger, uploader)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=logger,
            log_every_n_steps=every,
            callbacks=[blocks],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(_Model(), repeat(torch.ones(32, _WIDTH)))
    return blocks.pairs


class _Blocks(Callback):
    """Switches tracking on and off, and measures the seconds per step of each block, after a warm-up pair."""

    def __init__(self, logger: SpoolLogger, uploader: int) -> None:
        self._logger, self._uploader = logger, uploader
        self._blocks: list[float] = []
        self._steps = 0
        self._began = 0.0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self._steps % _BLOCK_STEPS == 0:
            if self._steps:
                self._blocks.append((time.perf_counter() - self._began) / _BLOCK_STEPS)
            trainer.should_stop = self._known()
            # The second block of a pair finds the machine in another state, so their order alternates: a b b a.
            tracked = len(self._blocks) % 4 in (0, 3) and not trainer.should_stop
            trainer.loggers = [self._logger] if tracked else []
            os.kill(self._uploader, signal.SIGCONT if tracked else signal.SIGSTOP)
            self._began = time.perf_counter()
        self._steps += 1

    @property
    def pairs(self) -> Pairs:
        """The complete pairs, without the first one, which is the warm-up."""
        found = zip(self._blocks[2::2], self._blocks[3::2], strict=False)
        return [(one, other) if number % 2 else (other, one) for number, (one, other) in enumerate(found)]

    def _known(self) -> bool:
        least, most = _PAIRS
        pairs = len(self._blocks) // 2 - 1
        is_pair = len(self._blocks) % 2 == 0
        return is_pair and pairs >= least and (pairs >= most or _half_interval(self.pairs) <= _KNOWN)


class _Model(LightningModule):
    """A training step that computes for some three milliseconds, and logs four metrics."""

    def __init__(self) -> None:
        super().__init__()
        self._net = nn.Sequential(nn.Linear(_WIDTH, _WIDTH), nn.ReLU(), nn.Linear(_WIDTH, 1))
        batch = torch.ones(32, _WIDTH)
        took = median(timed(lambda: torch.autograd.backward(self._loss(batch))) for _ in range(50))
        self._passes = max(1, round(_COMPUTED_SECONDS / took))

    def training_step(self, batch: Tensor) -> Tensor:
        loss = sum((self._loss(batch) for _ in range(self._passes)), start=torch.zeros(()))
        self.log_dict({**_METRICS, "train/loss": loss.detach()})
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)

    def _loss(self, batch: Tensor) -> Tensor:
        output: Tensor = self._net(batch)
        return output.square().mean()


def _settle(uploader: psutil.Process) -> None:
    """Wait until the uploader has tried to send for the first time, and is idle."""
    used, deadline = 0.0, time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        time.sleep(2.0)
        before, used = used, sum(uploader.cpu_times()[:2])
        if used > _LOADED_SECONDS and used - before < 0.02:
            return
    raise RuntimeError(f"the uploader is still at work after {_START_SECONDS:.0f} s: {used:.1f} CPU-seconds")


@contextmanager
def _uploader(box: Sandbox, launch: LaunchPaths) -> Iterator[subprocess.Popen[bytes]]:
    """Start the uploader of a launch's first run; end it after the body, even if it is stopped."""
    process = subprocess.Popen(
        [PYTHON, "-m", "orchestrator.tracking.uploader", str(launch.path), "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **box.environment},
    )
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
    """Raise RuntimeError unless everything has arrived."""
    client = MlflowClient(address)
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id], "tags.`orch.kind` = 'run'") if experiment else []
    for key in _METRICS:
        arrived = len(client.get_metric_history(runs[0].info.run_id, key)) if runs else 0
        if arrived != wanted:
            raise RuntimeError(f"{arrived} of {wanted} values of {key} arrived")
