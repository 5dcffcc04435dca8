"""Targets are checked against what they really take, and are not imported for it."""

from __future__ import annotations

import importlib.util
import inspect
import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.config.targets import Parameter, Signature, Targets
from orchestrator.config.targets.callbacks import check_together
from orchestrator.errors import ConfigError
from orchestrator.system import processes as process


class CountedRun:
    """Runs programs, and counts them."""

    def __init__(self) -> None:
        self.starts = 0

    def __call__(self, argv, *, env, stdin, timeout_s):
        self.starts += 1
        return process.run(argv, env=env, stdin=stdin, timeout_s=timeout_s)


class Project:
    """A user's project folder with a name that needs care, its cache, and the programs started for it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "it's a: “project”\nfolder"
        self.cache = folder / "cache"
        self.root.mkdir()
        self.run = CountedRun()

    def write(self, files: dict[str, str]) -> Project:
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return self

    def targets(self) -> Targets:
        return Targets([str(self.root), *sys.path], self.cache, run=self.run)

    def names(self, target: str) -> list[str]:
        return [parameter.name for parameter in self.targets().signature(target).parameters]

    def refusal(self, node, *, where="model", given=()) -> str:
        with pytest.raises(ConfigError) as caught:
            self.targets().check(node, where=where, given=given)
        assert caught.value.fix
        return str(caught.value)


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


NET = """
class Net:
    def __init__(self, width, *, lr=0.1, name="net"):
        raise RuntimeError("nobody may build this")
"""


@pytest.fixture
def net(project):
    return project.write({"shop/nets.py": NET})


# --- what source tells agrees with what Python says ------------------------------------------------

FORMS = """
import abc, dataclasses, functools, typing
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import ClassVar, Generic, Protocol, TypeVar, overload
T = TypeVar("T")

class Plain:
    def __init__(self, a, b=1, *args, c, d=2, **kwargs): ...
    @classmethod
    def from_file(cls, path, *, strict=False): ...
    @staticmethod
    def of(x, /, y=0): ...
    class Inner:
        def __init__(self, deep): ...

class Bare: ...
class Inherits(Plain): ...
class Abstract(abc.ABC):
    def __init__(self, a): ...
class Concrete(Abstract, Generic[T]): ...
class Subscripted(Concrete[int]): ...
class Root:
    def __init__(self, root): ...
class Left(Root): ...
class Right(Root):
    def __init__(self, right): ...
class Diamond(Left, Right): ...
Alias = Diamond
class Overloaded:
    @overload
    def __init__(self, a: int): ...
    @overload
    def __init__(self, a: str, b: str): ...
    def __init__(self, a, b=None): ...

def function(a, /, b, *, c=3): ...
async def coroutine(a, b=2): ...

@dataclass
class Point:
    x: int
    y: int = 0
    tags: list = field(default_factory=list)
    hidden: int = field(default=1, init=False)
    shared: ClassVar[int] = 3
    also_shared: "ClassVar[int]" = 3
    seed: InitVar[int] = 0
@dataclass(repr=False)
class Point3(Point):
    z: float = 0.0
    y: int = 5
    _: KW_ONLY
    unit: str = "m"
@dataclasses.dataclass(kw_only=True)
class Named:
    name: str
    size: int = dataclasses.field(default=3)
class OfPoint(Point): ...
@dataclass
class Written:
    x: int
    def __init__(self, own): ...
if True:
    class InBranch:
        def __init__(self, branch): ...
try:
    from nowhere_at_all import x
    class InTry:
        def __init__(self, no): ...
except ImportError:
    class InExcept:
        def __init__(self, a): ...

# ... and where source cannot tell:
def decorator(f):
    @functools.wraps(f)
    def inner(*args, **kwargs): return f(*args, **kwargs)
    return inner
class Decorated:
    @decorator
    def __init__(self, a, b=1): ...
@decorator
def decorated(a, *, b): ...
class OwnNew:
    def __new__(cls, new): return super().__new__(cls)
class Meta(type):
    def __call__(cls, meta): return super().__call__()
class OfMeta(metaclass=Meta): ...
class InheritsMeta(OfMeta): ...
class Pair(typing.NamedTuple):
    first: int
    second: int = 2
class Error(Exception): ...
partial = functools.partial(function, 1)
lambda_ = lambda a, b=1: a
if len(FORMS_BRANCH := "ab") == 2:
    class Twice:
        def __init__(self, first): ...
