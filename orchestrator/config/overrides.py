"""The command line, in Hydra's override grammar: fixed values and swept keys."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra._internal.grammar import grammar_functions
from hydra.core.override_parser.overrides_parser import OverridesParser, create_functions
from hydra.core.override_parser.types import Glob, Override, QuotedString, RangeSweep, Transformer

from orchestrator.config.counterparts import of_hydra
from orchestrator.config.quoting import as_override
from orchestrator.config.sweep.grid import MOST_POINTS
from orchestrator.errors import ConfigError

Options = Callable[[str], Sequence[str] | None]
"""The options of a config group; None for a key that is not a group."""

_CALL = re.compile(r"\s*(\w+)\s*\((.*)\)\s*", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One swept key. `prefix` is the override's `+` or `++`, or empty."""

    key: str
    values: tuple[object, ...]
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """The overrides of one command: `fixed` are passed to Hydra unchanged; `values` is what they set."""

    fixed: tuple[str, ...]
    values: Mapping[str, object]
    axes: tuple[Axis, ...]
    keys: frozenset[str]
    drop_sweep: bool


def parse(overrides: Sequence[str], options: Options) -> CommandLine:
    """Sort the overrides into fixed ones and axes. Raises ConfigError for an override that Hydra cannot read.

    If a key is given twice, once as an axis, the last one wins, as in Hydra's own sweeps.
    """
    parsed = _last_ones([_parse_one(text) for text in overrides])
    _check_order(parsed, options)
    sweeps = [override for override in parsed if override.is_sweep_override()]
    fixed = [override for override in parsed if not override.is_sweep_override()]
    return CommandLine(
        fixed=tuple(str(override.input_line) for override in fixed),
        values={_key(o): _plain(o.value()) for o in fixed if not o.is_delete()},
        axes=tuple(_axis(override, options) for override in sweeps),
        keys=frozenset(map(_key, parsed)),
        drop_sweep=any(override.key_or_group == "sweep" and override.value() == "none" for override in fixed),
    )


def axis_of(key: str, text: str, options: Options) -> Axis | None:
    """Return the axis that a sweep written as text in YAML stands for, e.g. `seed: range(0,5)`."""
    override = _parse_one(f"{key}={text}")
    return _axis(override, options) if override.is_sweep_override() else None


def call_of(key: str, text: str, *, where: str = "sweep.random") -> tuple[str, tuple[object, ...]]:
    """Return the name and the arguments of a call written as text in YAML, e.g. `model.lr: uniform(0, 1)`.

    The arguments are values in Hydra's grammar. Raises ConfigError for a text that is not such a call.
    """
    call = _CALL.fullmatch(text)
    if call is None:
        raise _no_distribution(where, key, text, "a distribution is a name, and its arguments in parentheses")
    try:
        arguments = _parse_one(f"{key}=[{call[2]}]").value()
    except ConfigError as error:
        raise _no_distribution(where, key, text, error.why) from error
    if not isinstance(arguments, list):  # such as choice(1], [2)
        raise _no_distribution(where, key, text, "its brackets do not match")
    return call[1], tuple(arguments)


def _no_distribution(where: str, key: str, text: str, why: str) -> ConfigError:
    return ConfigError(f"{where}: {key} is {text!r}", why=why, fix=f'{key}: "uniform(0, 1)"')


def to_override(axis_prefix: str, key: str, value: object, *, group: bool) -> str:
    """Return the override that sets `key` to `value`, quoted so that Hydra reads back exactly that value."""
    return as_override(key, _option(value) if group else value, prefix=axis_prefix)


def _parse_one(text: str) -> Override:
    if "=" not in text and not text.startswith("~"):
        raise ConfigError(
            f"override {text!r} has no '='",
            why="an override reads key=value",
            fix="orch plan experiment=NAME model.lr=1e-3",
        )
    key = text.lstrip("+~").partition("=")[0]
    if not key:
        raise ConfigError(
            f"override {text!r} sets no key",
            why="an override sets a key of the experiment",
            fix="orch plan experiment=NAME model.lr=1e-3",
        )
    if key.partition(".")[0].partition("/")[0] == "hydra":
        instead, fix = of_hydra(key)
        raise ConfigError(
            f"override {text!r} sets a key of Hydra itself", why=f"Hydra does not run here, {instead}", fix=fix
        )
    try:
        return _parser().parse_override(text)
    except Exception as error:  # Hydra's parser may raise any Python exception
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        fix = next((fix for word, fix in _FIXES.items() if word in reason), _QUOTE)
        raise ConfigError(f"override {text!r} cannot be read", why=reason, fix=fix) from error


_QUOTE = "quote it for the shell and for Hydra: 'key=\"a value with spaces\"'"
_WHOLE = "give the whole list: key=[1,2,3]"
_FIXES = {"extend_list": _WHOLE, "shuffle": "write the list in the order that you want"}


