"""The house's shape: who may import whom, who may import which library, and what the quick verbs load."""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
import sys
import time
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from launches import planned_run

from orchestrator.cli import VERBS
from orchestrator.layout import RunsRoot
from orchestrator.records.attempts import EventWriter, claim_attempt, mark_state
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import publish_launch
from orchestrator.records.record import Claim
from orchestrator.spec import Objective
from orchestrator.system.processes import ProcessId

ROOT = Path(__file__).resolve().parent.parent

ROOM = re.compile(r"^\| `(?:orchestrator/)?(\w+)(?:/|\.py)` \|", re.MULTILINE)
ROOMS = ROOM.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
"""The map in CONTRIBUTING, the lowest room first: a module imports from the rows above its own, and within its room."""
LEVEL = {room: level for level, room in enumerate(ROOMS)}
SHIMS = {"uploader", "sidecar", "registrar"}  # names that version 0.1 starts programs by
CONTENT = {"models", "datasets", "conf"}  # usable without the engine; met only through `_target_` and Hydra

TRAINING = (
    "orchestrator/launch/estimate/checkpoint_size_probe.py",
    "orchestrator/launch/unpickle_probe.py",
    "orchestrator/tracking/registry/registrar.py",
    "orchestrator/testing/net.py",
    "orchestrator/worker/fit/",
    "orchestrator/tracking/logger.py",
    "models/",
    "datasets/",
)
MAY_IMPORT = {
    "antlr4": ("orchestrator/config/",),
    "botocore": ("orchestrator/data/sources/bucket.py",),
    "dvc": ("orchestrator/data/sources/dvc_probe.py", "orchestrator/data/sources/dvc_remote.py"),
    "dvc_data": (),
    "hydra": ("orchestrator/config/",),
    "lightning": TRAINING,
    "lightning_fabric": TRAINING,
    "mlflow": (
        "orchestrator/tracking/mlflow_store.py",
        "orchestrator/tracking/mlflow_run.py",
        "orchestrator/tracking/mlflow_model.py",
        "orchestrator/tracking/mlflow_plugin.py",
        "orchestrator/tracking/registry/registrar.py",
        "orchestrator/tracking/embedded.py",
        "orchestrator/tracking/ui_server.py",
    ),
    "optuna": ("orchestrator/search/study.py",),
    "omegaconf": ("orchestrator/config/",),
    "plotly": ("orchestrator/report/html/document.py",),
    "pynvml": ("orchestrator/local/nvml.py", "orchestrator/tracking/node.py"),
    "pytorch_lightning": TRAINING,
    "rich": (),
    "sklearn": (),
    "starlette": ("orchestrator/tracking/ui_server.py",),
    "submitit": ("slurm/",),
    "torch": TRAINING,
    "torchmetrics": TRAINING,
    "uvicorn": ("orchestrator/tracking/ui_server.py",),
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
MOST_ANY = 300
SHARED = {"layout", "records", "search", "launch", "local", "slurm", "tracking", "refresh", "worker", "api", "cli"}
MAY_ASK_FOR_A_NAME = {  # how often: for a name that no other machine makes, or whose absence changes nothing
    "orchestrator/launch/estimate/checkpoints.py": 1,
    "orchestrator/launch/launch.py": 1,
    "orchestrator/launch/starts.py": 3,
    "orchestrator/layout.py": 2,
    "orchestrator/local/devices.py": 2,
    "orchestrator/local/session.py": 1,
    "orchestrator/local/workstation.py": 2,
    "orchestrator/records/launches.py": 2,
    "orchestrator/tracking/embedded.py": 1,
    "orchestrator/tracking/experiment.py": 3,
    "orchestrator/tracking/registry/registrar.py": 2,
    "orchestrator/tracking/upload.py": 3,
    "orchestrator/tracking/view.py": 1,
    "orchestrator/worker/fit/trainer.py": 1,
}
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


def test_each_module_has_a_room_on_the_map_and_no_room_stands_there_twice() -> None:
    assert sorted({module.unit for module in MODULES} - CONTENT - SHIMS - {""}) == sorted(ROOMS)


def test_a_newcomer_takes_in_the_rooms_at_once() -> None:
    names = {path.name for path in (ROOT / "orchestrator").iterdir() if not path.name.startswith("_")}
    assert len(names - {f"{shim}.py" for shim in SHIMS}) <= 24


def test_a_name_of_version_0_1_only_starts_the_program_that_has_moved() -> None:
    shims = [module for module in MODULES if module.unit in SHIMS]
    assert {module.unit for module in shims} == SHIMS
    assert all(len(module.tree.body) == 3 and not list(_ours(module)) for module in shims)


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
    verbs = "orchestrator/cli/__init__.py"  # each by its name in a table
    lightning = "orchestrator/config/lightning_names.py"  # a target's import may ask for either name
    assert set(places) - {verbs, lightning} <= {"orchestrator/config/build.py", "orchestrator/config/targets/probe.py"}


def test_no_program_is_started_through_a_shell() -> None:
    shells = [
        f"{module.path}:{node.value.lineno}"
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.keyword) and node.arg == "shell"
    ]
    assert shells + _calls("os.system") + _calls("os.popen") == []