else:
    class Twice:
        def __init__(self, second): ...
class Patched:
    def __init__(self, before): ...
def _after(self, after): ...
Patched.__init__ = _after
class Own(Plain):
    def __init__(self, own): ...
class Plain2(Bare): ...
class Bare2: ...
class Shadow:
    def __init__(self, first): ...
class OfFirst(Shadow): ...
class Shadow:
    def __init__(self, second): ...
"""

FROM_SOURCE = [
    "Plain", "Plain.from_file", "Plain.of", "Plain.Inner", "Bare", "Inherits", "Inherits.from_file",
    "Concrete", "Subscripted", "Diamond", "Alias", "Overloaded", "function", "coroutine", "Point", "Point3",
    "Named", "OfPoint", "Written", "InBranch", "InExcept", "Own", "Plain2", "Shadow",
]  # fmt: skip
FROM_PYTHON = [
    "Decorated",
    "decorated",
    "OwnNew",
    "OfMeta",
    "InheritsMeta",
    "Pair",
    "partial",
    "lambda_",
    "Twice",
    "Patched",
    "OfFirst",
]


def python_says(found) -> Signature:
    parameters = inspect.signature(found).parameters.values()
    kinds = [p.kind for p in parameters]
    return Signature(
        parameters=tuple(
            Parameter(name=p.name, kind=p.kind.name.lower(), required=p.default is p.empty)
            for p in parameters
            if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}
        ),
        var_positional=inspect.Parameter.VAR_POSITIONAL in kinds,
        var_keyword=inspect.Parameter.VAR_KEYWORD in kinds,
    )


@pytest.mark.parametrize(("name", "starts"), [(n, 0) for n in FROM_SOURCE] + [(n, 1) for n in FROM_PYTHON])
def test_a_signature_is_the_one_python_gives(project, name, starts):
    project.write({"forms.py": FORMS})
    found = runpy.run_path(str(project.root / "forms.py"))[name.partition(".")[0]]
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    said = project.targets().signature(f"forms.{name}")
    names_only = tuple(replace(parameter, accepts=None) for parameter in said.parameters)
    assert replace(said, parameters=names_only) == python_says(found)
    assert project.run.starts == starts


# --- following names across modules ----------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "from .nets import Net",
        "from shop.nets import Net",
        "from .nets import Net as Net",
        "from .nets import *",
        "from . import nets\nNet = nets.Net",
        "import shop.nets as n\nNet = n.Net",
        "import shop.nets\nNet = shop.nets.Net",
        "try:\n    from .nets import Net\nexcept ImportError:\n    pass",
        "from typing import *\nif TYPE_CHECKING:\n  from x import Net\nelse:\n    from .nets import Net",
    ],
)
def test_re_exports_are_followed_in_source(net, statement):
    net.write({"shop/__init__.py": statement})
    assert net.names("shop.Net") == ["width", "lr", "name"]
    assert net.run.starts == 0


WIDE = """
import shop as library
from shop.mixins import Quiet
class Middle(library.Net): ...
class Wide(Quiet, Middle): ...
"""


def test_an_inherited_init_is_found_across_modules_and_re_exports(net):
    net.write({"shop/__init__.py": "from .nets import Net", "shop/mixins.py": "class Quiet:\n    volume = 0"})
    net.write({"mine/__init__.py": "", "mine/sub/wide.py": WIDE})
    net.write({"mine/sub/__init__.py": "from ..sub.wide import Wide as Wider"})
    assert net.names("mine.sub.Wider") == ["width", "lr", "name"]
    assert net.run.starts == 0


def test_the_branch_that_was_taken_decides(net):
    net.write({"shop/fast.py": "import nowhere_at_all\nclass Net:\n    def __init__(self, fast): ..."})
    net.write({"shop/__init__.py": "try:\n    from .fast import *\nexcept ImportError:\n    from .nets import *"})
    assert net.names("shop.Net") == ["width", "lr", "name"]
    net.write({"shop/__init__.py": "try:\n    from .nets import *\nexcept ImportError:\n    from .fast import *"})
    assert net.names("shop.Net") == ["width", "lr", "name"]
    assert net.run.starts == 2


def test_a_name_of_the_package_goes_before_a_submodule_of_the_same_name(project):
    project.write({"tools/__init__.py": "from .build import build", "tools/build.py": "def build(b): ..."})
    assert project.names("tools.build") == ["b"]


def test_folders_without_init_are_packages(project):
    project.write({"loose/deep/nets.py": "def build(speed): ..."})
    assert project.names("loose.deep.nets.build") == ["speed"]


def test_the_projects_folder_goes_before_installed_packages(project):
    project.write({"torchmetrics.py": "class Accuracy:\n    def __init__(self, mine): ..."})
    assert project.names("torchmetrics.Accuracy") == ["mine"]


EXTENDS_ITSELF = """
from pathlib import Path
__path__.append(str(Path(__file__).parent.parent / "beside"))
"""


@pytest.mark.parametrize("imported", [True, False])
def test_a_package_that_extends_its_own_path_is_followed(project, monkeypatch, imported):
    """`orchestrator` does so in a checkout: its models lie beside it, and it is imported already."""
    project.write({"extends_itself/__init__.py": EXTENDS_ITSELF, "beside/nets.py": "def build(speed): ..."})
    if imported:
        file = project.root / "extends_itself" / "__init__.py"
        spec = importlib.util.spec_from_file_location("extends_itself", file)
        package = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "extends_itself", package)
        spec.loader.exec_module(package)
    assert project.names("extends_itself.nets.build") == ["speed"]
    assert project.run.starts == (0 if imported else 1)
    assert "extends_itself.nets" not in sys.modules


def test_names_that_lead_in_a_circle_do_not_hang(project):
    project.write({"ring.py": "Net = Net\nclass A(A): ..."})
    assert "NameError" in project.refusal({"_target_": "ring.Net"})
    assert "NameError" in project.refusal({"_target_": "ring.A"})


LAZY = """
def __getattr__(name):
    if name == "Net":
        return lambda width: width
    raise AttributeError(name)
