"""The command line, in Hydra's override grammar: what is fixed, and what is swept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, QuotedString, Transformer
from hydra.errors import HydraException

from orchestrator.errors import ConfigError
from orchestrator.override import as_override

_CALL = re.compile(r"\s*(\w+)\s*\((.*)\)\s*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One swept key. `prefix` is the override's `+`, `++` or nothing."""

    key: str
    values: tuple[Any, ...]
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """The overrides of one command: `fixed` are passed to Hydra as they are; `values` is what they set."""

    fixed: tuple[str, ...]
    values: Mapping[str, Any]
    axes: tuple[Axis, ...]
    keys: frozenset[str]
    drop_sweep: bool


def parse(overrides: Sequence[str]) -> CommandLine:
    """Sort the overrides into fixed ones and axes; raise ConfigError for what Hydra cannot read."""
    parsed = [_parse_one(text) for text in overrides]
    drop = any(o.key_or_group == "sweep" and o.value() == "none" for o in parsed)
    axes = tuple(_axis(override) for override in parsed if override.is_sweep_override())
    fixed = tuple(text for text, o in zip(overrides, parsed, strict=True) if not o.is_sweep_override())
    values = {o.key_or_group: _plain(o.value()) for o in parsed if not o.is_sweep_override() and not o.is_delete()}
    keys = frozenset(o.key_or_group for o in parsed)
    return CommandLine(fixed=fixed, values=values, axes=axes, keys=keys, drop_sweep=drop)


def axis_of(key: str, text: str) -> Axis | None:
    """Return the axis that a sweep written as text in YAML stands for, e.g. `seed: range(0,5)`."""
    override = _parse_one(f"{key}={text}")
    return _axis(override) if override.is_sweep_override() else None


def call_of(key: str, text: str) -> tuple[str, tuple[Any, ...]]:
    """Return the name and the arguments of a call written as text in YAML, e.g. `model.lr: uniform(0, 1)`.

    The arguments are values in Hydra's grammar. Raises ConfigError where it is no such call.
    """
    call = _CALL.fullmatch(text)
    if call is None:
        raise _no_distribution(key, text, "a distribution is a name, and its arguments in parentheses")
    try:
        arguments = _parse_one(f"{key}=[{call[2]}]").value()
    except ConfigError as error:
        raise _no_distribution(key, text, error.why) from error
    if not isinstance(arguments, list):  # such as choice(1], [2)
        raise _no_distribution(key, text, "its brackets do not match")
    return call[1], tuple(arguments)


def _no_distribution(key: str, text: str, why: str) -> ConfigError:
    return ConfigError(f"sweep.random: {key} is {text!r}", why=why, fix=f'{key}: "uniform(0, 1)"')


def to_override(axis_prefix: str, key: str, value: Any, *, group: bool) -> str:
    """Return the override that sets `key` to `value`, quoted so that Hydra reads back just that."""
    return as_override(key, str(value) if group else value, prefix=axis_prefix)


def _parse_one(text: str) -> Override:
    if "=" not in text and not text.startswith("~"):
        raise ConfigError(
            f"override {text!r} has no '='",
            why="an override reads key=value",
            fix="orch plan experiment=NAME model.lr=1e-3",
        )
    key = text.lstrip("+~").partition("=")[0]
    if not key or key.partition(".")[0].partition("/")[0] == "hydra":
        raise ConfigError(
            f"override {text!r} sets {'a key of Hydra itself' if key else 'no key'}",
            why="an override sets a key of the experiment", fix="orch plan experiment=NAME model.lr=1e-3",
        )  # fmt: skip
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"override {text!r} cannot be read",
            why=reason,
            fix="quote it for the shell and for Hydra: 'key=\"a value with spaces\"'",
        ) from error


def _axis(override: Override) -> Axis:
    prefix = "++" if override.is_force_add() else "+" if override.is_add() else ""
    if isinstance(override.value(), Glob):
        raise ConfigError(
            f"sweep {override.input_line!r} cannot be expanded", why="glob() is not supported",
            fix=f"list the options: {override.key_or_group}=a,b",
        )  # fmt: skip
    try:
        values = tuple(_plain(v) for v in override.sweep_iterator(transformer=Transformer.identity))
    except (HydraException, ValueError, TypeError) as error:
        raise ConfigError(
            f"sweep {override.input_line!r} cannot be expanded", why=str(error), fix="list the values"
        ) from error
    return Axis(key=override.key_or_group, values=values, prefix=prefix)


def _plain(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return value