def test_what_others_make_is_looked_for_by_a_listing() -> None:
    """A network filesystem's client believes for a minute that a name is missing: see `system.files.listed`."""
    found = Counter(
        module.path
        for module in MODULES
        if module.unit in SHARED and "devcluster" not in module.path
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in {"exists", "is_file", "is_dir", "lexists"}
    )
    assert found == MAY_ASK_FOR_A_NAME


def test_there_is_no_assert_statement() -> None:
    found = [f"{m.path}:{n.lineno}" for m in MODULES for n in ast.walk(m.tree) if isinstance(n, ast.Assert)]
    assert found == []


def test_no_file_has_a_name_that_says_nothing() -> None:
    assert [module.path for module in MODULES if FORBIDDEN_NAMES & set(module.name.split("."))] == []


def test_a_room_that_lists_its_files_lists_them_all_and_no_others() -> None:
    wrong = {}
    for module in MODULES:
        folder = (ROOT / module.path).parent
        text = (module.path.endswith("/__init__.py") and ast.get_docstring(module.tree)) or ""
        listed = set(re.findall(r"^([a-z_]+(?:\.py|/))[ ,]", text, re.MULTILINE))
        files = {path.name for path in folder.glob("*.py") if not path.name.startswith("__")}
        rooms = {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")}
        if listed and listed - {"__main__.py"} != files | rooms:
            wrong[module.path] = sorted(listed ^ (files | rooms))
    assert wrong == {}


def test_every_module_says_what_it_is() -> None:
    assert [module.path for module in MODULES if not ast.get_docstring(module.tree)] == []


def test_a_launch_and_its_plan_travel_as_types_not_as_dicts() -> None:
    """They are parsed in one place: `records/header.py` and `records/planned.py`."""
    keyed = re.compile(r"\b(?:header|line)\[[\"']")
    assert [module.path for module in MODULES if keyed.search((ROOT / module.path).read_text(encoding="utf-8"))] == []


def test_few_values_are_of_any_type() -> None:
    """Import lines do not count."""
    lines = [line for module in MODULES for line in (ROOT / module.path).read_text(encoding="utf-8").splitlines()]
    assert sum(len(re.findall(r"\bAny\b", line)) for line in lines if "import" not in line) < MOST_ANY


def test_the_formatter_lays_out_all_but_a_few_tables() -> None:
    sources = [path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py") if _is_tracked(path)]
    assert sum(len(re.findall(r"# fmt: skip$", source, re.MULTILINE)) for source in sources) <= 30


def _is_tracked(path: Path) -> bool:
    return path.relative_to(ROOT).parts[0] in {*FOLDERS, "tests", "bench", "data"}


def test_each_rule_that_is_not_followed_has_its_reason_on_the_line() -> None:
    bare = re.compile(r"# (?:noqa: [A-Z0-9, ]+|type: ignore\[[a-z, -]+\])$", re.MULTILINE)
    wrong = [module.path for module in MODULES if bare.search((ROOT / module.path).read_text(encoding="utf-8"))]
    assert wrong == []


def test_functions_fit_on_a_page() -> None:
    long = [
        f"{module.path}:{node.lineno} {node.name} has {length} lines"
        for module in MODULES
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > LONGEST_FUNCTION
    ]
    assert long == []


# --- plain words --------------------------------------------------------------------------------------------

DIALECT = (
    (r"(?<!there\s)(?:is|are|was|were) no (?!longer|more|less|better|worse|fewer)\w+", "is not a, has no"),
    (r"\bwho(?:m)?ever\b", "the process that, the user who, anybody who"),
    (r"\b(?:by|to|from|of|for) who\b", "by the process that, of the user who"),
    (r"\bwithout a word\b", "without a final event"),
    (r"\b(?:last|own) words?\b", "final event; its own events"),
    (r"\b(?:go|goes|going|gone|went) on with\b", "resume, continue, complete"),
    (r"\bgo(?:es|ing)? on (?:from|where|by itself|by themselves)\b", "resume"),
    (r"\btold\b", "shown, reported, notified, asked, distinguished"),
    (r"\btells? (?:of|the person|people|us)\b", "report, notify, announce"),
    (r"\bput right\b|\bset right\b", "record, correct, update"),
    (r"\bbrakes?\b", "failure limit (the option stays `--brake`)"),
    (r"\b(?:gates?|guards?)\b", "canary, hold, safeguard"),
    (r"\bstrays?\b", "untracked arrays"),
    (r"\b(?:wish|wishes)\b", "planned run, request"),
    (r"\b(?:depose|deposed|condemn|condemned)\b", "take over, revoke"),
    (r"\b(?:(?:for|no|the|enough|needs?|makes?|made|making|with) room|room (?:for|that|by))\b", "space; a free place"),
    (r"\bturns? to submit\b", "submit lease"),
    (r"\bstands? (?:in(?! for)|on|there|here|below|above|beside|behind)\b", "is in, is described in"),
    (r"\b(?:at most )?so many\b", "this many, N, how many"),
    (r"\blet loose\b", "started"),
    (r"\bwork(?:s|ed|ing)? (?:it |them |a \w+ |the queue )?off\b", "process, execute"),
    (r"\bfor ever\b", "forever, always"),
    (r"\banew\b", "again, from scratch"),
    (r"\bin (?:the|its|their) midst\b", "in the middle of, during"),
    (r"\btoday's code\b", "your current code"),
    (r"\b(?:gets?|got|getting) (?:any )?further\b", "make progress"),
    (r"\bshut(?:s|ting)? down,? in order\b", "shut down cleanly"),
    (r"\b(?:bring|brought|brings)\b[^.;]{0,30}\bin line\b", "update"),
    (r"\bsays nothing\b|\bsay nothing\b", "has no effect, shows nothing"),
    (r"\blooks? after\b", "manage"),
    (r"\b(?:no process|nothing|something|a bug|one|a hash) of ours\b", "no `orch` process, a bug in `orch`"),
)
"""Words and phrases that a native reader stumbles over, and the plain ones to use instead."""

PLAIN = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/**/*.md",
    "conf/**/*.yaml",
    "bench/**/*.py",
    "models/**/*.py",
    "datasets/**/*.py",
    "orchestrator/*.py",
    "orchestrator/cli/**/*.py",
    "orchestrator/config/**/*.py",
    "orchestrator/data/**/*.py",
    "orchestrator/launch/**/*.py",
    "orchestrator/local/**/*.py",
    "orchestrator/records/**/*.py",
    "orchestrator/report/**/*.py",
    "orchestrator/search/**/*.py",
    "orchestrator/snapshot/**/*.py",
    "orchestrator/spec/**/*.py",
    "orchestrator/system/**/*.py",
    "orchestrator/testing/**/*.py",
    "orchestrator/tracking/**/*.py",
    "orchestrator/worker/**/*.py",
    "slurm/**/*.py",
)
"""Where the list holds. Patterns of other Python files may be added once they are edited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prose:
    """A passage that people read: its file and first line, and its text, with what is code blanked out."""

    path: str
    line: int
    text: str


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def _passages(path: Path) -> Iterator[Prose]:
    """Yield what people read in a file: a page without its code, the comments of YAML, the texts of Python."""
    name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        yield from _texts(name, text)
        return
    yield Prose(path=name, line=1, text=_without_code(_comments(text) if path.suffix == ".yaml" else text))


def _without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```", _blank, text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]+`", _blank, text)
    return re.sub(r"\]\([^)]*\)", _blank, text)


def _comments(text: str) -> str:
    return re.sub(r"^(?:[^#\n\"']|\"[^\"\n]*\"|'[^'\n]*')*#*", _blank, text, flags=re.MULTILINE)


def _texts(name: str, source: str) -> Iterator[Prose]:
    """Yield the strings and the comments of a Python file. A string without a blank is a name, and not prose."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield Prose(path=name, line=node.lineno, text=_without_code(node.value))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield Prose(path=name, line=token.start[0], text=_without_code(token.string))


def _dialect(prose: Prose) -> Iterator[str]:
    for pattern, better in DIALECT:
        for match in re.finditer(pattern.replace(" ", r"\s+"), prose.text, re.IGNORECASE):
            line = prose.line + prose.text.count("\n", 0, match.start())
            yield f"{prose.path}:{line}: {' '.join(match[0].split())!r}: write {better}"


@pytest.mark.parametrize("where", PLAIN)
def test_prose_uses_plain_words(where: str) -> None:
    files = sorted(ROOT.glob(where))
    assert files
    found = [each for file in files for prose in _passages(file) for each in _dialect(prose)]
    assert found == [], "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A packed run is no\nrun by itself.", "is no run"),
        ("Whoever looks next tells.", "Whoever"),
        ("It is gone on with later.", "gone on with"),
        ("Nothing begins, by the brake.", "brake"),
        ("There is no daemon, and `is no code` and `--brake` are code.", ""),
        ("It is no longer than before.", ""),
    ],
)
def test_the_word_list_finds_dialect_and_nothing_else(text: str, words: str) -> None:
    found = list(_dialect(Prose(path="page.md", line=3, text=_without_code(text))))
    assert [each.split("'")[1] for each in found] == ([words] if words else [])