"""


def test_names_made_at_run_time_are_asked_for(project):
    project.write({"lazy.py": LAZY})
    assert project.names("lazy.Net") == ["width"]
    assert "'lazy' has no 'Nit'" in project.refusal({"_target_": "lazy.Nit"})


@pytest.mark.parametrize("target", ["collections.OrderedDict", "datetime.timedelta", "builtins.dict"])
def test_what_is_written_in_c_takes_what_python_says_it_takes(project, target):
    project.targets().check({"_target_": target, "days": 3}, where="data.window")


# --- the nodes of a configuration ------------------------------------------------------------------


def test_a_right_node_passes(net):
    net.targets().check({"_target_": "shop.nets.Net", "width": 3, "_convert_": "all"}, where="model")


def test_keyword_arguments_of_any_name_pass_and_required_ones_stay_required(project):
    project.write({"nets.py": "class Net:\n    def __init__(self, width, **kwargs): ..."})
    project.targets().check({"_target_": "nets.Net", "width": 3, "anything": 1}, where="model")
    assert "model: nets.Net needs width" in project.refusal({"_target_": "nets.Net", "anything": 1})


def test_an_unknown_argument_names_the_nearest(net):
    said = net.refusal({"_target_": "shop.nets.Net", "widht": 3})
    assert said == (
        "model.widht=3: shop.nets.Net has no argument 'widht' (did you mean 'width'?): "
        "it takes width, lr, name\nfix: correct or remove model.widht"
    )


def test_a_missing_argument_is_named(net):
    said = net.refusal({"_target_": "shop.nets.Net", "lr": 3})
    assert said == "model: shop.nets.Net needs width: it has no default value\nfix: set model.width"


def test_a_missing_attribute_names_the_nearest(net):
    said = net.refusal({"_target_": "shop.nets.Ned"})
    assert "model: target 'shop.nets.Ned' does not exist" in said
    assert "'shop.nets' has no 'Ned' (did you mean 'Net'?)" in said


def test_a_missing_attribute_is_looked_for_among_star_imports(net):
    net.write({"shop/__init__.py": "from .nets import *"})
    assert "'shop' has no 'Nett' (did you mean 'Net'?)" in net.refusal({"_target_": "shop.Nett"})


def test_a_missing_submodule_names_the_nearest(net):
    said = net.refusal({"_target_": "shop.net.Net"})
    assert "'shop' has no 'net' (did you mean 'nets'?)" in said


def test_a_missing_package_names_the_nearest(net):
    said = net.refusal({"_target_": "shopp.nets.Net"})
    assert "no module 'shopp' (did you mean 'shop'?)" in said
    assert "install" in said


def test_a_missing_method_names_the_nearest(project):
    project.write({"forms.py": FORMS})
    said = project.refusal({"_target_": "forms.Inherits.from_fil"})
    assert "did you mean 'from_file'?" in said


@pytest.mark.parametrize(
    "target", [None, 3, "", "shop..Net", "shop.nets:Net", "shop nets", "shop.\nNet", "${x}", ["x"]]
)
def test_a_target_that_is_no_dotted_name_is_refused(project, target):
    assert f"model._target_ is {target!r}" in project.refusal({"_target_": target})


@pytest.mark.parametrize("target", ["shop.nets", "shop.nets.SIZE"])
def test_a_target_that_cannot_be_called_is_refused(project, target):
    project.write({"shop/nets.py": "SIZE = 3"})
    assert f"target {target!r} cannot be called" in project.refusal({"_target_": target})


def test_a_partial_node_may_leave_arguments_out_but_not_invent_them(net):
    net.targets().check({"_target_": "shop.nets.Net", "_partial_": True}, where="model")
    assert "'widht'" in net.refusal({"_target_": "shop.nets.Net", "_partial_": True, "widht": 1})


def test_positional_arguments_fill_the_first_names(net):
    net.targets().check({"_target_": "shop.nets.Net", "_args_": [3]}, where="model")
    assert "takes 1 by position: width" in net.refusal({"_target_": "shop.nets.Net", "_args_": [3, 4]})
    assert "given twice" in net.refusal({"_target_": "shop.nets.Net", "_args_": [3], "width": 4})
    assert "model._args_ is 'abc'" in net.refusal({"_target_": "shop.nets.Net", "_args_": "abc"})


def test_an_argument_by_position_only_cannot_be_named(project):
    project.write({"nets.py": "def build(width, /): ..."})
    assert "by position only: use `_args_`" in project.refusal({"_target_": "nets.build", "width": 1})
    assert "give width in model._args_" in project.refusal({"_target_": "nets.build"})


@pytest.mark.parametrize(
    ("node", "path"),
    [
        ({"layers": [3, {"_target_": "shop.nets.Net"}]}, "model.layers[1]"),
        (
            {"layers": [{"_target_": "outer.Outer"}, {"x": {"_target_": "shop.nets.Net"}}]},
            "model.layers[1].x",
        ),
        ({"optimizer": {"_target_": "shop.nets.Net"}}, "model.optimizer"),
        ({"plain": {"deep": [[{"_target_": "shop.nets.Net"}]]}}, "model.plain.deep[0][0]"),
        ({"_args_": [{"_target_": "shop.nets.Net"}]}, "model._args_[0]"),
    ],
)
def test_nested_nodes_are_checked_at_their_path(net, node, path):
    net.write({"outer.py": "class Outer:\n    def __init__(self, *args, **kwargs): ..."})
    assert net.refusal({"_target_": "outer.Outer", **node}).startswith(f"{path}: shop.nets.Net needs width")


def test_nested_nodes_of_a_non_recursive_target_are_completed_by_it(net):
    net.write({"outer.py": "class Outer:\n    def __init__(self, optimizer): ..."})
    node = {"_target_": "outer.Outer", "_recursive_": False, "optimizer": {"_target_": "shop.nets.Net"}}
    net.targets().check(node, where="model")
    node["optimizer"]["widht"] = 1
    assert "model.optimizer.widht=1" in net.refusal(node)


def test_arguments_that_the_engine_passes_count_as_given(net):
    net.targets().check({"_target_": "shop.nets.Net"}, where="trainer", given=["width"])
    said = net.refusal({"_target_": "shop.nets.Net", "width": 1}, where="trainer", given=["logger"])
    assert "trainer: shop.nets.Net has no argument 'logger'" in said
    assert "the engine passes it" in said


# --- asking Python ---------------------------------------------------------------------------------

DECORATED = """
print("talk of the import")
from .sizes import wrapped
class Net:
    @wrapped
    def __init__(self, width): ...
