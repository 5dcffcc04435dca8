"""The house's shape: who may import whom, who may import which library, and what the quick verbs load."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from orchestrator import ledger
from orchestrator.layout import RunsRoot
from orchestrator.process import ProcessId
from orchestrator.record import Claim

ROOT = Path(__file__).resolve().parent.parent

# A module imports only from the lines above its own, and within its own package.
LAYERS = (
    {"errors", "process", "filesystem", "credentials", "override"},
    {"spec", "layout", "build"},
    {"identity", "record"},
    {"targets", "config", "cluster"},
    {"plan", "ledger", "snapshot", "environment", "data", "tracking"},
    {"guard", "after", "start", "study"},
    {"local", "slurm", "waiting", "packing"},
    {"launch", "worker", "tracking_notes"},
    {"project", "selection", "estimate", "forecast", "consumption", "tracking_view", "comparison", "curves"},
    {"registering"},
    {"api", "page"},
    {"registrar", "sidecar", "uploader", "cli"},
    {"testing", "__main__"},
)
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
CONTENT = {"models", "datasets", "conf"}  # usable without the engine; met only through `_target_` and Hydra

TRAINING = (
    "orchestrator/estimate/weigh_probe.py",
    "orchestrator/registrar.py",
    "orchestrator/testing/net.py",
    "orchestrator/worker/example.py",
    "orchestrator/worker/training.py",
    "orchestrator/worker/checkpoints.py",
    "orchestrator/tracking/logger.py",
    "models/",
    "datasets/",
)
MAY_IMPORT = {
    "antlr4": ("orchestrator/config/",),
    "botocore": ("orchestrator/data/bucket.py",),
    "dvc": ("orchestrator/data/dvc_probe.py", "orchestrator/data/dvc_remote.py"),
    "dvc_data": (),
    "hydra": ("orchestrator/config/",),
    "lightning": TRAINING,
    "lightning_fabric": TRAINING,
    "mlflow": (
        "orchestrator/tracking/mlflow_store.py",
        "orchestrator/tracking/mlflow_run.py",
        "orchestrator/tracking/mlflow_model.py",
        "orchestrator/registrar.py",
        "orchestrator/tracking/embedded.py",
    ),
    "optuna": ("orchestrator/study.py",),
    "omegaconf": ("orchestrator/config/",),
    "plotly": ("orchestrator/page/document.py",),
    "pynvml": ("orchestrator/local/nvml.py", "orchestrator/tracking/node.py"),
    "pytorch_lightning": TRAINING,
    "rich": (),
    "sklearn": (),
    "submitit": ("slurm/",),
    "torch": TRAINING,
    "torchmetrics": TRAINING,
}
HEAVY = (
    "botocore",
    "dvc",
    "hydra",
    "lightning_fabric",
    "mlflow",
    "numpy",
    "omegaconf",
    "optuna",
    "plotly",
    "pynvml",
    "pytorch_lightning",
    "rich",
    "torch",
)
FORBIDDEN_NAMES = {"base", "common", "helpers", "manager", "utils"}
LONGEST_FUNCTION = 60  # lines; most have fewer than ten


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """One source file: its path from the root, its dotted name once installed, and its syntax tree."""

    path: str
    name: str
    tree: ast.Module

    @property
    def unit(self) -> str:
        """The module or sub-package of the engine that it belongs to; empty for the package itself."""
        return self.name.split(".")[1] if "." in self.name else ""

    @property
    def package(self) -> str:
        return self.name if self.path.endswith("/__init__.py") else self.name.rpartition(".")[0]

    def imports(self) -> Iterator[tuple[str, int]]:
        """Yield the dotted name of all that is imported, anywhere in the file, also for annotations only."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((alias.name, node.lineno) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                origin = ".".join(part for part in (self._above(node.level), node.module) if part)
                yield from ((f"{origin}.{alias.name}", node.lineno) for alias in node.names)

    def _above(self, dots: int) -> str:
        parts = self.package.split(".")
        return ".".join(parts[: len(parts) - dots + 1]) if dots else ""


def _module(path: Path) -> Module:
    relative = path.relative_to(ROOT)
    parts = [part for part in relative.with_suffix("").parts if part != "__init__"]
    name = ".".join(parts if parts[0] == "orchestrator" else ["orchestrator", *parts])
    return Module(path=relative.as_posix(), name=name, tree=ast.parse(path.read_text(encoding="utf-8")))


