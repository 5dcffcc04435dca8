"""The signature of a target, read from source: imports and base classes are followed, nothing is run.

A class's own `__init__` is trusted; an inherited one only if no class on the way has a metaclass or a
`__new__` of its own. Anything else that could change a signature (a decorator, a patch, a name bound in
two branches, a module's `__getattr__`) raises UnsureError.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from orchestrator.config.targets import dataclass_fields
from orchestrator.config.targets.annotation import Qualified, accepts
from orchestrator.config.targets.module import Module, Modules
from orchestrator.config.targets.scope import Binding, Bound, Function, ImportedModule, ImportedName, Scope, scan
from orchestrator.config.targets.signature import AbsentError, Kind, Parameter, Signature, UnsureError

_HARMLESS_DECORATORS = {
    f"{module}.{name}"
    for module in ("typing", "typing_extensions")
    for name in ("final", "override", "overload", "runtime_checkable", "no_type_check", "deprecated")
} | {"abc.abstractmethod", "functools.total_ordering", "warnings.deprecated"}
_EMPTY_BASES = {
    "builtins.object",
    "abc.ABC",
    "typing.Generic",
    "typing.Protocol",
    "typing_extensions.Generic",
    "typing_extensions.Protocol",
}
_MODULE = "torch.nn.Module"
_TORCH = {_MODULE}
_LIBRARIES = {"torch", "pytorch_lightning", "lightning"}
_CONSTRUCTORS = ("__new__", "__signature__")


@dataclass(frozen=True, slots=True)
class Class:
    """A class statement and its module."""

    module: Module
    node: ast.ClassDef
    scope: Scope = field(compare=False)


@dataclass(frozen=True, slots=True)
class Routine:
    """A function statement and its module."""

    module: Module
    node: Function


Item = Module | Class | Routine


class Source:
    """Reads signatures from the source of a search path's modules."""

    def __init__(self, modules: Modules) -> None:
        self._modules = modules
        self._open: set[tuple[str, str]] = set()

    def signature(self, target: str) -> Signature:
        """Return the signature of a target. Raises UnsureError, or AbsentError for a wrong name."""
        with _no_circle(target):
            return self._of(self._located(target))

    def lineage(self, target: str) -> list[Class]:
        """Return a class and its base classes, the nearest first. Raises the errors of `signature`."""
        with _no_circle(target):
            item = self._located(target)
            return self._mro(item) if isinstance(item, Class) else []

    def is_bare_module(self, target: str) -> bool:
        """Return whether a target is a torch module, and certainly not a LightningModule."""
        try:
            found = self._located(target)
            return isinstance(found, Class) and self._bases_of(found) == _TORCH
        except (UnsureError, AbsentError, RecursionError):
            return False

    def _bases_of(self, cls: Class) -> set[str]:
        """Return the classes of torch and Lightning that a class derives from, as imports spell them."""
        if cls.module.name.partition(".")[0] in _LIBRARIES:
            return {_MODULE if cls.module.name.startswith("torch.nn.") else cls.node.name}
        named = {self._qualified(cls.module, node): node for node in cls.node.bases}
        found = {name for name in named if name.partition(".")[0] in _LIBRARIES}
        others = (self._base(cls.module, node) for name, node in named.items() if name not in found | _EMPTY_BASES)
        inner = (name for base in others for name in self._bases_of(base))
        return {_MODULE if name.startswith("torch.nn.") else name for name in (*found, *inner)}

    def _located(self, target: str) -> Item:
        top, *rest = target.split(".")
        item: Item = self._module(top)
        for name in rest:
            item = self._attribute(item, name)
        return item

    def _of(self, item: Item) -> Signature:
        match item:
            case Class():
                return self._of_class(item)
            case Routine():
                return self._of_function(item)
            case Module():
                raise UnsureError(f"{item.name} is a module")

    # --- names -------------------------------------------------------------------------------------

    def _module(self, name: str) -> Module:
        module = self._modules.find(name)
        if module is None:
            raise UnsureError(f"the module {name} is not on the search path")
        return module

    def _attribute(self, item: Item, name: str) -> Item:
        match item:
            case Module():
                return self._member(item, name)
            case Class():
                return self._class_member(item, name)
            case Routine():
                raise UnsureError("an attribute of a function")

    def _member(self, module: Module, name: str) -> Item:
        """Return what `module.name` is: a name bound by the module takes precedence over a submodule."""
        found = self._bound_member(module, name) or self._modules.find(f"{module.name}.{name}")
        if found is None and module.dynamic:
            raise UnsureError(f"{module.name} makes names at run time")
        if found is None:
            raise AbsentError(module.name, name, self._names(module, set()))
        return found

    def _names(self, module: Module, seen: set[str]) -> tuple[str, ...]:
        """Return the names of a module, including those of its star imports."""
        seen.add(module.name)
        found = [*module.names()]
        for star in module.scope.stars:
            source = self._modules.find(_imported_from(module, star))
            if source is not None and source.name not in seen:
                found += self._names(source, seen)
        return tuple(found)

    def _bound_member(self, module: Module, name: str) -> Item | None:
        if (module.name, name) in self._open:  # `from . import x` in a package: x is the submodule
            if (submodule := self._modules.find(f"{module.name}.{name}")) is None:
                raise UnsureError(f"{module.name}.{name} is bound to itself")
            return submodule
        with self._opened(module, name):
            candidates, stars = module.scope.candidates(name), module.scope.stars
            for index, binding in enumerate(candidates):
                found = self._through_star(module, binding, name) if binding in stars else None
                if found is None and binding in stars:
                    continue
                _refuse_branches(name, binding, candidates[index + 1 :], stars)
                return found or self._follow(module, binding.bound)
        return None

    @contextmanager
    def _opened(self, module: Module, name: str) -> Iterator[None]:
        self._open.add((module.name, name))
        try:
            yield
        finally:
            self._open.discard((module.name, name))

    def _follow(self, module: Module, bound: Bound) -> Item:
        match bound:
            case ast.ClassDef():
                return Class(module, bound, scan(bound.body))
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                return Routine(module, bound)
            case ImportedModule(module=name):
                return self._module(name)
            case ImportedName(name=name):
                return self._member(self._module(_absolute(module, bound)), name)
            case ast.Name(id=name):
                return self._member(module, name)
            case ast.Attribute(value=value, attr=name):
                return self._attribute(self._follow(module, value), name)
            case _:
                raise UnsureError("bound to a value that is made at run time")

    def _through_star(self, module: Module, star: Binding, name: str) -> Item | None:
        source = self._module(_imported_from(module, star))
        exported = _exports(source)
        if name in exported if exported is not None else not name.startswith("_"):
            return self._bound_member(source, name)
        return None

    def _class_member(self, cls: Class, name: str) -> Item:
        line = self._mro(cls)
        for holder in line:
            bindings = holder.scope.names.get(name)
            if bindings:
                if len(bindings) > 1:
                    raise UnsureError(f"{name} is bound more than once")
                return self._follow(holder.module, bindings[0].bound)
        known = tuple(known for holder in line for known in holder.scope.names)
        raise AbsentError(f"{cls.module.name}.{cls.node.name}", name, known)

    def _qualified(self, module: Module, node: ast.expr) -> str:
        """Return the full name of an expression as the module's imports spell it, without reading them."""
        match node:
            case ast.Call(func=inner) | ast.Subscript(value=inner):
                return self._qualified(module, inner)
            case ast.Attribute(value=value, attr=name):
                return f"{self._qualified(module, value)}.{name}"
            case ast.Name(id=name):
                bindings = module.scope.names.get(name)
                return _spelled(module, name, bindings[-1].bound) if bindings else f"builtins.{name}"
            case _:
                return "?"

    def _plain_name(self, module: Module, node: ast.expr) -> str:
        """Return the full name of an annotation; `?` for a builtin after a star import, which may bind it too."""
        name = self._qualified(module, node)
        return "?" if name.startswith("builtins.") and module.scope.stars else name

    # --- signatures --------------------------------------------------------------------------------

    def _of_function(self, function: Routine) -> Signature:
        decorators = {self._qualified(function.module, node) for node in function.node.decorator_list}
        kinds = decorators & {"builtins.classmethod", "builtins.staticmethod"}
        if decorators - kinds - _HARMLESS_DECORATORS:
            raise UnsureError(f"{function.node.name} is decorated")
        signature = _from_arguments(function.node.args, partial(self._plain_name, function.module))
        return signature.bound() if "builtins.classmethod" in kinds else signature

    def _of_class(self, cls: Class) -> Signature:
        own = self._constructor(cls)
        if own is not None and not self._is_dataclass(cls):
            return own
        line = self._mro(cls)
        for holder in line:
            self._constructor(holder)  # raises for a constructor that cannot be read
        for holder in line:
            signature = self._constructor(holder) or self._fields(holder)
            if signature is not None:
                return signature
        return Signature()

    def _constructor(self, cls: Class) -> Signature | None:
        """Return the signature of the `__init__` that the class itself defines; None if it defines none."""
        self._refuse_unusual(cls)
        bindings = cls.scope.names.get("__init__")
        if bindings is None:
            return None
        function = bindings[-1].bound
        if not isinstance(function, ast.FunctionDef) or not bindings[-1].certain:
            raise UnsureError(f"{cls.node.name}.__init__ is not a plain method")
        return self._of_function(Routine(cls.module, function)).bound()

    def _refuse_unusual(self, cls: Class) -> None:
        decorators = {self._qualified(cls.module, node) for node in cls.node.decorator_list}
        keywords = {self._qualified(cls.module, keyword.value) for keyword in cls.node.keywords}
        if decorators - _HARMLESS_DECORATORS - {dataclass_fields.DECORATOR}:
            raise UnsureError(f"{cls.node.name} is decorated")
        if keywords - {"abc.ABCMeta"}:
            raise UnsureError(f"{cls.node.name} has a metaclass")
        if any(name in cls.scope.names for name in _CONSTRUCTORS):
            raise UnsureError(f"{cls.node.name} has a constructor of its own")

    def _mro(self, cls: Class) -> list[Class]:
        """Return the method resolution order (Python's C3), without the classes that have no effect on a signature."""
        bases = [
            self._base(cls.module, node)
            for node in cls.node.bases
            if self._qualified(cls.module, node) not in _EMPTY_BASES
        ]
        return [cls, *_merge([*(self._mro(base) for base in bases), bases])]

    def _base(self, module: Module, node: ast.expr) -> Class:
        expression = node.value if isinstance(node, ast.Subscript) else node
        if isinstance(expression, ast.Name) and len(module.scope.names.get(expression.id, ())) > 1:
            raise UnsureError(f"which {expression.id} is the base class depends on the line")
        try:
            found = self._follow(module, expression)
        except AbsentError as error:
            raise UnsureError(f"the base class {error} was not found") from error
        if not isinstance(found, Class):
            raise UnsureError("a base class that is not a class statement")
        return found

    # --- dataclasses -------------------------------------------------------------------------------

    def _is_dataclass(self, cls: Class) -> bool:
        decorators = (self._qualified(cls.module, node) for node in cls.node.decorator_list)
        return dataclass_fields.DECORATOR in decorators

    def _fields(self, cls: Class) -> Signature | None:
        if not self._is_dataclass(cls):
            return None
        fields: dict[str, Parameter | None] = {}
        for holder in reversed(self._mro(cls)):
            if self._is_dataclass(holder):
                fields |= dataclass_fields.read(
                    holder.node, partial(self._qualified, holder.module), partial(self._plain_name, holder.module)
                )
        return dataclass_fields.signature(fields)


