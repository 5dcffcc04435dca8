"""The default install holds what every run needs and nothing heavy; what lacks an extra says how to add it.

The tests run in an environment of links to the packages of this one that a default install has.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = {"dvc", "flask", "matplotlib", "mlflow", "optuna", "pandas", "plotly", "pyarrow", "scikit-learn", "scipy"}
CONF = """# @package _global_
defaults: [{override /data: synthetic}, {override /model: mlp}]
name: syn
objective: {metric: val/loss, mode: min}
trainer: {max_epochs: 1, limit_train_batches: 2}
"""

Orch = Callable[..., "subprocess.CompletedProcess[str]"]


def needed(requirements: Iterable[str]) -> set[str]:
    """Return the names of the distributions that an install brings."""
    found: set[str] = set()
    waiting = [(Requirement(each), "") for each in requirements]
    done = set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        found.add(name)
        for each in {"", *requirement.extras}:
            if (name, each) not in done:
                done.add((name, each))
                waiting += [(Requirement(text), each) for text in distribution(name).requires or ()]
    return found


@pytest.fixture(scope="module")
def default_install(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the default install; returns its Python."""
    folder = tmp_path_factory.mktemp("default") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    for name in needed(PROJECT["dependencies"]):
        installed = distribution(name)
        for part in {file.parts[0] for file in installed.files or () if file.parts[0] != ".."}:
            link = site / part
            if not link.exists():
                link.symlink_to(str(installed.locate_file(part)))
    (site / "ours.pth").write_text(f"{ROOT}\n")
    return folder / "bin" / "python"


@pytest.fixture
def orch(default_install: Path, tmp_path: Path) -> Orch:
    conf = tmp_path / "conf" / "experiment" / "syn.yaml"
    conf.parent.mkdir(parents=True)
    conf.write_text(CONF)
    homes = {f"XDG_{kind}_HOME": str(tmp_path / kind) for kind in ("CACHE", "STATE")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ORCH_"))}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [str(default_install), "-P", "-m", "orchestrator", *words]
        return subprocess.run(
            argv, cwd=tmp_path, env=environment | homes, capture_output=True, text=True, check=False, timeout=300
        )

    return run


def test_a_default_install_holds_nothing_heavy():
    assert not needed(PROJECT["dependencies"]) & HEAVY


def test_the_extra_all_is_every_extra_for_users():
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(everything).extras == PROJECT["optional-dependencies"].keys() - {"all", "dev", "bench"}


def test_a_default_install_trains_compares_and_tracks_a_run(orch: Orch):
    launched = orch("launch", "experiment=syn")
    assert launched.returncode == 0, launched.stderr
    assert "val/loss" in orch("compare", "syn").stdout
    synced = orch("ui", "--once")
    assert (synced.returncode, "syn: " in synced.stderr) == (0, True), synced.stderr
    for extra, words in {"plotly": ("compare", "syn", "--html", "a.html"), "mlflow": ("ui",)}.items():
        refuses(orch, extra, words)


def test_a_plan_that_lacks_an_extra_says_how_to_add_it(orch: Orch):
    plan = ("plan", "experiment=syn")
    refuses(orch, "optuna", (*plan, 'sweep.optuna={n: 3, space: {model.lr: "loguniform(1e-4, 1e-1)"}}'))
    refuses(orch, "mlflow", (*plan, "tracking.register=syn"))
    refuses(orch, "dvc", ("data", "resolve", "data=digits", f"data.version.repo={ROOT}"))


def refuses(orch: Orch, extra: str, words: tuple[str, ...]) -> None:
    refused = orch(*words)
    assert (refused.returncode, refused.stdout) == (2, ""), refused.stderr
    what, fix = refused.stderr.strip().splitlines()[-2:]
    assert f"needs {extra}, which is not installed" in what
    assert fix.startswith("fix: uv pip install -p ")  # the environment has no pip
    assert fix.endswith(f"'slurm-orchestrator[{extra}]'")
