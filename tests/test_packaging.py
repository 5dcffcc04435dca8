"""One package, found under the same names from a wheel, an editable install and a plain copy of the tree.

The wheel's file list is pinned in tests/wheel_files.txt; `python tests/test_packaging.py` writes it anew.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PINNED = ROOT / "tests" / "wheel_files.txt"
FOLDERS = ("orchestrator", "models", "datasets", "slurm", "conf")

NAMES = (
    "orchestrator.cli",
    "orchestrator.conf",
    "orchestrator.datasets.digits",
    "orchestrator.datasets.synthetic",
    "orchestrator.models.convnet",
    "orchestrator.models.mlp",
    "orchestrator.slurm.devcluster",
)
REPORT = """
import importlib, json, pathlib, sys
import datasets
modules = [importlib.import_module(name) for name in json.loads(sys.argv[1])]
conf = pathlib.Path(sys.modules["orchestrator.conf"].__file__).parent
print(json.dumps({
    "stub": getattr(datasets, "STUB", None),
    "files": [module.__file__ for module in modules],
    "config": (conf / "config.yaml").is_file(),
}))
"""


def _build(kind: str, root: Path, into: Path) -> Path:
    """Build a `wheel`, or what an `editable` install unpacks, with this interpreter's hatchling."""
    into.mkdir(parents=True, exist_ok=True)
    code = f"import sys; from hatchling.build import build_{kind}; build_{kind}(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(into)], cwd=root, check=True, capture_output=True)
    (built,) = into.glob("*.whl")
    return built


def _files(wheel: Path) -> list[str]:
    """Return the names in a wheel, without the version: it is no reason to pin the list anew."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    version = wheel.name.split("-")[1]
    return sorted(name.replace(f"-{version}.dist-info/", ".dist-info/") for name in names)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain copy of what a snapshot holds, in a folder with a space."""
    copy = tmp_path_factory.mktemp("a tree")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built as a user's `pip install .` does."""
    into = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(into), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = into.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which another package is called `datasets`, as Hugging Face's is."""
    folder = tmp_path_factory.mktemp("other")
    (folder / "datasets").mkdir()
    (folder / "datasets" / "__init__.py").write_text('STUB = "not ours"\n', encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def site_packages(wheel: Path, stub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the other `datasets`, and our wheel installed beside it."""
    folder = tmp_path_factory.mktemp("installed") / "site-packages"
    shutil.copytree(stub, folder)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    done = subprocess.run([*command, str(wheel)], check=True, capture_output=True, text=True)
    assert "already exists" not in done.stderr  # pip leaves out a folder that another package has
    return folder


def _report(path: list[Path], cwd: Path) -> dict[str, object]:
    """Import all NAMES in a fresh interpreter and return where they came from."""
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, "-c", REPORT, json.dumps(NAMES)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report: dict[str, object] = json.loads(done.stdout)
    return report


def _in(folder: Path) -> list[str]:
    """Return where the modules of NAMES lie in a wheel that is unpacked in `folder`."""
    return [_file(folder / Path(*name.split("."))) for name in NAMES]


def _in_checkout(root: Path) -> list[str]:
    """Return where the modules of NAMES lie in a checkout: all but the engine beside it."""
    parts = [name.split(".") for name in NAMES]
    return [_file(root / Path(*(part if part[1] == "cli" else part[1:]))) for part in parts]


def _file(module: Path) -> str:
    return str(module / "__init__.py" if module.is_dir() else module.with_suffix(".py"))


def test_the_wheel_holds_exactly_the_pinned_files(wheel: Path) -> None:
    pinned = PINNED.read_text(encoding="utf-8").splitlines()
    assert _files(wheel) == pinned, "if this is wanted: python tests/test_packaging.py"


def test_the_wheel_owns_one_top_level_name(wheel: Path) -> None:
    assert {name.split("/")[0] for name in _files(wheel)} == {"orchestrator", "slurm_orchestrator.dist-info"}


def test_the_wheel_holds_all_source_and_configuration(wheel: Path) -> None:
    kept = {".py", ".yaml"}
    ours = {path.relative_to(ROOT).as_posix() for name in FOLDERS for path in (ROOT / name).rglob("*")}
    source = {name for name in ours if Path(name).suffix in kept}
    inside = {name if name.startswith("orchestrator/") else f"orchestrator/{name}" for name in source}
    assert inside <= set(_files(wheel))


def test_a_wheel_is_found_under_all_names_beside_another_datasets(site_packages: Path, tmp_path: Path) -> None:
    report = _report([site_packages], tmp_path)
    assert report == {"stub": "not ours", "files": _in(site_packages), "config": True}


def test_a_plain_copy_is_found_under_all_names_beside_another_datasets(tree: Path, stub: Path) -> None:
    report = _report([tree, stub], tree)
    assert report == {"stub": "not ours", "files": _in_checkout(tree), "config": True}


def test_an_editable_install_is_found_under_all_names_beside_another_datasets(
    tree: Path, stub: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(_build("editable", tree, tmp_path / "dist")) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".pth")]
        added = [Path(line) for line in archive.read(name).decode().splitlines()]
    report = _report([stub, *added], tmp_path)  # what a .pth file adds comes after site-packages itself
    assert report == {"stub": "not ours", "files": _in_checkout(tree), "config": True}


def test_the_installed_command_answers(site_packages: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(site_packages)}
    command = [sys.executable, str(site_packages / "bin" / "orch"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "launch the missing runs of an experiment" in done.stdout


def test_the_metadata_names_the_command_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        folder = metadata.rpartition("/")[0]
        told = archive.read(metadata).decode()
        entry_points = archive.read(f"{folder}/entry_points.txt").decode()
    assert "[console_scripts]\norch = orchestrator.__main__:main\n" in entry_points
    assert "[mlflow.tracking_store]\norch = orchestrator.tracking.fluent:tracking_store" in entry_points
    assert "License-Expression: Apache-2.0" in told
    assert "Requires-Python: >=3.11" in told


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        found = _files(_build("wheel", ROOT, Path(scratch)))
    PINNED.write_text("".join(f"{name}\n" for name in found), encoding="utf-8")
