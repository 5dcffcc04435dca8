"""A sweep's definition -> its points. Pure: without Hydra, files or the meaning of resources."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.config.sweep.space import drawn
from orchestrator.errors import ConfigError, closest, nearest
from orchestrator.spec.experiment import ASK_ABOVE
from orchestrator.spec.search import Distribution

KINDS = ("grid", "zip", "list", "random", "optuna", "seeds", "exclude", "resources")
MOST_POINTS = 100_000
"""The most points that are expanded: a zero too many must not fill the memory."""

_RANDOM = {"n": None, "seed": 0, "space": None}
_EXAMPLE = 'random: {n: 20, seed: 0, space: {model.lr: "loguniform(1e-4, 1e-1)"}}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A checked definition. Its points are the product of `blocks`, each of which is a list of partial points.

    `notes` are messages for the user.
    """

    blocks: tuple[tuple[Mapping[str, object], ...], ...]
    exclude: tuple[Mapping[str, object], ...]
    resources: tuple[tuple[Mapping[str, object], Mapping[str, object]], ...]
    notes: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key for block in self.blocks for point in block for key in point))


def define(raw: Mapping[str, object], *, replaced: Iterable[str] = (), axes: Mapping[str, Sequence[object]]) -> Sweep:
    """Check a definition as written, with `axes` of the command line added and `replaced` keys dropped.

    The space of `random` contains distributions; axes of `grid` and `zip` written as text are already expanded. Raises
    ConfigError for an unknown kind, an empty axis, unequal zips, a key that is swept twice, or more than `MOST_POINTS`.
    """
    _check_kinds(raw)
    drop = set(replaced)
    grid = {key: values for key, values in _mapping(raw, "grid").items() if key not in drop}
    zipped = [_without(group, drop) for group in _zips(raw)]
    listed = [_without(_point(entry, "sweep.list"), drop) for entry in _sequence(raw, "list")]
    draws, randoms = _random(raw, drop)
    blocks = [_axis(key, _values("sweep.grid", key, values)) for key, values in grid.items()]
    blocks += [_zip(group) for group in zipped if group]
    blocks += [tuple(listed)] if any(listed) else []
    blocks += [tuple(randoms)] if randoms else []
    blocks += [_axis("seed", range(seeds))] if (seeds := _seeds(raw)) and "seed" not in drop else []
    blocks += [_axis(key, _values("the command line", key, values)) for key, values in axes.items()]
    _check_names(blocks)
    _check_once(blocks)
    _check_size(blocks)
    again = draws - len(randoms)
    return Sweep(
        blocks=tuple(blocks),
        exclude=tuple(_point(entry, "sweep.exclude") for entry in _sequence(raw, "exclude")),
        resources=tuple(_rule(entry) for entry in _sequence(raw, "resources")),
        notes=(f"sweep.random: {again} of {draws} draws gave a point that was there already",) if again else (),
    )


def expand(
    sweep: Sweep, given: Mapping[str, object] | None = None
) -> tuple[tuple[dict[str, object], ...], tuple[str, ...]]:
    """Return the points in order (the last axis varies fastest), and notes on rules that matched nothing.

    `given` are the values common to all points: `exclude` matches them like swept ones.
    Raises ConfigError when the exclusions leave no point.
    """
    every = [_join(parts) for parts in itertools.product(*sweep.blocks)]
    used: set[int] = set()
    points = []
    for point in every:
        hits = {i for i, rule in enumerate(sweep.exclude) if matches(rule, {**(given or {}), **point})}
        used |= hits
        if not hits:
            points.append(point)
    if not points:
        raise ConfigError(
            f"the sweep has no points left: all {len(every)} are excluded",
            why="sweep.exclude matches every point",
            fix="narrow sweep.exclude, or sweep=none",
        )
    unused = [rule for i, rule in enumerate(sweep.exclude) if i not in used]
    return tuple(points), (*sweep.notes, *(f"sweep.exclude: {rule} matches no point" for rule in unused))


def matches(rule: Mapping[str, object], point: Mapping[str, object]) -> bool:
    """Return whether a point has all the values that a rule names."""
    return all(key in point and point[key] == value for key, value in rule.items())


def _join(parts: Iterable[Mapping[str, object]]) -> dict[str, object]:
    return {key: value for part in parts for key, value in part.items()}


def _axis(key: str, values: Sequence[object]) -> tuple[Mapping[str, object], ...]:
    return tuple({key: value} for value in values)


