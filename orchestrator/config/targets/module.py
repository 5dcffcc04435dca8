"""Modules found and parsed without importing them or their parents.

`importlib.util.find_spec` on a dotted name imports the parents, which for Lightning takes seconds. Built-in
modules, and those that only an import hook finds (some editable installs), are not found here.
"""

from __future__ import annotations

import ast
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from orchestrator.config.lightning_names import canonical
from orchestrator.config.targets.scope import Scope, scan
from orchestrator.config.targets.signature import UnsureError

_DYNAMIC = ("__getattr__", "__path__", "globals()", "setattr(", "sys.modules", "exec(", "vars(")


class Module:
    """A module's source; `locations` are the folders of its submodules, empty for a plain module."""

    def __init__(self, name: str, spec: ModuleSpec, locations: tuple[str, ...]) -> None:
        self.name, self.locations = name, locations
        self._spec = spec

    @property
    def file(self) -> str | None:
        """The file that was read; None if the module has none, or it was not read."""
        return self._spec.origin if "source" in self.__dict__ else None

    @property
    def package(self) -> str:
        """The package that `from . import` refers to in this module."""
        is_package = self._spec.submodule_search_locations is not None
        return self.name if is_package else self.name.rpartition(".")[0]

    @cached_property
    def source(self) -> str:
        """The source text; empty for a folder without `__init__.py`. Raises UnsureError for an extension module."""
        if self._spec.loader is None or self._spec.origin is None:
            return ""
        try:
            source = self._spec.loader.get_source(self._spec.name)  # type: ignore[attr-defined]  # optional in the protocol
        except (AttributeError, ImportError, OSError) as error:
            raise UnsureError(f"{self.name} has no readable source") from error
        if not isinstance(source, str):
            raise UnsureError(f"{self.name} is not written in Python")
        return source

    @cached_property
    def scope(self) -> Scope:
        try:
            return scan(ast.parse(self.source).body)
        except (SyntaxError, ValueError, RecursionError) as error:
            raise UnsureError(f"{self.name} cannot be parsed") from error

    @property
    def dynamic(self) -> bool:
        """Whether the module may have names that its source does not show."""
        return any(word in self.source for word in _DYNAMIC)

    def names(self) -> tuple[str, ...]:
        """Return the names of the module's attributes: those defined, and the submodules."""
        return (*self.scope.names, *_modules_in(self.locations))


class Modules:
    """The modules of a search path, each found and parsed once."""

    def __init__(self, search_path: Sequence[str]) -> None:
        self._search_path = tuple(search_path)
        self._known: dict[str, Module | None] = {}

    def find(self, name: str) -> Module | None:
        """Return a module as the run will import it: a run uses one of Lightning's two distributions for both."""
        name = canonical(name, lambda package: self._at(package) is not None)
        return self._at(name)

    def files(self) -> set[str]:
        """Return the files that were read."""
        return {module.file for module in self._known.values() if module is not None and module.file}

    def top_level(self) -> tuple[str, ...]:
        return tuple(_modules_in(self._search_path))

    def _at(self, name: str) -> Module | None:
        if name not in self._known:
            self._known[name] = self._find(name)
        return self._known[name]

    def _find(self, name: str) -> Module | None:
        parent, _, tail = name.rpartition(".")
        if not name or name in sys.builtin_module_names:
            return None
        folders = self._search_path
        if parent:
            package = self.find(parent)
            folders = package.locations if package else ()
        # By its last name only: for a dotted folder without __init__.py, importlib needs the imported parent.
        spec = PathFinder.find_spec(tail, list(folders)) if folders else None
        return Module(name, spec, _locations(name, spec)) if spec else None


def _modules_in(folders: Iterable[str]) -> list[str]:
    """Return the names that can be imported from folders, including folders without `__init__.py`."""
    plain = (path for folder in folders if Path(folder).is_dir() for path in Path(folder).iterdir())
    names = [path.name for path in plain if path.name.isidentifier() and path.is_dir()]
    return [*names, *(found.name for found in pkgutil.iter_modules(list(folders)))]


def _locations(name: str, spec: ModuleSpec) -> tuple[str, ...]:
    """Return the folders of submodules; if this very file is already imported, those of the imported package."""
    loaded = sys.modules.get(name)
    if loaded is not None and spec.origin and getattr(loaded, "__file__", None) == spec.origin:
        return tuple(getattr(loaded, "__path__", ()))
    return tuple(spec.submodule_search_locations or ())