"""
SIZES = """
import functools
def wrapped(f):
    @functools.wraps(f)
    def inner(*args, **kwargs): return f(*args, **kwargs)
    return inner
"""


def test_python_is_asked_once_and_its_answer_kept(project):
    project.write({"shop/nets.py": DECORATED, "shop/sizes.py": SIZES})
    for _ in range(3):
        assert project.names("shop.nets.Net") == ["width"]
    assert project.run.starts == 1


@pytest.mark.parametrize("edited", ["shop/nets.py", "shop/sizes.py"])
def test_an_edit_of_any_file_that_took_part_asks_again(project, edited):
    files = {"shop/nets.py": DECORATED, "shop/sizes.py": SIZES}
    project.write(files)
    assert project.names("shop.nets.Net") == ["width"]
    changed = {"shop/nets.py": ("width", "height"), "shop/sizes.py": ("@functools.wraps(f)", "")}[edited]
    project.write({edited: files[edited].replace(*changed)})
    assert project.names("shop.nets.Net") == ({"shop/nets.py": ["height"], "shop/sizes.py": []}[edited])
    assert project.run.starts == 2


def test_an_answer_about_an_installed_package_holds_until_something_is_installed(project):
    site = project.root / "lib" / "site-packages"
    project.write({"lib/site-packages/kit/nets.py": DECORATED, "lib/site-packages/kit/sizes.py": SIZES})
    (site / "kit-1.0.dist-info").mkdir()

    def names() -> list[str]:
        targets = Targets([str(site), *sys.path], project.cache, run=project.run)
        return [parameter.name for parameter in targets.signature("kit.nets.Net").parameters]

    assert names() == names() == ["width"]
    assert project.run.starts == 1
    project.write({"lib/site-packages/kit/nets.py": DECORATED.replace("width", "height")})
    (site / "kit-1.0.dist-info").rename(site / "kit-1.1.dist-info")
    assert names() == ["height"]
    assert project.run.starts == 2


def test_a_damaged_answer_is_asked_again(project):
    project.write({"shop/nets.py": DECORATED, "shop/sizes.py": SIZES})
    project.names("shop.nets.Net")
    (kept,) = project.cache.iterdir()
    answer = {"signature": {"parameters": [3]}, "files": {}}
    wrong_shape = json.dumps(json.loads(kept.read_bytes()) | {"answer": answer}).encode()
    for damage in (b"", b"\0\0", b"[]", wrong_shape, kept.read_bytes()[:-9]):
        kept.write_bytes(damage)
        assert project.names("shop.nets.Net") == ["width"]
    assert json.loads(kept.read_bytes())["answer"]["files"]


def test_a_cache_that_cannot_be_written_only_costs_time(project):
    project.write({"shop/nets.py": DECORATED, "shop/sizes.py": SIZES})
    project.cache.write_text("a file where the folder should be")
    assert project.names("shop.nets.Net") == ["width"]


def test_asking_writes_nothing_into_the_project(project):
    project.write({"shop/nets.py": DECORATED, "shop/sizes.py": SIZES})
    before = sorted(project.root.rglob("*"))
    project.names("shop.nets.Net")
    assert project.run.starts == 1
    assert sorted(project.root.rglob("*")) == before


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def broken(:", "SyntaxError: invalid syntax (nets.py, line 3)"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import os; os._exit(0)", "the import ended the process"),
        ("import os; os.kill(os.getpid(), 9)", "exit status -9"),
    ],
)
def test_a_failing_import_is_shown(project, source, reason):
    project.write({"shop/nets.py": f"\n\n{source}\nNet = make()"})
    said = project.refusal({"_target_": "shop.nets.Net"})
    assert "model: target 'shop.nets.Net' cannot be imported" in said
    assert reason in said


def test_a_failed_import_is_tried_again(project):
    project.write({"shop/nets.py": "from .sizes import make\nNet = make()", "shop/sizes.py": ""})
    assert "cannot import name 'make'" in project.refusal({"_target_": "shop.nets.Net"})
    project.write({"shop/sizes.py": "def make():\n    return lambda width: width"})
    assert project.names("shop.nets.Net") == ["width"]


# --- the values of arguments -------------------------------------------------------------------------

PLAIN = """
import typing as t
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, TypeVar, Union
T = TypeVar("T")
Alias = int

