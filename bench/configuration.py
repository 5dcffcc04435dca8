"""The budget configuration: the project with which launches are measured.

It has more than 100 leaves, two choices of a config group, three interpolations that read swept keys, a git repository
of 2,000 files with uncommitted changes, and a data version that DVC tracks.
"""

from __future__ import annotations

from pathlib import Path

from bench.sandbox import PYTHON, Sandbox

_FILES = 2_000
_CHANGED = 40
_UNTRACKED = 20
_DATA_FILES = 500
_OPTIONS = 60

MODELS = ("small", "large")
LEARNING_RATES = ("1e-4", "2e-4", "5e-4", "1e-3", "2e-3", "5e-3", "1e-2", "2e-2", "5e-2", "1e-1")
SEEDED = len(MODELS) * len(LEARNING_RATES)
"""The number of points that the experiment has for each seed."""

_EXPERIMENT = """\
# @package _global_
defaults:
  - override /model: small
  - override /data: tracked
  - override /cluster: workstation
name: budget
objective: {{metric: val/acc, mode: max}}
trainer: {{max_epochs: 3}}
vars: {{label: "lr-${{model.lr}}-seed-${{seed}}"}}
sweep:
  grid:
    model: [{models}]
    model.lr: [{rates}]
"""
_DATA = """\
_target_: budget_package.data.Tracked
folder: ${view:}
seed: ${seed}
label: ${vars.label}
batch_size: 32
version: {source: dvc, repo: ., path: data/files, rev: HEAD}
"""
_MODULE = """\
import pytorch_lightning as pl


class {name}(pl.{base}):
    def __init__(self, *, {arguments}):
        super().__init__()
"""
_GIT = ("git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0")


def sweep_of(points: int) -> list[str]:
    """Return the overrides with which the experiment has this many points, a multiple of SEEDED."""
    return ["experiment=budget", f"seed=range(0,{points // SEEDED})"]


def make_project(box: Sandbox, project: Path, *, files: int = _FILES) -> None:
    """Write the project, with this many source files."""
    _write_conf(project / "conf")
    _write_package(project, files)
    for i in range(_DATA_FILES):
        _write(project / "data" / "files" / f"{i:04d}.csv", f"{i},{i * i}\n" * 50)
    git = [*_GIT, "-C", str(project)]
    box.run([*git, "init", "-q"])
    for words in (["init", "-q"], ["add", "-q", "data/files"]):
        box.run([PYTHON, "-m", "dvc", *words], cwd=project)
    box.run([*git, "add", "-A"])
    box.run([*git, "commit", "-qm", "everything"])
    box.run([*git, "gc", "-q"])  # packed, as in a clone
    for i in range(_CHANGED):
        _write(project / "source" / f"{i % 40:02d}" / f"module_{i}.py", "CHANGED = True\n")
    for i in range(_UNTRACKED):
        _write(project / "source" / f"new_{i}.py", "NEW = True\n")


def _write_conf(conf: Path) -> None:
    experiment = _EXPERIMENT.format(models=", ".join(MODELS), rates=", ".join(LEARNING_RATES))
    _write(conf / "experiment" / "budget.yaml", experiment)
    _write(conf / "data" / "tracked.yaml", _DATA)
    for name, width in (("small", 64), ("large", 512)):
        options = "".join(f"option_{i}: {i / 10}\n" for i in range(_OPTIONS))
        target = "_target_: budget_package.model.Net\n"
        _write(conf / "model" / f"{name}.yaml", f"{target}lr: 1e-3\nwarmup_lr: ${{.lr}}\nwidth: {width}\n{options}")


def _write_package(project: Path, files: int) -> None:
    options = ["lr: float", "warmup_lr: float", "width: int", *(f"option_{i}: float" for i in range(_OPTIONS))]
    data = ["folder: str", "seed: int", "label: str", "batch_size: int"]
    package = project / "budget_package"
    _write(package / "__init__.py", "")
    _write(package / "model.py", _MODULE.format(name="Net", base="LightningModule", arguments=", ".join(options)))
    _write(package / "data.py", _MODULE.format(name="Tracked", base="LightningDataModule", arguments=", ".join(data)))
    for i in range(files):
        _write(project / "source" / f"{i % 40:02d}" / f"module_{i}.py", f"NUMBER = {i}\n" * 60)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
