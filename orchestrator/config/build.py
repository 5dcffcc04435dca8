"""Build objects from `_target_` nodes, as Hydra's `instantiate` does, without importing Hydra in the job."""

from __future__ import annotations

import copy
import importlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

import yaml
from yaml.representer import SafeRepresenter

from orchestrator.config.lightning_names import unite
from orchestrator.errors import ConfigError

SAVE_DIR = "save_dir"
"""The argument that a run passes to a logger whose configuration does not: a folder of the attempt."""


class Section(dict[str, object]):
    """A section of a config whose keys are attributes, too: `cfg.optim.lr` is `cfg["optim"]["lr"]`.

    A checkpoint stores it as an OrderedDict, which torch reads with `weights_only`, and without this package; YAML as
    a mapping. For another process, such as a loader's worker, it stays what it is.
    """

    def __getattr__(self, name: str) -> object:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the section has no key {name!r}; its keys are {', '.join(map(str, self))}") from None

    def __setattr__(self, name: str, value: object) -> None:
        self[name] = value

    def __deepcopy__(self, memo: dict[int, object]) -> Section:
        return Section((key, copy.deepcopy(value, memo)) for key, value in self.items())

    def __copy__(self) -> Section:
        return Section(self)

    def __reduce_ex__(self, _protocol: object) -> tuple[object, ...]:
        return OrderedDict, (list(self.items()),)


ForkingPickler.register(Section, lambda section: (Section, (dict(section),)))
for _dumper in (yaml.Dumper, yaml.SafeDumper):  # Lightning's CSVLogger writes hyperparameters with the first
    _dumper.add_representer(Section, SafeRepresenter.represent_dict)


SPECIAL: Mapping[str, tuple[object, ...]] = {
    "_target_": (),
    "_args_": (),
    "_partial_": (True, False),
    "_recursive_": (True, False),
    "_convert_": ("none", "partial", "object", "all"),
}
"""The keys of a node that are not arguments, and the values allowed for each; an empty tuple allows any."""


def build(node: object, **extra: object) -> Any:
    """Return the object that a node describes; lists and plain mappings are built item by item.

    `_args_` are positional arguments; `_partial_: true` gives a functools.partial. With `_recursive_: false` nested
    nodes are passed as written; a `_convert_` other than `none` passes plain mappings instead of Sections.
    Nested nodes inherit both. `extra` arguments are passed to the outermost target. Exceptions raised by the target
    itself pass through unchanged.
    """
    return _build(node, extra, _Mode())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mode:
    """The settings that a node inherits. `plain`: pass mappings as dicts; `recursive`: build nested nodes."""

    plain: bool = False
    recursive: bool = True

    def within(self, node: Mapping[str, object]) -> _Mode:
        convert = node.get("_convert_", "all" if self.plain else "none")
        return _Mode(plain=convert != "none", recursive=bool(node.get("_recursive_", self.recursive)))


def _build(node: object, extra: Mapping[str, object], mode: _Mode) -> object:
    if isinstance(node, Mapping) and "_target_" in node:
        return _call(node, extra, mode.within(node))
    return _each(node, partial(_build, extra={}), mode)


def _call(node: Mapping[str, Any], extra: Mapping[str, object], mode: _Mode) -> object:
    argument = partial(_build, extra={}, mode=mode) if mode.recursive else partial(_written, mode=mode)
    target = locate(str(node["_target_"]))
    named = {key: argument(value) for key, value in node.items() if not _is_special(key)}
    named |= extra
    positional = [argument(value) for value in node.get("_args_", ())]
    return partial(target, *positional, **named) if node.get("_partial_") else target(*positional, **named)


def _written(node: object, mode: _Mode) -> object:
    """Return a node as written, without building it."""
    return _each(node, _written, mode)


def _each(node: object, of: Callable[..., object], mode: _Mode) -> object:
    """Apply `of` to each item of a list or a mapping, and return anything else unchanged."""
    if isinstance(node, list | tuple):
        return [of(item, mode=mode) for item in node]
    if not isinstance(node, Mapping):
        return node
    inner = mode.within(node)
    values = {key: of(value, mode=inner) for key, value in node.items()}
    return values if inner.plain else Section(values)


def locate(dotted: str) -> Any:
    """Return the object with a dotted name as Hydra does: an attribute takes precedence over a submodule."""
    unite()
    top, *rest = dotted.split(".")
    try:
        found: Any = importlib.import_module(top)
    except ModuleNotFoundError as error:
        if error.name != top:
            raise
        raise ConfigError(
            f"target {dotted!r} does not exist", why=f"there is no module {top!r}", fix="correct the _target_"
        ) from error
    name = top
    for part in rest:
        name = f"{name}.{part}"
        if not hasattr(found, part) and hasattr(found, "__path__"):
            _import(name)
        found = getattr(found, part)
    return found


def _import(name: str) -> None:
    """Import a submodule, if there is one."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise


def _is_special(key: str) -> bool:
    return key in SPECIAL