class Net:
    def __init__(
        self, i: int, f: float = 0.1, b: bool = True, s: str = "s", oi: Optional[int] = 3,
        u: int | str | None = None, uf: t.Union[float, bool] = 0.0, lit: Literal["a", "b", 3] = "a",
        ol: "t.Literal['x'] | None" = None, ann: Annotated[int, "at least 1"] = 1, implicit: int = None,
        quoted: "Optional[float]" = None, negative: int = -1, wrong: int = "not an int", none: None = None,
        path: Path = Path(), any: Any = 1, alias: Alias = 1, shape: list[int] = (), var: T = 1,
        half: int | Path = 1, bare=1, late: "Unknown" = 1, broken: "not a type (" = 1, nested: Optional["int"] = 1,
    ): ...

@dataclass
class Named:
    size: int
    rate: float = field(default=0.1)
    seed: InitVar[int] = 0

def wrapped(function):
    import functools
    @functools.wraps(function)
    def inner(*args, **kwargs): return function(*args, **kwargs)
    return inner

@wrapped
def asked(i: int, f: Optional[float] = None, m: Literal["min", "max"] = "min", p: Path = None, w: int = "x"): ...
@wrapped
def asked_text(i: "int", u: "int | None" = 3, x: "Unknown" = 1): ...
"""

REFUSED = [
    ("Net", "i", "abc", "an int"),
    ("Net", "i", 1.0, "an int"),
    ("Net", "i", True, "an int"),
    ("Net", "i", None, "an int"),
    ("Net", "i", [1], "an int"),
    ("Net", "i", {"a": 1}, "an int"),
    ("Net", "i", "<view>", "an int"),
    ("Net", "f", "1e-3", "a float"),
    ("Net", "f", False, "a float"),
    ("Net", "b", 1, "true or false"),
    ("Net", "b", "true", "true or false"),
    ("Net", "s", 3, "text"),
    ("Net", "s", None, "text"),
    ("Net", "oi", "3", "an int or null"),
    ("Net", "u", 0.5, "an int, text or null"),
    ("Net", "uf", "x", "a float or true or false"),
    ("Net", "lit", "c", "'a', 'b' or 3"),
    ("Net", "lit", 3.0, "'a', 'b' or 3"),
    ("Net", "ol", "y", "'x' or null"),
    ("Net", "ann", "1", "an int"),
    ("Net", "implicit", "x", "an int or null"),
    ("Net", "quoted", "x", "a float or null"),
    ("Net", "negative", "x", "an int"),
    ("Net", "none", 0, "null"),
    ("Net", "nested", "x", "an int or null"),
    ("Named", "size", "x", "an int"),
    ("Named", "rate", "x", "a float"),
    ("asked", "i", "x", "an int"),
    ("asked", "f", "x", "a float or null"),
    ("asked", "m", "mean", "'min' or 'max'"),
    ("asked_text", "i", 0.5, "an int"),
    ("asked_text", "u", "x", "an int or null"),
]
ADMITTED = [
    ("Net", "i", 3),
    ("Net", "f", 3),
    ("Net", "f", 0.5),
    ("Net", "b", False),
    ("Net", "s", "<view>/train"),
    ("Net", "s", "<project>"),
    ("Net", "oi", None),
    ("Net", "u", "x"),
    ("Net", "u", None),
    ("Net", "uf", True),
    ("Net", "uf", 3),
    ("Net", "lit", 3),
    ("Net", "ol", None),
    ("Net", "implicit", None),
    ("Net", "wrong", "x"),
    ("Net", "path", "x"),
    ("Net", "any", [1]),
    ("Net", "alias", "x"),
    ("Net", "shape", 3),
    ("Net", "var", "x"),
    ("Net", "half", "x"),
    ("Net", "bare", "x"),
    ("Net", "late", "x"),
    ("Net", "broken", "x"),
    ("Net", "i", {"_target_": "builtins.int"}),
    ("Named", "rate", 1),
    ("Named", "seed", "x"),
    ("asked", "f", None),
    ("asked", "p", "x"),
    ("asked", "w", 0.5),
    ("asked_text", "x", "x"),
]
REQUIRED = {"Net": {"i": 1}, "Named": {"size": 1}, "asked": {"i": 1}, "asked_text": {"i": 1}}


@pytest.mark.parametrize(("name", "key", "value", "taken"), REFUSED)
def test_a_value_that_the_annotation_cannot_mean_is_refused(project, name, key, value, taken):
    project.write({"plain.py": PLAIN})
    said = project.refusal({"_target_": f"plain.{name}", **REQUIRED[name], key: value})
    assert said == f"model.{key} is {value!r}: plain.{name} takes {taken}\nfix: give model.{key} {taken}, or remove it"


@pytest.mark.parametrize(("name", "key", "value"), ADMITTED)
def test_a_value_that_may_be_right_is_accepted(project, name, key, value):
    project.write({"plain.py": PLAIN})
    project.targets().check({"_target_": f"plain.{name}", **REQUIRED[name], key: value}, where="model")


def test_names_of_a_star_import_may_shadow_builtins(project):
    project.write({"odd.py": "int = str", "nets.py": "from odd import *\ndef build(width: int): ..."})
    project.targets().check({"_target_": "nets.build", "width": "abc"}, where="model")


def test_values_by_position_and_in_nested_nodes_are_checked(project):
    project.write({"plain.py": PLAIN})
    assert "model._args_[1] is 'x'" in project.refusal({"_target_": "plain.Net", "_args_": [1, "x"]})
    assert "model.any.f is 'x'" in project.refusal(
        {"_target_": "plain.Net", "i": 1, "any": {"_target_": "plain.Net", "_partial_": True, "f": "x"}}
    )


def test_every_point_of_a_sweep_has_its_values_checked(project):
    project.write({"plain.py": PLAIN})
    targets = project.targets()
    for value in (1, 2, 3):
        targets.check({"_target_": "plain.Net", "i": value}, where="model")
    with pytest.raises(ConfigError, match=r"model\.i is 'abc'"):
        targets.check({"_target_": "plain.Net", "i": "abc"}, where="model")


def test_lightnings_trainer_refuses_text_for_a_number(project):
    said = project.refusal({"_target_": "pytorch_lightning.Trainer", "max_epochs": "ten"}, where="trainer")
    assert "trainer.max_epochs is 'ten': pytorch_lightning.Trainer takes an int or null" in said
    assert "'32-treu'" in project.refusal({"_target_": "pytorch_lightning.Trainer", "precision": "32-treu"})


# --- callbacks that Lightning refuses side by side ---------------------------------------------------

CALLBACKS = """
from lightning.pytorch.callbacks import Callback, EarlyStopping, TQDMProgressBar
class Bar(TQDMProgressBar): ...
class Stop(EarlyStopping):
    def __init__(self, metric): ...
