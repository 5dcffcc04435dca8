"""Lightning's two distributions are one set of classes, in whatever order and by whichever name they are imported.

The distributions here are stand-ins of a few lines: real ones train in tests/worker/test_checkpoints.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT

from orchestrator.config.targets import Targets
from orchestrator.errors import ConfigError

FABRIC = {"__init__.py": "", "utilities/__init__.py": "", "utilities/data.py": "class AttributeDict(dict): ...\n"}
PYTORCH = {
    "__init__.py": "from {fabric}.utilities.data import AttributeDict\nfrom {pytorch}.trainer import Trainer\n",
    "trainer.py": "class Trainer:\n    def __init__(self, *, {argument}=1): ...\n",
    "callbacks/__init__.py": "from .early import Early\n",
    "callbacks/early.py": "from ..trainer import Trainer\nclass Early:\n    trainer = Trainer\n",
}


class Site:
    """A folder of installed packages, and programs that see only it and this package."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, distribution: str, version: str = "2.6.6") -> Site:
        pytorch, fabric = {
            "lightning": ("lightning.pytorch", "lightning.fabric"),
            "pytorch-lightning": ("pytorch_lightning", "lightning_fabric"),
        }[distribution]
        argument = f"of_{version.replace('.', '_')}"
        for package, files in ((pytorch, PYTORCH), (fabric, FABRIC)):
            for name, text in files.items():
                own = text.format(pytorch=pytorch, fabric=fabric, argument=argument)
                self._write(f"{package.replace('.', '/')}/{name}", own)
        if distribution == "lightning":
            self._write("lightning/__init__.py", "from lightning.pytorch.trainer import Trainer\n")
        written = distribution.replace("-", "_")
        self._write(f"{written}-{version}.dist-info/METADATA", f"Name: {distribution}\nVersion: {version}\n")
        return self

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, *lines: str) -> subprocess.CompletedProcess[str]:
        start = f"import sys; sys.path[:0] = {[str(self.folder), str(ROOT)]!r}"
        start += "; from orchestrator.config.lightning_names import unite; unite(); unite()"
        argv = [sys.executable, "-PS", "-c", "\n".join([start, *lines])]
        return subprocess.run(argv, capture_output=True, text=True, check=False)

    def answer(self, *lines: str) -> object:
        done = self.run("import json", *lines[:-1], f"print(json.dumps({lines[-1]}))")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def targets(self) -> Targets:
        return Targets([str(self.folder)], self.folder / "cache")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "site packages")


BOTH = ("lightning", "pytorch-lightning")
IMPORTS = {
    "lightning first": "import lightning as L, lightning.pytorch.callbacks.early, pytorch_lightning as pl",
    "the other first": "import pytorch_lightning as pl, lightning as L, pytorch_lightning.callbacks.early",
    "a deep module first": "from lightning.pytorch.callbacks.early import Early; import pytorch_lightning as pl;"
    " import lightning as L, pytorch_lightning.callbacks",
}


@pytest.mark.parametrize("imports", IMPORTS.values(), ids=IMPORTS)
@pytest.mark.parametrize("installed", [BOTH, ("lightning",)], ids=["both", "lightning alone"])
def test_either_name_gives_the_same_classes(site, installed, imports):
    for distribution in installed:
        site.install(distribution)
    found = site.answer(
        imports,
        "import lightning.pytorch.callbacks as ours, pytorch_lightning.callbacks as theirs",
        "import lightning.fabric.utilities.data, lightning_fabric",
        "[L.pytorch is pl, L.Trainer is pl.Trainer is ours.Early.trainer, ours.early is theirs.early,"
        " L.fabric is lightning_fabric, pl.Trainer.__module__, pl.__spec__.name, theirs.early.__spec__.name]",
    )
    name = "pytorch_lightning" if installed == BOTH else "lightning.pytorch"
    assert found == [True] * 4 + [f"{name}.trainer", name, f"{name}.callbacks.early"]


def test_pickles_with_either_name_are_read(site):
    for distribution in BOTH:
        site.install(distribution)
    names = ["lightning.fabric.utilities.data", "lightning_fabric.utilities.data"]
    assert site.answer(
        "import pickle",
        f"read = [pickle.loads(f'c{{name}}\\nAttributeDict\\n.'.encode()) for name in {names}]",
        "[read[0] is read[1], read[0].__module__]",
    ) == [True, "lightning_fabric.utilities.data"]


def test_a_distribution_that_is_not_there_is_missed_under_its_own_name(site):
    done = site.install("pytorch-lightning").run("import lightning.pytorch")
    assert done.stderr.endswith("No module named 'lightning'\n")
    done = site.install("lightning").run("import lightning.pytorch.callbacks.none")
    assert done.stderr.endswith("No module named 'lightning.pytorch.callbacks.none'\n")
    assert Site(site.folder / "none").run("import pytorch_lightning").stderr.endswith("'pytorch_lightning'\n")


def test_two_versions_are_pointed_out_once_and_only_where_both_are_used(site):
    site.install("lightning", "2.5.5").install("pytorch-lightning", "2.6.6")
    assert site.run("import pytorch_lightning.callbacks").stderr == ""
    done = site.run("import lightning as L, lightning.pytorch.callbacks")
    assert done.stderr == (
        "lightning 2.5.5 and pytorch-lightning 2.6.6 are installed: runs use the classes of pytorch-lightning for both;"
        " install the same version of both (pip install lightning==2.6.6)\n"
    )


def test_equal_versions_and_a_single_distribution_are_no_matter(site):
    assert site.install("lightning").run("import pytorch_lightning").stderr == ""
    assert site.install("pytorch-lightning").run("import lightning").stderr == ""


@pytest.mark.parametrize(
    "target", ["lightning.Trainer", "lightning.pytorch.trainer.Trainer", "mine.Mine", "mine.Asked"]
)
def test_the_check_of_arguments_reads_the_classes_that_runs_use(site, target):
    site.install("lightning", "2.5.5").install("pytorch-lightning", "2.6.6")
    asked = "Asked = getattr(L.pytorch, 'Trainer')"  # only an import can tell
    (site.folder / "mine.py").write_text(f"import lightning as L\n\nclass Mine(L.Trainer): ...\n\n{asked}\n")
    site.targets().check({"_target_": target, "of_2_6_6": 3}, where="trainer")
    with pytest.raises(ConfigError, match="of_2_5_5"):
        site.targets().check({"_target_": target, "of_2_5_5": 3}, where="trainer")


def test_the_check_of_arguments_knows_either_name_of_the_one_that_is_installed(site):
    site.install("lightning")
    site.targets().check({"_target_": "pytorch_lightning.Trainer", "of_2_6_6": 3}, where="trainer")