@contextmanager
def _no_circle(target: str) -> Iterator[None]:
    try:
        yield
    except RecursionError as error:  # names that lead in a circle
        raise UnsureError(f"{target} is bound to itself") from error


def _refuse_branches(name: str, binding: Binding, earlier: list[Binding], stars: list[Binding]) -> None:
    """Raise UnsureError if only the running code decides which of several bindings is in effect."""
    rivals = (other for other in earlier if other not in stars or not other.certain)
    if not binding.certain and any(rivals):
        raise UnsureError(f"{name} is bound in more than one branch")


def _absolute(module: Module, imported: ImportedName) -> str:
    """Return the full name of the module that a relative import refers to."""
    if imported.level == 0:
        return imported.module
    package = module.package.split(".")
    kept = package[: len(package) - imported.level + 1]
    return ".".join([*kept, *filter(None, [imported.module])])


def _imported_from(module: Module, star: Binding) -> str:
    return _absolute(module, star.bound) if isinstance(star.bound, ImportedName) else ""


def _spelled(module: Module, name: str, bound: Bound) -> str:
    match bound:
        case ImportedModule(module=imported):
            return imported
        case ImportedName(name=original):
            return f"{_absolute(module, bound)}.{original}"
        case _:
            return f"{module.name}.{name}"