class Counts(Callback):
    def __init__(self, start=0): ...
    def state_dict(self): ...
class Named(Counts):
    def __init__(self, metric): ...
    @property
    def state_key(self):
        return self._generate_state_key(name=self.metric)
class Plain(Callback):
    def __init__(self, start=0): ...
class NoCallback:
    def state_dict(self): ...
"""
KEPT = {"_target_": "pytorch_lightning.callbacks.ModelCheckpoint", "monitor": "val/loss"}
STOP = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/loss"}
RICH = {"_target_": "lightning.pytorch.callbacks.RichProgressBar"}


def together(project: Project, first: dict[str, object], second: dict[str, object]) -> None:
    targets = project.write({"mine.py": CALLBACKS}).targets()
    check_together(
        {name: (node, targets.lineage(str(node["_target_"]))) for name, node in (("a", first), ("b", second))}
    )


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        (RICH, {"_target_": "mine.Bar"}, "takes one progress bar"),
        (
            STOP,
            {**STOP, "_target_": "pytorch_lightning.callbacks.EarlyStopping", "patience": 9},
            "class, monitor, mode",
        ),
        (KEPT, {**KEPT, "filename": "again"}, "class, monitor, mode, every_n_train_steps"),
        (
            {"_target_": "mine.Counts"},
            {"_target_": "mine.Counts", "start": 3},
            "distinguishes their states by class, which are the same",
        ),
        ({"_target_": "mine.Stop", "metric": "a"}, {"_target_": "mine.Stop", "metric": "a"}, "class, metric"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value["_target_"]),
)
def test_callbacks_of_which_a_trainer_takes_one_are_refused(project, first, second, why):
    with pytest.raises(ConfigError) as caught:
        together(project, first, second)
    assert caught.value.what == "trainer.callbacks.a and trainer.callbacks.b cannot be used together"
    assert why in caught.value.why
    assert "trainer.callbacks.b=null" in caught.value.fix


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (RICH, STOP),
        (STOP, {**STOP, "monitor": "val/acc", "mode": "max"}),
        (STOP, {"_target_": STOP["_target_"], "_args_": ["val/acc"]}),
        (KEPT, {**KEPT, "every_n_epochs": 5}),
        ({"_target_": "mine.Plain"}, {"_target_": "mine.Plain"}),
        ({"_target_": "mine.NoCallback"}, {"_target_": "mine.NoCallback"}),
        ({"_target_": "mine.Stop", "metric": "a"}, {"_target_": "mine.Stop", "metric": "b"}),
        ({"_target_": "mine.Named", "metric": "a"}, {"_target_": "mine.Named", "metric": "b"}),
        ({"_target_": "mine.Counts"}, {"_target_": "functools.partial", "_args_": []}),
    ],
    ids=lambda value: str(value["_target_"]),
)
def test_callbacks_that_a_trainer_takes_together_pass(project, first, second):
    together(project, first, second)


# --- real libraries --------------------------------------------------------------------------------


LIGHTNING = """
import pytorch_lightning as pl
from lightning.pytorch import LightningModule
from torch import nn
from somewhere import anything

