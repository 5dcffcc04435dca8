"""A project in a git repository, with a module that trains and one that is scripted, and the commands run in it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

from processes import ROOT, orch_argv

from orchestrator.clusters import observers
from orchestrator.layout import ExperimentPaths
from orchestrator.records.experiment import read_experiment
from orchestrator.records.record import RunState

NET = """
import os, signal, sys
from pathlib import Path
from pytorch_lightning.demos.boring_classes import BoringModel

class Net(BoringModel):
    def __init__(self, fails=False, dies_at=None):
        super().__init__()
        print("started as", *sys.orig_argv)
        self.fails, self.dies_at = fails, dies_at

    def training_step(self, batch, batch_idx):
        if self.fails:
            raise KeyError("label")
        if self.global_step == self.dies_at and not Path("../died").exists():
            Path("../died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        output = super().training_step(batch, batch_idx)
        self.log("train/loss", output["loss"])
        return output

    def validation_step(self, batch, batch_idx):
        output = super().validation_step(batch, batch_idx)
        self.log("val/loss", output["x"])
"""
BROKEN_NET = NET.replace("super().__init__()", "raise RuntimeError('edited after the launch')")
NET_EXPERIMENT = """
# @package _global_
name: nets
model: {_target_: nets.Net, fails: false, dies_at: null}
objective: {metric: val/loss, mode: min}
trainer: {max_epochs: 3, limit_train_batches: 4, limit_val_batches: 1, log_every_n_steps: 1}
resources: {attempts: {of: 1}}
sweep: {list: [{seed: 1}, {model.fails: true}, {model.dies_at: 6}]}
"""

PLAY = """
from orchestrator.testing.script import Script

class Play(Script):
    def value(self):
        return 1.0
"""
PLAY_EXPERIMENT = """
# @package _global_
name: plays
model: {_target_: plays.Play, steps: 1, until: null, ends: [done]}
tracking: {kind: none}
sweep: {grid: {seed: [0, 1, 2]}}
"""


class Desk:
    """A project's folder, and a terminal in it."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env
        (folder / "conf" / "experiment").mkdir(parents=True)
        for name, text in (("nets", NET), ("plays", PLAY)):
            (folder / f"{name}.py").write_text(text)
        for name, text in (("nets", NET_EXPERIMENT), ("plays", PLAY_EXPERIMENT)):
            (folder / "conf" / "experiment" / f"{name}.yaml").write_text(text)
        (folder / ".gitignore").write_text("__pycache__/\n")
        for command in (["init", "-q"], ["add", "--all"], ["commit", "-q", "-m", "start"]):
            subprocess.run(["git", *command], cwd=folder, env=env, check=True)

    def command(self, *words: str, played: bool = True) -> list[str]:
        """Return `orch WORDS` as an argv; with `played`, the scripted worker plays the runs."""
        return orch_argv(*words, played=played)

    def orch(self, *words: str, status: int = 0, played: bool = True) -> SimpleNamespace:
        command = self.command(*words, played=played)
        done = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return SimpleNamespace(out=done.stdout, err=done.stderr)

    def json(self, *words: str) -> object:
        return json.loads(self.orch(*words, "--json").out)

    def paths(self, name: str) -> ExperimentPaths:
        return ExperimentPaths(self.folder / "runs" / name)

    def states(self, name: str = "plays") -> list[RunState]:
        records = read_experiment(self.paths(name), observers()).records
        return [record.state for record in records.values()]

    def logs(self, name: str = "plays") -> str:
        return "".join(path.read_text() for path in sorted(self.paths(name).path.glob("runs/*/a*/log")))


def environ() -> dict[str, str]:
    who = {f"GIT_{role}_{what}": "a@b.c" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return {**os.environ, **who, "PYTHONPATH": str(ROOT)}
