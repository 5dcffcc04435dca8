"""Build objects from `_target_` nodes, as Hydra's `instantiate` does, without importing Hydra in the job."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import Any

from orchestrator.errors import ConfigError


def build(node: Any, **extra: Any) -> Any:
    """Return the object that a node describes; lists and plain mappings are built item by item.

    `_args_` are positional arguments; `_partial_: true` gives a functools.partial. `extra` arguments are passed
    to the outermost target. What the target itself raises is left as it is.
    """
    if isinstance(node, list):
        return [build(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    if "_target_" not in node:
        return {key: build(value) for key, value in node.items()}
    target = locate(str(node["_target_"]))
    arguments = {key: build(value) for key, value in node.items() if not _is_special(key)} | extra
    positional = build(list(node.get("_args_", ())))
    if node.get("_partial_"):
        return functools.partial(target, *positional, **arguments)
    return target(*positional, **arguments)


def locate(dotted: str) -> Any:
    """Return the object of a dotted name, importing as much of it as is a module."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        name = ".".join(parts[:count])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                continue  # this part is an attribute, not a module
            raise
        for attribute in parts[count:]:
            found = getattr(found, attribute)
        return found
    raise ConfigError(
        f"target {dotted!r} does not exist", why=f"there is no module {parts[0]!r}", fix="correct the _target_"
    )


def _is_special(key: str) -> bool:
    return key in {"_target_", "_args_", "_partial_", "_recursive_", "_convert_"}