class Direct(pl.LightningModule): ...
class Mixed(nn.Module, LightningModule): ...
class Derived(Mixed, Plain): ...
class Unknown(nn.Module, anything.Base): ...
class Plain: ...
class Data(pl.LightningDataModule): ...
def made(): ...
"""


@pytest.mark.parametrize("name", ["Direct", "Mixed", "Derived", "Unknown", "Plain", "Data", "made"])
def test_what_may_be_a_lightning_module_is_not_refused(project, name):
    project.write({"shop/light.py": LIGHTNING})
    project.targets().check_model(f"shop.light.{name}")


def test_torch_is_read_from_source(project):
    targets = project.targets()
    targets.check({"_target_": "torch.optim.Adam", "_partial_": True, "lr": 1e-3}, where="model.optimizer")
    targets.check({"_target_": "torch.nn.Linear", "in_features": 3, "out_features": 4}, where="model.head")
    assert "(did you mean 'lr'?)" in project.refusal({"_target_": "torch.optim.Adam", "params": [], "lrr": 1})
    assert "(did you mean 'Linear'?)" in project.refusal({"_target_": "torch.nn.Linaer"})
    assert project.run.starts == 0


def test_lightnings_decorated_trainer_is_asked_for_once(project):
    node = {"_target_": "pytorch_lightning.Trainer", "max_epochs": 3}
    project.targets().check(node, where="trainer", given=["logger", "callbacks"])
    assert project.run.starts == 1
    assert "(did you mean 'max_epochs'?)" in project.refusal({**node, "max_epoch": 3}, where="trainer")
    assert project.run.starts == 1


HEAVY = """
import functools
import torch
from pytorch_lightning.demos.boring_classes import BoringModel
raise RuntimeError("nobody may import this")
class Inherits(BoringModel): ...
class Keywords(torch.nn.Module):
    def __init__(self, width, **kwargs): ...
