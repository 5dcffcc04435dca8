"""Callbacks that Lightning does not accept together, found before the launch as far as source shows.

Any callback may be used with the engine's own: their state keys and names are never those of another callback.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.config.targets.source import Class
from orchestrator.errors import ConfigError

_PROGRESS_BAR = ".callbacks.progress.progress_bar.ProgressBar"
_CALLBACK = ".callbacks.callback.Callback"


def check_together(callbacks: Mapping[str, tuple[Mapping[str, Any], Sequence[Class]]]) -> None:
    """Raise ConfigError for the first two callbacks that a Trainer does not accept together; each has its lineage."""
    seen: dict[str, str] = {}
    for name, (node, lineage) in callbacks.items():
        for shared, reason in _claims(node, lineage):
            if shared in seen:
                raise ConfigError(
                    f"trainer.callbacks.{seen[shared]} and trainer.callbacks.{name} cannot be used together",
                    why=reason,
                    fix=f"remove one of them: trainer.callbacks.{name}=null",
                )
            seen[shared] = name


def _claims(node: Mapping[str, Any], lineage: Sequence[Class]) -> Iterator[tuple[str, str]]:
    """Yield each thing that only one callback may have, and why."""
    if any(_name(cls).endswith(_PROGRESS_BAR) for cls in lineage):
        yield "progress bar", "Lightning's Trainer takes one progress bar"
    own = [cls for cls in lineage if not _name(cls).endswith(_CALLBACK)]
    if own == lineage or not any("state_dict" in cls.scope.names for cls in own):
        return
    keys = _state_keys(lineage)
    arguments = sorted(set(node) - {"_target_"}) if keys is None else keys
    values = ", ".join(f"{key}={node[key]!r}" for key in (*arguments, "_args_") if node.get(key) is not None)
    told_by = ", ".join(["class", *arguments])
    yield f"{_name(lineage[0])}({values})", f"Lightning distinguishes their states by {told_by}, which are the same"


def _state_keys(lineage: Sequence[Class]) -> list[str] | None:
    """Return the arguments that distinguish the states of a class's callbacks; None if that is not known."""
    holder = next(cls for cls in lineage if "state_key" in cls.scope.names)
    if _name(holder).endswith(_CALLBACK):
        return []
    calls = [each for each in _within(holder, "state_key") if isinstance(each, ast.Call)]
    made = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "_generate_state_key"]
    keys = [str(each.arg) for call in made for each in call.keywords]
    built_by = next((cls for cls in lineage if "__init__" in cls.scope.names), None)
    arguments = {each.arg for each in _within(holder, "__init__") if isinstance(each, ast.arg)}
    return keys if len(made) == 1 and built_by == holder and arguments.issuperset(keys) else None


def _within(cls: Class, method: str) -> Iterator[ast.AST]:
    for binding in cls.scope.names.get(method, []):
        if isinstance(binding.bound, ast.FunctionDef):
            yield from ast.walk(binding.bound)


def _name(cls: Class) -> str:
    return f"{cls.module.name}.{cls.node.name}"