def test_the_word_list_reads_the_comments_of_yaml_only() -> None:
    prose = Prose(path="a.yaml", line=1, text=_comments('brake: "#told"  # at the last\n# word\n'))
    assert list(_dialect(prose)) == ["a.yaml:1: 'last word': write final event; its own events"]


def test_the_word_list_reads_comments_and_texts_of_python() -> None:
    source = '"""What died without a word."""\n\nTEXT = f"{1} was told"  # whoever asks\nNAME = "told"\n'
    found = [each for prose in _texts("a.py", source) for each in _dialect(prose)]
    assert [each.partition(": write")[0] for each in found] == [
        "a.py:1: 'without a word'",
        "a.py:3: 'told'",
        "a.py:3: 'whoever'",
    ]


# --- what the quick verbs load ----------------------------------------------------------------------------

ASK = """
import json, sys
from orchestrator.cli import main
try:
    status = main(sys.argv[2:])
except SystemExit as exit:
    status = exit.code
with open(sys.argv[1], "w") as file:
    json.dump([status, sorted(sys.modules)], file)
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment of two runs: one is done, one has failed."""
    root = RunsRoot(tmp_path_factory.mktemp("a folder") / "runs")
    experiment = root.experiment("tiny")
    header = LaunchHeader(
        experiment="tiny",
        overrides=("name=tiny",),
        objective=Objective(metric="val/acc", mode="max"),
        cluster={"kind": "inline"},
        python=sys.executable,
    )
    plan = [
        planned_run(index=i, run=run, changes=[[["seed"], i]], point={"seed": i})
        for i, run in enumerate(["aaaaaaaaaaaa", "bbbbbbbbbbbb"])
    ]
    published = publish_launch(experiment, 1, header, [{"seed": 0}], plan)
    assert published is not None
    published.complete.touch()
    endings = [
        ("done", {"metrics": {"val/acc": 0.5}}),
        ("failed", {"signature": "KeyError at model.py:41", "message": "'lr'", "traceback": "Traceback: KeyError"}),
    ]
    for planned, (ending, data) in zip(plan, endings, strict=True):
        attempt = experiment.run(planned.run).attempt(1)
        claim = Claim(
            launch=1, index=0, code="c0de", generation=1, history=1, process=ProcessId.current(), time=time.time()
        )
        assert claim_attempt(attempt, claim)
        EventWriter(attempt.events).write(ending, **data)
        mark_state(experiment, planned.run, 1, ending)
        attempt.log.write_text(f"log of {planned.run}\n")
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
    printed, loaded = _run(runs, tmp_path, words)
    assert told in printed
    assert sorted(set(HEAVY) & {name.partition(".")[0] for name in loaded}) == []


