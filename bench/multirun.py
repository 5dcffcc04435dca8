"""The peer of a launch: Hydra's own multirun with its submitit launcher, on the same configuration.

It blocks until its last job has ended, so the time is measured until its array is in Slurm's queue; then the process is
killed, and its jobs are cancelled.
"""

from __future__ import annotations

import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from bench.configuration import LEARNING_RATES, MODELS, SEEDED
from bench.measure import Cost
from bench.sandbox import PYTHON, Sandbox, killed
from bench.slurm import BusySlurm

_APP = """
import hydra
from omegaconf import OmegaConf
OmegaConf.register_new_resolver("view", lambda: "view")

@hydra.main(version_base=None, config_path="pkg://orchestrator.conf", config_name="config")
def train(config):
    pass

if __name__ == "__main__":
    train()
"""
_PATIENCE_SECONDS = 600
_LOOK_EVERY_SECONDS = 0.05


@dataclass(frozen=True, kw_only=True)
class Multirun:
    """Launches the budget configuration's points with Hydra. `home` holds the project and Hydra's output."""

    box: Sandbox
    slurm: BusySlurm
    home: Path

    def queue(self, points: int) -> Cost:
        """Return the cost until this many points are in the queue, which is then cleared."""
        name = f"multirun-{uuid.uuid4().hex[:8]}"
        app, log = self.box.folder / "multirun.py", self.box.folder / f"{name}.log"
        app.write_text(_APP)
        argv = [PYTHON, str(app), *self._overrides(points), f"hydra.sweep.dir={self.home}/{name}"]
        began = time.perf_counter()
        process = self.box.start(argv, cwd=self.home / "project", env=self.slurm.environment, log=log)
        try:
            self._await(process, points, log)
        finally:
            seconds = time.perf_counter() - began
            cpu_seconds = killed(process)
        self.slurm.clear()
        return Cost(seconds=seconds, cpu_seconds=cpu_seconds)

    def _overrides(self, points: int) -> list[str]:
        conf = f"hydra.searchpath=[file://{self.home}/project/conf]"
        return [
            "--multirun",
            "hydra/launcher=submitit_slurm",
            conf,
            "experiment=budget",
            f"model={','.join(MODELS)}",
            f"model.lr={','.join(LEARNING_RATES)}",
            f"seed=range(0,{points // SEEDED})",
        ]

    def _await(self, process: subprocess.Popen[bytes], points: int, log: Path) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self.slurm.waiting() != points:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Hydra's multirun queued nothing: {log.read_text()[-2000:]}")
            time.sleep(_LOOK_EVERY_SECONDS)
