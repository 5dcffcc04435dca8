"""One set of Lightning's classes, whichever of its two names a project imports them by.

Lightning comes as two distributions of the same code: `pytorch-lightning` (the packages `pytorch_lightning` and
`lightning_fabric`) and `lightning` (`lightning.pytorch` and `lightning.fabric`). To Python these are two sets of
classes, and neither's Trainer takes the other's modules, data modules or callbacks. So both names are made
to mean the same module: `import lightning.pytorch` gives `pytorch_lightning` itself. Nothing is imported before the
project asks for it, and pickles and checkpoints that use either name can be read.

The classes are those of `pytorch-lightning`, which the engine depends on and whose names are part of run ids;
`lightning` requires it, too. Where `lightning` alone is installed, it is the other way round.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType

_log = logging.getLogger(__name__)

_NAMES = {"lightning.pytorch": "pytorch_lightning", "lightning.fabric": "lightning_fabric"}
_TOP_LEVEL = frozenset({"lightning", *_NAMES.values()})


def unite() -> None:
    """Make every later import of either distribution give the modules of one. Needs the final `sys.path`."""
    if not any(isinstance(finder, _OtherName) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OtherName())


def canonical(module: str, is_installed: Callable[[str], bool]) -> str:
    """Return the name that a module of either distribution is imported by; `is_installed` takes a top-level package."""
    if module.partition(".")[0] not in _TOP_LEVEL or not is_installed("lightning"):
        return module
    names = _NAMES if is_installed("pytorch_lightning") else {name: other for other, name in _NAMES.items()}
    renamed = (n + module.removeprefix(other) for other, n in names.items() if f"{module}.".startswith(f"{other}."))
    return next(renamed, module)


class _OtherName(MetaPathFinder, Loader):
    """Finds a module by the name that is not in use, and gives the module with the other name."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        name = canonical(fullname, _is_installed)
        if name == fullname or find_spec(name) is None:
            return None
        _warn_of_two_versions()
        return ModuleSpec(fullname, self, loader_state=name)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        name = spec.loader_state
        module = importlib.import_module(name)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own specification, which the import system has just replaced."""
        spec = module.__spec__
        module.__spec__ = spec.loader_state if spec else None


@functools.cache
def _is_installed(package: str) -> bool:
    return PathFinder.find_spec(package) is not None


@functools.cache
def _warn_of_two_versions() -> None:
    try:
        used, other = version("pytorch-lightning"), version("lightning")
    except PackageNotFoundError:  # one distribution only
        return
    if used != other:
        _log.warning(
            "lightning %s and pytorch-lightning %s are installed: runs use the classes of pytorch-lightning for both;"
            " install the same version of both (pip install lightning==%s)",
            other,
            used,
            used,
        )
