"""Tiny runs packed into one job of a real Slurm, next to one array task each, and to plain scripts one after another.

Each is a Lightning fit of 50 steps with a checkpoint and an MLflow run. `orch` is measured from the start of
`orch launch` until all runs have ended and are in the tracking store, on a node with this machine's CPUs. As many runs
of a pack, or array tasks, run at once as there are CPUs. A script logs directly to a store of its own.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.measure import Row, Seconds, in_turns, say, timed
from bench.sandbox import PYTHON, Sandbox
from orchestrator.slurm.devcluster import DevCluster, Options, available

_RUNS = 200
_PEER_RUNS = (10, 40)
_SCRIPTS = 10
_ROUNDS = 2
_CPUS = len(os.sched_getaffinity(0))
_EXPERIMENT = """\
# @package _global_
defaults:
  - override /cluster: slurm
  - override /tracking: embedded
name: tiny
model: {_target_: pytorch_lightning.demos.boring_classes.BoringModel}
trainer: {max_epochs: 1, limit_train_batches: 50, limit_val_batches: 2}
"""
_SCRIPT = """
import os, sys
import pytorch_lightning as pl
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.loggers import MLFlowLogger
pl.seed_everything(int(sys.argv[1]), workers=True, verbose=False)
trainer = pl.Trainer(
    max_epochs=1, limit_train_batches=50, limit_val_batches=2, accelerator="cpu", devices=1,
    logger=MLFlowLogger("tiny", tracking_uri="sqlite:///mlflow.db", artifact_location="artifacts"),
    enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(BoringModel())
os._exit(0)
"""


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """Runs many tiny fits, each time in a new folder."""

    box: Sandbox
    environment: Mapping[str, str]
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def launched(self, runs: int, *words: str) -> Seconds:
        """Return the seconds until all runs of a launch are done and tracked. Raises RuntimeError if one is not."""
        folder = self.box.folder / f"runs-{next(self._numbers)}"
        launch = self._orch(folder, "launch", "experiment=tiny", f"seed=range(0,{runs})", *words, "--wait")
        sync = self._orch(folder, "ui", "--once")
        seconds = timed(lambda: (self._run(launch), self._run(sync)))
        told = json.loads(self._run(self._orch(folder, "status", "tiny", "--json")))
        if (done := sum(run["state"] == "done" for run in told["runs"])) != runs:
            raise RuntimeError(f"{done} of {runs} runs are done")
        return seconds

    def scripts(self, runs: int) -> Seconds:
        """Return the seconds that plain scripts take one after another, with an existing store."""
        folder = self.box.folder / f"scripts-{next(self._numbers)}"
        folder.mkdir()

        def script(seed: int) -> None:
            self.box.run([PYTHON, "-c", _SCRIPT, str(seed)], cwd=folder, env={"OMP_NUM_THREADS": "1"})

        script(runs)
        return timed(lambda: [script(seed) for seed in range(runs)])

    def _orch(self, folder: Path, *words: str) -> list[str]:
        return [*self.box.orch(*words), "--runs", str(folder)]

    def _run(self, argv: list[str]) -> bytes:
        return self.box.run(argv, cwd=self.box.folder / "project", env=self.environment)


def rows(box: Sandbox) -> list[Row]:
    if (why := available()) is not None:
        say(f"pack: not measured: {why}")
        return []
    with node(box) as environment:
        return measured(box, environment)


def measured(
    box: Sandbox,
    environment: Mapping[str, str],
    *,
    runs: int = _RUNS,
    peer_runs: tuple[int, int] = _PEER_RUNS,
    scripts: int = _SCRIPTS,
    rounds: int = _ROUNDS,
) -> list[Row]:
    """Return the rows for this many runs in one pack; the times of the peers are extrapolated from fewer runs."""
    (box.folder / "project" / "conf" / "experiment").mkdir(parents=True)
    (box.folder / "project" / "conf" / "experiment" / "tiny.yaml").write_text(_EXPERIMENT)
    tiny, (few, more) = Tiny(box=box, environment=environment), peer_runs
    pack = f"resources.pack={{runs: {runs}, at_once: {min(_CPUS, runs)}}}"
    found = in_turns(
        "pack",
        rounds,
        {
            "packed": partial(tiny.launched, runs, pack),
            "few": partial(tiny.launched, few),
            "more": partial(tiny.launched, more),
            "scripts": partial(tiny.scripts, scripts),
        },
        warm_up=False,
    )
    tasks = [a + (b - a) * (runs - few) / (more - few) for a, b in zip(found["few"], found["more"], strict=True)]
    plain = [seconds / scripts * runs for seconds in found["scripts"]]
    what, peer = f"{runs} tiny runs, packed", f"one array task each ({few} and {more}, extrapolated)"
    return [
        Row(what=what, measured=found["packed"], peer=peer, peer_measured=tasks, at_least=10.0),
        Row(
            what="... beside plain scripts",
            measured=found["packed"],
            peer=f"one after another ({scripts}, times {runs / scripts:g})",
            peer_measured=plain,
            at_least=25.0,
        ),
    ]


@contextmanager
def node(box: Sandbox) -> Iterator[dict[str, str]]:
    """Bring up a development cluster of one node with this machine's CPUs; yield its environment variables."""
    with tempfile.TemporaryDirectory(prefix="dc-", dir="/tmp") as folder:  # sockets need short names
        cluster = DevCluster(Path(folder) / "state")
        try:
            cluster.up(Options(nodes=1, gpus=0, cpus=_CPUS, shares=(str(box.folder),)))
            yield cluster.environ()
        finally:
            cluster.down()