@pytest.mark.parametrize(
    "words", [["status"], ["status", "tiny", "--json"], ["show", "aaaa"], ["logs", "tiny"]], ids=str
)
def test_a_look_at_what_has_ended_loads_no_room_but_those_that_read(
    runs: Path, tmp_path: Path, words: list[str]
) -> None:
    _, loaded = _run(runs, tmp_path, words)
    ours = {name for name in loaded if name.startswith("orchestrator.")}
    others = ("config", "data", "launch", "local", "search", "slurm", "snapshot", "tracking", "worker")
    idle = {name for name in ours if name.split(".")[1] in others}
    assert idle - {"orchestrator.config", "orchestrator.config.credentials"} == set()  # what may not be shown
    verbs = {name for name in VERBS if f"orchestrator.cli.{name}" in ours}
    assert verbs == {words[0]}
    assert sorted({"getpass", "socket", "uuid", "yaml"} & set(loaded)) == []  # milliseconds each


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["--help", "--version"], ["statsu"], []], ids=str)
def test_help_and_version_load_no_verb(runs: Path, tmp_path: Path, words: list[str]) -> None:
    status, loaded = _loaded(runs, tmp_path, words)
    assert status == (0 if words and words != ["statsu"] else 2)
    ours = {name for name in loaded if name.startswith("orchestrator.")}
    assert ours == {"orchestrator.cli", "orchestrator.cli.text", "orchestrator.errors"}


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_the_table_of_verbs_says_what_the_file_of_each_does(verb: str) -> None:
    module = next(module for module in MODULES if module.name == f"orchestrator.cli.{verb}")
    assert (ast.get_docstring(module.tree) or "").startswith(f"`orch {verb}`: {VERBS[verb]}.")
    defined = {node.name for node in module.tree.body if isinstance(node, ast.FunctionDef)}
    assert defined >= {"add_arguments", "handle"}


def _run(runs: Path, tmp_path: Path, words: list[str]) -> tuple[str, list[str]]:
    """Return what a command prints, and the modules that it has loaded."""
    (status, loaded), done = _ask(runs, tmp_path, words)
    assert status == 0, done.stderr
    return done.stdout, loaded


def _loaded(runs: Path, tmp_path: Path, words: list[str]) -> tuple[int, list[str]]:
    """Return a command's exit status, and the modules that it has loaded."""
    return _ask(runs, tmp_path, words)[0]


def _ask(
    runs: Path, tmp_path: Path, words: list[str]
) -> tuple[tuple[int, list[str]], subprocess.CompletedProcess[str]]:
    report = tmp_path / "report"
    argv = [sys.executable, "-c", ASK, str(report), *words]
    if words and words[0] in VERBS:
        argv += ["--runs", str(runs)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    status, loaded = json.loads(report.read_text())
    return (status, loaded), done
