"""The names that the body of a module or of a class binds, in the order in which it binds them.

Reads the body alone: `source` follows imports.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field

Function = ast.FunctionDef | ast.AsyncFunctionDef

_PATCHES = {"__init__", "__new__", "__call__", "__signature__", "__wrapped__"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedModule:
    """`import a.b as c`, or `import a`."""

    module: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedName:
    """`from .module import name`; `level` counts the dots and `name` may be `*`."""

    module: str
    level: int
    name: str


Bound = ast.ClassDef | Function | ImportedModule | ImportedName | ast.expr | None
"""The meaning of a name; None if it is bound in a way that is not followed (a loop, `del`, a patch)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One statement that binds a name; `certain` is False inside an `if`, a `try` or a loop."""

    bound: Bound
    position: int
    certain: bool


@dataclass(frozen=True, slots=True)
class Scope:
    """All bindings of one body; star imports, whose names are not known here, are kept separately."""

    names: dict[str, list[Binding]] = field(default_factory=dict)
    stars: list[Binding] = field(default_factory=list)

    def candidates(self, name: str) -> list[Binding]:
        """Return the bindings that `name` may have, the last first."""
        return sorted([*self.names.get(name, ()), *self.stars], key=lambda b: b.position, reverse=True)


class _Scanner(ast.NodeVisitor):
    """Visits statements and never enters a function or a class."""

    def __init__(self) -> None:
        self.scope = Scope()
        self._position = 0
        self._depth = 0

    def _binding(self, bound: Bound) -> Binding:
        self._position += 1
        return Binding(bound=bound, position=self._position, certain=self._depth == 0)

    def _bind(self, name: str, bound: Bound) -> None:
        self.scope.names.setdefault(name, []).append(self._binding(bound))

    def _definition(self, node: ast.ClassDef | Function) -> None:
        self._bind(node.name, node)

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _definition  # noqa: N815 - the names that NodeVisitor calls

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            module = alias.name if alias.asname else alias.name.partition(".")[0]
            self._bind(alias.asname or module, ImportedModule(module=module))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            bound = ImportedName(module=node.module or "", level=node.level, name=alias.name)
            if alias.name == "*":
                self.scope.stars.append(self._binding(bound))
            else:
                self._bind(alias.asname or alias.name, bound)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._assign(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._assign(node.target, node.value)

    def _assign(self, target: ast.expr, value: ast.expr | None) -> None:
        match target:
            case ast.Name(id=name):
                self._bind(name, value)
            case ast.Tuple(elts=elements) | ast.List(elts=elements):
                for element in elements:
                    self._assign(element, None)
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if attribute in _PATCHES:
                self._bind(name, None)  # `Net.__init__ = wrapped(Net.__init__)`

    def visit_Name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Load):
            self._bind(node.id, None)

    def visit_If(self, node: ast.If) -> None:
        if not _for_type_checkers(node.test):
            self._nested(node)
            return
        for statement in node.orelse:
            self.visit(statement)

    def _nested(self, node: ast.stmt) -> None:
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    visit_For = visit_AsyncFor = visit_While = _nested  # noqa: N815 - the names that NodeVisitor calls
    visit_Try = visit_TryStar = visit_Match = _nested  # noqa: N815 - as above


def _for_type_checkers(test: ast.expr) -> bool:
    return getattr(test, "id", getattr(test, "attr", "")) == "TYPE_CHECKING"


def scan(body: Iterable[ast.stmt]) -> Scope:
    """Return the names that the statements bind."""
    scanner = _Scanner()
    for statement in body:
        scanner.visit(statement)
    return scanner.scope
