"""Nothing moves under a queued run: everything that it was launched from is broken while it waits, and it runs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from processes import ROOT, tidy, wait_for  # noqa: F401 - one is a fixture
from real_slurm import in_campaign, output

from orchestrator.clusters import observers
from orchestrator.layout import ExperimentPaths
from orchestrator.records.attempts import read_job_output
from orchestrator.records.experiment import read_experiment
from orchestrator.records.record import RunState
from orchestrator.slurm.cluster import jobs_of

pytestmark = pytest.mark.slurm

NETS = """
import shapes
from orchestrator.testing.net import Net

class Shaped(Net):
    def training_step(self, batch, batch_idx):
        from shapes.late import SIDES
        print(f"a {shapes.NAME} of {SIDES} sides")
        return super().training_step(batch, batch_idx)
"""
EXPERIMENT = """
# @package _global_
name: frozen
model: {_target_: nets.Shaped}
trainer: {max_steps: 2}
tracking: {kind: none}
cluster: {extra: {hold: true}}
"""
PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "NAME"
version = "1"
[tool.hatch.build.targets.wheel]
packages = PACKAGES
"""
BROKEN = "raise SystemExit('imported from the live checkout')\n"


class Environment:
    """A virtual environment of the test's own, over the one that the tests run in."""

    def __init__(self, folder):
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        (self._site,) = folder.glob("lib/python*/site-packages")
        (self._site / "zz_outer.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def install_editable(self, source):
        """Do what `pip install --editable` does: the build backend's own files, and pip's note of where it lies."""
        build = "import sys; from hatchling.build import build_editable; print(build_editable(sys.argv[1]))"
        wheels = source / "dist"
        wheels.mkdir()
        told = subprocess.run(
            [sys.executable, "-c", build, str(wheels)], cwd=source, capture_output=True, text=True, check=True
        )
        with zipfile.ZipFile(wheels / told.stdout.split()[-1]) as wheel:
            wheel.extractall(self._site)
            (info,) = {Path(name).parts[0] for name in wheel.namelist() if ".dist-info/" in name}
        note = {"url": source.as_uri(), "dir_info": {"editable": True}}
        (self._site / info / "direct_url.json").write_text(json.dumps(note))


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def wreck(folder):
    """Break every module of a folder, and delete the rest."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.suffix == ".py":
            path.write_text(BROKEN)
        elif path.is_file():
            path.unlink()


@pytest.mark.parametrize("project_is_installed", [pytest.param(False, marks=in_campaign), True])
def test_a_queued_run_needs_nothing_of_what_it_was_launched_from(project_is_installed, slurm, tmp_path, monkeypatch):
    engine, package, project = (tmp_path / name for name in ("the engine", "the package", "it's the project"))
    for name in ("orchestrator", "models", "datasets", "slurm", "conf"):
        shutil.copytree(ROOT / name, engine / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, engine)
    write(
        package,
        {
            "pyproject.toml": PYPROJECT.replace("NAME", "shapes").replace("PACKAGES", '["src/shapes"]'),
            "src/shapes/__init__.py": "NAME = 'polygon'\n",
            "src/shapes/late.py": "SIDES = 5\n",
        },
    )
    nets = "src/nets/__init__.py" if project_is_installed else "nets.py"
    write(project, {"conf/experiment/frozen.yaml": EXPERIMENT, nets: NETS})
    environment = Environment(tmp_path / "env")
    environment.install_editable(engine)
    environment.install_editable(package)
    if project_is_installed:
        write(project, {"pyproject.toml": PYPROJECT.replace("NAME", "nets").replace("PACKAGES", '["src/nets"]')})
        environment.install_editable(project)

    runs = tmp_path / "runs"
    monkeypatch.delenv("PYTHONPATH", raising=False)
    argv = [environment.python, "-m", "orchestrator", "launch", "experiment=frozen", "cluster=slurm", "--runs", runs]
    done = subprocess.run(argv, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for folder in (engine, package, project):
        wreck(folder)
    broken = subprocess.run(
        [environment.python, "-c", "import orchestrator"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "imported from the live checkout" in broken.stderr

    paths = ExperimentPaths(runs / "frozen")
    (job,) = jobs_of(paths.launch(1))
    output("scontrol", "release", f"{job.id}_0")
    wait_for(lambda: record(paths).state in {RunState.DONE, RunState.FAILED, RunState.INTERRUPTED}, "the run to end")
    attempt = paths.run(record(paths).id).attempt(1)
    assert record(paths).state is RunState.DONE, (record(paths), read_job_output(paths.launch(1), f"{job.id}_0"))
    assert attempt.log.read_text().count("a polygon of 5 sides\n") == 2


def record(paths):
    (only,) = read_experiment(paths, observers()).records.values()
    return only