def _exports(module: Module) -> set[str] | None:
    """Return what `__all__` lists; None if there is none, or it is computed at run time."""
    bindings = module.scope.names.get("__all__", [])
    if len(bindings) != 1 or not isinstance(bindings[0].bound, ast.List | ast.Tuple):
        return None
    return {str(node.value) for node in bindings[0].bound.elts if isinstance(node, ast.Constant)}


def _from_arguments(arguments: ast.arguments, qualified: Qualified) -> Signature:
    kinds: list[tuple[Kind, ast.arg]] = [("positional_only", node) for node in arguments.posonlyargs]
    kinds += [("positional_or_keyword", node) for node in arguments.args]
    kinds += [("keyword_only", node) for node in arguments.kwonlyargs]
    without = len(kinds) - len(arguments.defaults) - len(arguments.kw_defaults)
    defaults = [*[None] * without, *arguments.defaults, *arguments.kw_defaults]
    return Signature(
        parameters=tuple(
            Parameter(
                name=node.arg,
                kind=kind,
                required=default is None,
                accepts=accepts(node.annotation, qualified, default),
            )
            for (kind, node), default in zip(kinds, defaults, strict=True)
        ),
        var_positional=arguments.vararg is not None,
        var_keyword=arguments.kwarg is not None,
    )


def _merge(sequences: list[list[Class]]) -> list[Class]:
    """Merge orders so that each is kept: the C3 linearisation, see Python's own description of its MRO."""
    merged: list[Class] = []
    while sequences := [sequence for sequence in sequences if sequence]:
        heads = (sequence[0] for sequence in sequences)
        head = next((h for h in heads if not any(h in sequence[1:] for sequence in sequences)), None)
        if head is None:
            raise UnsureError("base classes without a consistent order")
        merged.append(head)
        sequences = [[cls for cls in sequence if cls != head] for sequence in sequences]
    return merged