"""
DECORATES = f"""
import torch
{SIZES}
class Decorated:
    @wrapped
    def __init__(self, width): ...
"""
CHECK = """
import json, sys
from pathlib import Path
from orchestrator.config.targets import Targets
path, cache, nodes = json.load(sys.stdin)
targets = Targets(path, Path(cache))
for node in nodes:
    targets.check(node, where="model")
heavy = {"torch", "pytorch_lightning", "lightning_fabric", "torchmetrics", "hydra", "shop", "mine"}
print(sorted(heavy & set(sys.modules)))
"""


def test_checking_imports_neither_torch_nor_lightning(project):
    project.write({"shop/nets.py": HEAVY, "shop/__init__.py": "from .nets import *"})
    project.write({"mine/decorated.py": DECORATES})
    nodes = [
        {"_target_": "pytorch_lightning.demos.boring_classes.BoringModel"},
        {"_target_": "pytorch_lightning.demos.boring_classes.BoringDataModule"},
        {"_target_": "pytorch_lightning.callbacks.ModelCheckpoint", "monitor": "loss"},
        {"_target_": "shop.Inherits"},
        {"_target_": "shop.Keywords", "width": 3, "depth": 4},
        {"_target_": "mine.decorated.Decorated", "width": 3},
    ]
    question = json.dumps([[str(project.root), *sys.path], str(project.cache), nodes])
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        input=question,
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