FOLDERS = ("orchestrator", "models", "datasets", "slurm", "conf")
MODULES = [_module(path) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
NAMES = {module.name for module in MODULES}


def _imported_module(name: str) -> str | None:
    """Return the module of ours that an imported name is, or lies in."""
    while name not in NAMES and "." in name:
        name = name.rpartition(".")[0]
    return name if name in NAMES else None


def _ours(module: Module) -> Iterator[tuple[str, int]]:
    """Yield the units of ours, other than its own, that a module imports from."""
    for name, line in module.imports():
        unit = name.split(".")[1] if name.startswith("orchestrator.") else ""
        if unit not in {"", "__version__", module.unit}:
            yield unit, line


def test_each_module_has_a_place_in_the_layers() -> None:
    assert sorted({module.unit for module in MODULES} - CONTENT - {""}) == sorted(LEVEL)


def test_lower_layers_never_import_higher_ones() -> None:
    wrong = [
        f"{module.path}:{line} imports {unit}"
        for module in MODULES
        if module.unit in LEVEL
        for unit, line in _ours(module)
        if unit in CONTENT or LEVEL[unit] >= LEVEL[module.unit]
    ]
    assert wrong == []


def test_models_and_datasets_import_nothing_of_the_engine() -> None:
    content = [module for module in MODULES if module.unit in CONTENT]
    wrong = [f"{module.path}:{line} imports {unit}" for module in content for unit, line in _ours(module)]
    assert wrong == []


def test_the_package_itself_imports_nothing_of_ours() -> None:
    package = next(module for module in MODULES if module.name == "orchestrator")
    assert [name for name, _ in package.imports() if name.startswith("orchestrator")] == []


def test_no_module_imports_itself_through_others() -> None:
    graph = {
        module.name: {found for name, _ in module.imports() if (found := _imported_module(name))} - {module.name}
        for module in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("library", sorted(MAY_IMPORT))
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    wrong = [
        f"{module.path}:{line}"
        for module in MODULES
        for name, line in module.imports()
        if name.split(".")[0] == library and not module.path.startswith(MAY_IMPORT[library])
    ]
    assert wrong == []


def _calls(name: str) -> list[str]:
    """Return where a function is called, given as it is written: `print`, `os.system`."""
    return [
        f"{module.path}:{node.lineno}"
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name
    ]


def test_only_the_command_line_prints() -> None:
    assert [place for place in _calls("print") if not place.startswith("orchestrator/cli/")] == []


def test_targets_are_imported_by_name_only_where_they_are_built_or_probed() -> None:
    places = [place.partition(":")[0] for place in _calls("importlib.import_module")]
    assert set(places) <= {"orchestrator/build.py", "orchestrator/targets/probe.py"}


def test_no_program_is_started_through_a_shell() -> None:
    shells = [
        f"{module.path}:{node.value.lineno}"
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.keyword) and node.arg == "shell"
    ]
    assert shells + _calls("os.system") + _calls("os.popen") == []


def test_there_is_no_assert_statement() -> None:
    found = [f"{m.path}:{n.lineno}" for m in MODULES for n in ast.walk(m.tree) if isinstance(n, ast.Assert)]
    assert found == []


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert [module.path for module in MODULES if FORBIDDEN_NAMES & set(module.name.split("."))] == []


def test_every_module_says_what_it_is() -> None:
    assert [module.path for module in MODULES if not ast.get_docstring(module.tree)] == []


def test_functions_fit_on_a_page() -> None:
    long = [
        f"{module.path}:{node.lineno} {node.name} has {length} lines"
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > LONGEST_FUNCTION
    ]
    assert long == []


# --- what the quick verbs load ----------------------------------------------------------------------------

ASK = """
import json, sys
from orchestrator.cli import main
try:
    status = main(sys.argv[2:])
except SystemExit as exit:
    status = exit.code
with open(sys.argv[1], "w") as file:
    json.dump([status, sorted({name.partition(".")[0] for name in sys.modules})], file)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment of two runs: one is done, one has failed."""
    root = RunsRoot(tmp_path_factory.mktemp("a folder") / "runs")
    experiment = root.experiment("tiny")
    launch = {
        "experiment": "tiny", "message": "", "argv": [], "overrides": ["name=tiny"], "choices": {}, "sweep": {},
        "objective": {"metric": "val/acc", "mode": "max"}, "cluster": {"kind": "inline"},
        "tracking": {"kind": "none"}, "env": "warn", "environment": {}, "python": sys.executable,
        "code": [], "data": {},
    }  # fmt: skip
    lines = [
        {
            "index": i, "run": run, "action": "submit", "reason": "new", "attempt": 1, "generation": 1, "history": 1,
            "code": "c0de", "data": None, "base": 0, "set": [[["seed"], i]], "point": {"seed": i}, "resources": {},
        }
        for i, run in enumerate(["aaaaaaaaaaaa", "bbbbbbbbbbbb"])
    ]  # fmt: skip
    published = ledger.publish(experiment, 1, launch, [{"seed": 0}], lines)
    assert published is not None
    published.complete.touch()
    endings = [
        ("done", {"metrics": {"val/acc": 0.5}}),
        ("failed", {"signature": "KeyError at model.py:41", "message": "'lr'", "traceback": "Traceback: KeyError"}),
    ]
    for line, (ending, data) in zip(lines, endings, strict=True):
        attempt = experiment.run(str(line["run"])).attempt(1)
        claim = Claim(
            launch=1, index=0, code="c0de", generation=1, history=1, process=ProcessId.current(), time=time.time()
        )
        assert ledger.claim_attempt(attempt, claim)
        ledger.EventWriter(attempt.events).write(ending, **data)
        ledger.mark(experiment, str(line["run"]), 1, ending)
        attempt.log.write_text(f"log of {line['run']}\n")
    return root.path


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--help"], "launch"),
        (["--version"], "orch "),
        (["status"], "KeyError at model.py:41"),
        (["status", "tiny", "state=done"], "aaaaaaaa"),
        (["status", "--json"], '"bbbbbbbbbbbb"'),
        (["show", "aaaa"], "val/acc"),
        (["show", "bbbb", "--json"], '"failed"'),
        (["logs", "tiny"], "log of bbbbbbbbbbbb"),
        (["compare", "tiny"], "0.5"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_quick_verb_loads_nothing_heavy(runs: Path, tmp_path: Path, words: list[str], told: str) -> None:
    report = tmp_path / "report"
    argv = [sys.executable, "-c", ASK, str(report), *words]
    if not words[0].startswith("-"):
        argv += ["--runs", str(runs)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    status, loaded = json.loads(report.read_text())
    assert status == 0, done.stderr
    assert told in done.stdout
    assert sorted(set(HEAVY) & set(loaded)) == []