@cache
def _parser() -> OverridesParser:
    functions = create_functions()
    functions.functions["shuffle"] = _shuffle
    return OverridesParser(functions)


def _shuffle(*args: Any, **named: Any) -> object:
    """Shuffle the values of an axis as Hydra does, but refuse a list: its order would be different each time."""
    found = grammar_functions.shuffle(*args, **named)
    if isinstance(found, list):
        raise ValueError("the list, and so the run, would be different each time")
    return found


def _key(override: Override) -> str:
    return f"{override.key_or_group}@{override.package}" if override.package else str(override.key_or_group)


def _last_ones(parsed: Sequence[Override]) -> list[Override]:
    """Leave out overrides whose key is given again later, where either is an axis; the last one takes its place."""
    kept: list[Override] = []
    for override in parsed:
        same = (i for i, earlier in enumerate(kept) if earlier.get_key_element() == override.get_key_element())
        place = next((i for i in same if kept[i].is_sweep_override() or override.is_sweep_override()), None)
        if place is None:
            kept.append(override)
        else:
            kept[place] = override
    return kept


def _check_order(parsed: Sequence[Override], options: Options) -> None:
    """Refuse a value for a section after an axis over one of its keys: the value would undo the axis at every point."""
    values = [override for override in parsed if options(override.key_or_group) is None]
    for i, axis in enumerate(values):
        for later in values[i + 1 :] if axis.is_sweep_override() else ():
            a, b = f"{_key(axis)}.", f"{_key(later)}."
            if not later.is_sweep_override() and (a.startswith(b) or b.startswith(a)):
                raise ConfigError(
                    f"override {later.input_line!r} comes after the sweep {axis.input_line!r}",
                    why="it sets the same key again, at every point",
                    fix="put it before the sweep",
                )


def _axis(override: Override, options: Options) -> Axis:
    prefix = "++" if override.is_force_add() else "+" if override.is_add() else ""
    key, text = _key(override), override.input_line
    if override.is_delete():
        raise ConfigError(
            f"sweep {text!r} deletes", why="a key is deleted at all points or at none", fix=f"~{key}, or sweep {key}"
        )
    if override.is_interval_sweep():
        raise ConfigError(
            f"sweep {text!r} cannot be expanded",
            why="an interval has no points of its own, they must be drawn",
            fix=f"""'sweep.random={{n: 20, space: {{{key}: "uniform(0, 1)"}}}}', or range(), or list the values""",
        )
    glob: object = override.value()  # Hydra's own annotation leaves globs out
    if isinstance(glob, Glob):
        return Axis(key=key, values=_globbed(glob, override, options), prefix=prefix)
    try:
        found = [] if _is_long(glob) else override.sweep_iterator(transformer=Transformer.identity)
        values = tuple(_plain(value) for value in itertools.islice(found, MOST_POINTS + 1))
    except Exception as error:  # Hydra's functions may raise any Python exception
        raise ConfigError(f"sweep {text!r} cannot be expanded", why=str(error), fix="list the values") from error
    if len(values) > MOST_POINTS or _is_long(glob):
        raise ConfigError(
            f"sweep {text!r} has too many values", why=f"at most {MOST_POINTS:,} are expanded", fix="take a larger step"
        )
    if not all(value is None or isinstance(value, str | int | float | list | dict) for value in values):
        raise ConfigError(
            f"sweep {text!r} is of more than plain values", why="a point is written down and read again", fix=_WHOLE
        )
    return Axis(key=key, values=values, prefix=prefix)


def _is_long(sweep: object) -> bool:
    """Return whether a range has too many values; Hydra would make a list of one that is shuffled or sorted."""
    if not isinstance(sweep, RangeSweep) or sweep.start is None or sweep.stop is None or not sweep.step:
        return False
    return not (sweep.stop - sweep.start) / sweep.step <= MOST_POINTS  # NaN is not a number of values


def _globbed(glob: Glob, override: Override, options: Options) -> tuple[str, ...]:
    group, found = override.key_or_group, options(override.key_or_group)
    if found is None:
        raise ConfigError(
            f"sweep {override.input_line!r} cannot be expanded",
            why=f"glob() chooses options of a config group, and {group} is none",
            fix=f"list the values: {group}=1,2",
        )
    chosen = tuple(glob.filter(list(found)))
    if not chosen:
        raise ConfigError(
            f"sweep {override.input_line!r} matches nothing",
            why=f"the options of {group} are {', '.join(found)}",
            fix=f"correct the pattern, or list the options: {group}=a,b",
        )
    return chosen


def _option(value: object) -> object:
    """Return a chosen option of a group, a list of options, or None, with their names as text."""
    if isinstance(value, list):
        return [_option(item) for item in value]
    return None if value is None else str(value)


def _plain(value: object) -> object:
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return value