def _zip(group: Mapping[str, object]) -> tuple[Mapping[str, object], ...]:
    columns = {key: _values("sweep.zip", key, values) for key, values in group.items()}
    lengths = {key: len(values) for key, values in columns.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{key} has {n}" for key, n in lengths.items())
        raise ConfigError(
            f"sweep.zip: {told} values",
            why="zipped keys go together, one value of each per point",
            fix="give all of them the same number of values, or use sweep.grid for the product",
        )
    return tuple(dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def _zips(raw: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    value = raw.get("zip") or {}
    groups = value if isinstance(value, list) else [value]
    if not all(isinstance(group, Mapping) for group in groups):
        raise ConfigError(
            f"sweep.zip is {value!r}",
            why="it maps keys to lists, or is a list of such mappings",
            fix="zip: {model.width: [64, 128], data.batch_size: [256, 128]}",
        )
    return groups


def _random(raw: Mapping[str, object], drop: set[str]) -> tuple[int, list[dict[str, object]]]:
    """Return the number of draws and the points that they gave; 0 draws if no key is left to draw."""
    given = raw.get("random")
    if not given:
        return 0, []
    if not isinstance(given, Mapping) or set(given) - set(_RANDOM):
        raise ConfigError(f"sweep.random is {given!r}", why=f"it has {', '.join(_RANDOM)}", fix=_EXAMPLE)
    n, seed, space = {**_RANDOM, **given}.values()
    check_count("sweep.random.n", n, least=1)
    check_count("sweep.random.seed", seed, least=0)
    if not isinstance(space, Mapping) or not space:
        raise ConfigError(
            f"sweep.random.space is {space!r}", why="it says for each key what to draw it from", fix=_EXAMPLE
        )
    for key, each in space.items():
        if not isinstance(each, Distribution):
            raise ConfigError(
                f"sweep.random: {key} is drawn from {each!r}",
                why="that is not a distribution",
                fix=f'{key}: "uniform(0, 1)"; write a dotted key in one piece',
            )
    left = {key: each for key, each in space.items() if key not in drop}
    return (n, drawn(left, n=n, seed=seed)) if left else (0, [])


def _seeds(raw: Mapping[str, Any]) -> int:
    seeds = raw.get("seeds")
    if seeds is not None:
        check_count("sweep.seeds", seeds, least=1)
    return seeds or 0


def check_count(key: str, value: Any, *, least: int) -> int:
    """Return a number of points. Raises ConfigError unless it is a whole number from `least` to MOST_POINTS."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MOST_POINTS:
        raise ConfigError(
            f"{key} is {value!r}", why=f"it is a whole number from {least} to {MOST_POINTS:,}", fix=f"{key}=20"
        )
    return value


def _check_size(blocks: Sequence[Sequence[object]]) -> None:
    size = math.prod(map(len, blocks))
    if size > MOST_POINTS:
        raise ConfigError(
            f"the sweep has {size:,} points",
            why=f"at most {MOST_POINTS:,} are expanded, before sweep.exclude",
            fix="launch a part at a time, or draw from the space: sweep.random",
        )


def ask_above(raw: Mapping[str, object]) -> int:
    """Return the number of runs above which a launch is confirmed."""
    value = raw.get("ask_above")
    if value is None:
        return ASK_ABOVE
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(
            f"sweep.ask_above is {value!r}", why="it is a number of runs", fix=f"sweep.ask_above={ASK_ABOVE}"
        )
    return value


def _values(where: str, key: str, values: object) -> Sequence[object]:
    if not isinstance(values, list | tuple | range):
        raise ConfigError(
            f"{where}: {key} is {values!r}", why="a swept key needs a list of values", fix=f"{key}: [{values}]"
        )
    if not values:
        raise ConfigError(
            f"{where}: {key} has no values",
            why="an empty axis makes an empty sweep",
            fix=f"give {key} at least one value, or remove it",
        )
    return values


def _check_kinds(raw: Mapping[str, object]) -> None:
    for key in raw:
        if key not in KINDS and key != "ask_above":
            meant = closest(key, KINDS)
            raise ConfigError(
                f"sweep.{key} is unknown{nearest(key, KINDS)}",
                why=f"the keys of a sweep are {', '.join(KINDS)}",
                fix=f"rename it to {meant}" if meant else f"put swept keys under sweep.grid: grid: {{{key}: [...]}}",
            )


def _check_names(blocks: Iterable[Iterable[Mapping[Any, Any]]]) -> None:
    for key in (key for block in blocks for point in block for key in point):
        if not isinstance(key, str) or not key.strip("."):
            raise ConfigError(
                f"sweep: {key!r} is swept",
                why="what is swept is named by a key or a config group",
                fix="model.lr: [...]",
            )


def _check_once(blocks: Sequence[Sequence[Mapping[str, object]]]) -> None:
    seen: set[str] = set()
    for block in blocks:
        keys = {key for point in block for key in point}
        twice = seen & keys
        if twice:
            raise ConfigError(
                f"{min(twice)} is swept twice",
                why="a key has one place: grid, zip, list, random or seeds",
                fix="remove it from one of them",
            )
        seen |= keys


def _mapping(raw: Mapping[str, object], kind: str) -> Mapping[str, object]:
    value = raw.get(kind) or {}
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"sweep.{kind} is {value!r}", why="it maps keys to lists of values", fix=f"{kind}: {{model.lr: [...]}}"
        )
    return value


def _sequence(raw: Mapping[str, object], kind: str) -> Sequence[object]:
    value = raw.get(kind) or []
    if not isinstance(value, list | tuple):
        raise ConfigError(
            f"sweep.{kind} is {value!r}", why="it is a list of mappings", fix=f"{kind}: [{{model.lr: 1e-3}}]"
        )
    return value


def _point(entry: object, where: str) -> Mapping[str, object]:
    if not isinstance(entry, Mapping) or not entry:
        raise ConfigError(
            f"{where}: {entry!r} is not a point", why="each entry maps keys to values", fix="{model.lr: 1e-3}"
        )
    return entry


def _rule(entry: Any) -> tuple[Mapping[str, object], Mapping[str, object]]:
    known = isinstance(entry, Mapping) and set(entry) == {"when", "set"}
    if not known or not all(isinstance(part, Mapping) for part in entry.values()):
        raise ConfigError(
            f"sweep.resources: {entry!r} is not a rule",
            why="each rule has `when` and `set`, both mappings",
            fix="{when: {model: convnet}, set: {gpus_per_node: 4}}",
        )
    return entry["when"], entry["set"]


def _without(point: Mapping[str, object], keys: set[str]) -> dict[str, object]:
    return {key: value for key, value in point.items() if key not in keys}
