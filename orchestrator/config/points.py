"""One resolved config per point, fast where that is provably what Hydra would give.

Hydra composes once for each set of swept keys, added ones included, and each distinct choice of values that are more
than plain (options of config groups, lists, dicts, texts with interpolations). For each further point the swept leaves
are set and only their transitive readers are resolved again; unchanged parts of the tree are shared between points.
Where the result might differ (keys inside lists or in each other, computed interpolations, impure resolvers), Hydra
composes point by point.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.config.compose import Composer, plain, resolve
from orchestrator.config.files import is_as_written
from orchestrator.config.interpolation import Path, Pieces, Reads, leaves, overlap, pieces, reads
from orchestrator.config.overrides import to_override
from orchestrator.config.quoting import quoted
from orchestrator.errors import ConfigError
from orchestrator.spec import STARTS, Point

_PURE = frozenset({"view", "project", "secret"})
IDENTITY = ("model", "data", "trainer", "seed", "task")
_LISTED = 1_000  # points that are searched for those that have a key
_BASES = 64  # kept at a time: each is a whole config, and an axis may have thousands of lists as values
_PUNCTUATION = frozenset(".[]")  # in a key: a dotted path would not find it
_REFUSED = frozenset({"now", "oc.env", "hydra", "oc.deprecated"})


Takes = Callable[[str, str], bool]
"""Tells whether a target has an argument of a name."""


def takes_nothing(_target: str, _name: str) -> bool:
    """Return False: no target is known."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A point's resolved config and the config groups chosen for it."""

    point: Point
    config: Mapping[str, Any]
    choices: Mapping[str, str]


def resolve_points(
    composer: Composer,
    fixed: Sequence[str],
    points: Sequence[Point],
    prefixes: Mapping[str, str],
    takes: Takes = takes_nothing,
) -> Iterator[Resolved]:
    """Yield the resolved config of each point. `prefixes` holds the `+` or `++` of a swept key.

    Points that set other keys (`sweep.list` allows that) have a base of their own, so that no value is left over from
    another point. A key that the YAML lacks is added where the target of its node `takes` it.
    """

    @lru_cache(_BASES)
    def base(composed: tuple[str, ...], keys: frozenset[str], added: tuple[str, ...]) -> _Base:  # noqa: ARG001 - other keys, other base
        return _Base(composer, (*fixed, *composed), added)

    def chosen(point: Point, values: Mapping[str, object]) -> _Base:
        """Return the composition of a point's options, without its values."""
        options = {key: value for key, value in point.items() if composer.chooses(key, value)}
        return base(tuple(_overrides(composer, options, prefixes)), frozenset(values), ())

    def which(point: Point, values: Mapping[str, object], holds: Callable[[_Base, str], bool]) -> list[str]:
        """Return the keys, except groups and those with a prefix, that pass `holds` in the chosen options."""
        keys = [key for key, value in point.items() if not prefixes.get(key) and not composer.chooses(key, value)]
        options = chosen(point, values) if keys else None
        return [key for key in keys if options and holds(options, key)]

    def added(point: Point, values: Mapping[str, object]) -> Mapping[str, str]:
        """Return the prefixes of a point's keys, including `++` for keys that its options lack and a target takes."""
        lacking = which(point, values, lambda options, key: options.lacks(key, takes))
        return {**prefixes, **dict.fromkeys(lacking, "++")} if lacking else prefixes

    def those_there(point: Point) -> Point:
        """Return a point without the keys that its options do not have."""
        absent = which(point, _plain_values(composer, point), lambda options, key: not options.has(key))
        return {key: value for key, value in point.items() if key not in absent}

    first: dict[str, object] = {}  # for each added key, the value with which Hydra adds it to a base
    for point in points:
        values = _plain_values(composer, point)
        every = added(point, values)
        composed = {key: value for key, value in point.items() if key not in values}
        new = {key: first.setdefault(key, value) for key, value in values.items() if every.get(key)}
        overrides = (tuple(_overrides(composer, each, every)) for each in (composed, new))
        try:
            resolved = base(next(overrides), frozenset(values), next(overrides)).resolve(point, values, every)
        except ConfigError as error:
            some = points[:_LISTED]
            raise _listed(error, some, [those_there(each) for each in some]) from error
        yield resolved


def _listed(error: ConfigError, points: Sequence[Point], there: Sequence[Point]) -> ConfigError:
    """Return an error; if only some options have a swept key, its fix lists points that omit it for the others."""
    keys = {key for point in points for key in point}
    if keys != {key for point in there for key in point} or all(map(operator.eq, points, there)):
        return error
    rows = dict.fromkeys(quoted(point, plain=True) for point in there)
    why = f"{error.why}; other options have it"
    return ConfigError(error.what, why=why, fix=f"sweep it with these: 'sweep={{list: [{', '.join(rows)}]}}'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """The composition of one choice of a search: points to check it at, and the leaves that a node fills in.

    `keys` are the searched keys that exist with this choice; `fills` are the leaves that read them.
    """

    points: tuple[Resolved, ...]
    keys: tuple[str, ...]
    fills: tuple[tuple[Path, Pieces], ...]


def resolve_search(
    composer: Composer,
    fixed: Sequence[str],
    choice: Point,
    keys: Sequence[str],
    probes: Callable[[Sequence[str]], Sequence[Point]],
    *,
    takes: Takes = takes_nothing,
) -> Searched:
    """Compose one choice of a search over `keys`; `probes` gives sample points for the keys that exist.

    A missing key is added where the target of its node `takes` it. Raises ConfigError where a leaf reads a searched
    key in a way that a node, which does not compose, cannot reproduce.
    """
    composed = (*fixed, *_overrides(composer, choice, {}))
    base = _Base(composer, composed, ())
    lacking = [key for key in keys if base.lacks(key, takes)]
    if lacking:
        values = probes(lacking)[0]
        base = _Base(composer, composed, tuple(_overrides(composer, values, dict.fromkeys(lacking, "++"))))
    here = tuple(key for key in keys if base.has(key))
    rows = probes(here)
    points = [base.resolve({**choice, **row}, row, {}) for row in rows]
    return Searched(points=tuple(points), keys=here, fills=base.fills(here))


def _plain_values(composer: Composer, point: Point) -> dict[str, object]:
    """Return the values of a point that can be set in a composed config; none where the order of keys may matter."""
    values = {key: value for key, value in point.items() if not composer.chooses(key, value) and _plain(value)}
    paths = [tuple(key.split(".")) for key, value in point.items() if not composer.chooses(key, value)]
    nested = any(overlap(one, other) for one in paths for other in paths if one is not other)
    return {} if nested else values


class _Base:
    """One composition, and the keys that its leaves read. `added`: overrides that add keys which its points set."""

    def __init__(self, composer: Composer, overrides: tuple[str, ...], added: tuple[str, ...]) -> None:
        self._composer, self._overrides = composer, overrides
        composition = composer.compose([*overrides, *added])
        self._config, self._choices = composition.config, composition.choices
        self._raw = _raw(self._config)
        self._reads = _all_reads(self._raw)
        _refuse_misread(self._raw, self._reads, composer.misread)
        self._resolved: dict[str, object] | None = None
        self._plans: dict[tuple[str, ...], Mapping[Path, Pieces | None] | None] = {}

    def resolve(self, point: Point, values: Mapping[str, object], prefixes: Mapping[str, str]) -> Resolved:
        readers = self._readers(tuple(values))
        if readers is None:
            return self._through_hydra(point, values, prefixes)
        if self._resolved is None:
            return self._first(point, values)
        changed: dict[Path, object] = {tuple(key.split(".")): value for key, value in values.items()}
        if not all(readers.values()):
            self._set(values)
            try:
                changed |= {at: _select(self._config, at) for at, cut in readers.items() if cut is None}
            except OmegaConfBaseException:
                return self._through_hydra(point, values, prefixes)
        for at in readers:
            self._read(at, readers, changed)
        return Resolved(point=point, config=_assign(self._resolved, changed), choices=self._choices)

    def has(self, key: str) -> bool:
        """Return whether the composition has a key."""
        parent, _, leaf = key.rpartition(".")
        node = value_at(self._raw, parent)
        return isinstance(node, dict) and leaf in node

    def lacks(self, key: str, takes: Takes) -> bool:
        """Return whether the key is missing although the target of its node takes it."""
        parent, _, leaf = key.rpartition(".")
        node = value_at(self._raw, parent)
        target = node.get("_target_") if isinstance(node, dict) and leaf not in node else None
        return isinstance(target, str) and takes(target, leaf)

    def fills(self, keys: tuple[str, ...]) -> tuple[tuple[Path, Pieces], ...]:
        """Return the leaves of a run's config that read `keys`, each with its texts and keys."""
        readers = self._readers(keys)
        computed = ", ".join(keys) if readers is None else _first_of(at for at, cut in readers.items() if cut is None)
        if readers is None or computed:
            raise ConfigError(
                f"sweep.optuna: {computed} is computed from what is searched"
                if readers is not None
                else f"sweep.optuna: {computed}: a searched value is not a plain value, or is read in a computed way",
                why="a node fills in values, and texts that contain them; it does not compose",
                fix="search a key that is a plain value, and read it as ${key} only",
            )
        if start := _first_of(at for at in readers if at[0] in STARTS):
            raise ConfigError(
                f"sweep.optuna: {start} reads a searched value",
                why="the checkpoint that a run starts from is chosen before its trial is requested",
                fix="choose it by a config group that is searched, or search it in a grid",
            )
        return tuple((at, self._flat(at, readers, keys)) for at in readers if at[0] in IDENTITY)

    def _flat(self, at: Path, readers: Mapping[Path, Pieces | None], keys: tuple[str, ...]) -> Pieces:
        """Return the pieces of a leaf, down to searched keys and texts."""
        if ".".join(at) in keys:
            return (at,)
        if at not in readers:
            return (str(_leaf(self._resolved, at)),)
        cut = readers[at] or ()
        inner = [(piece,) if isinstance(piece, str) else self._flat(piece, readers, keys) for piece in cut]
        return tuple(piece for pieces in inner for piece in pieces)

    def _first(self, point: Point, values: Mapping[str, object]) -> Resolved:
        self._set(values)
        _refuse({at: read for at, read in self._reads.items() if ".".join(at) not in values})
        self._resolved = resolve(self._config, where=_point_text(point))
        return Resolved(point=point, config=self._resolved, choices=self._choices)

    def _read(self, at: Path, readers: Mapping[Path, Pieces | None], changed: dict[Path, object]) -> object:
        """Return a leaf's value at a point, and store it in `changed` if it differs from the base.

        OmegaConf parses a text again each time it resolves it: 9 of 10 seconds of a plan of 10,000 points.
        """
        if at not in changed:
            cut = readers.get(at)
            if cut is None:
                return _leaf(self._resolved, at)
            values = [piece if isinstance(piece, str) else self._read(piece, readers, changed) for piece in cut]
            changed[at] = values[0] if len(values) == 1 else "".join(map(str, values))
        return changed[at]

    def _set(self, values: Mapping[str, object]) -> None:
        for key, value in values.items():
            parent, _, leaf = key.rpartition(".")
            node = OmegaConf.select(self._config, parent) if parent else self._config
            node[leaf] = value

    def _through_hydra(self, point: Point, values: Mapping[str, object], prefixes: Mapping[str, str]) -> Resolved:
        extra = _overrides(self._composer, values, prefixes)
        try:
            composition = self._composer.compose([*self._overrides, *extra])
        except ConfigError as error:
            raise ConfigError(f"point {_point_text(point)}: {error.what}", why=error.why, fix=error.fix) from error
        _refuse(_all_reads(_raw(composition.config)))
        config = resolve(composition.config, where=_point_text(point))
        return Resolved(point=point, config=config, choices=composition.choices)

    def _readers(self, keys: tuple[str, ...]) -> Mapping[Path, Pieces | None] | None:
        """Return the leaves to resolve again when `keys` change; None if that is unknown.

        Each leaf maps to the pieces that it consists of; None if only OmegaConf can resolve it.
        """
        if keys not in self._plans:
            self._plans[keys] = self._find_readers(keys)
        return self._plans[keys]

    def _find_readers(self, keys: tuple[str, ...]) -> Mapping[Path, Pieces | None] | None:
        paths = [tuple(key.split(".")) for key in keys]
        if not all(_is_plain_leaf(self._raw, path) for path in paths):
            return None
        affected, frontier = set[Path](), list(paths)
        while frontier:
            target = frontier.pop()
            for at, read in self._reads.items():
                if at in affected or at in paths:
                    continue
                if read.dynamic or any(overlap(key, target) for key in read.keys):
                    if read.dynamic or not read.resolvers <= _PURE or not _is_plain_leaf(self._raw, at):
                        return None
                    affected.add(at)
                    frontier.append(at)
        return {at: self._cut(at) for at in sorted(affected)}

    def _cut(self, at: Path) -> Pieces | None:
        cut = pieces(_leaf(self._raw, at), at)
        keys = [piece for piece in cut or () if not isinstance(piece, str)]
        plain = all(_is_plain_leaf(self._raw, key) and "\\" not in str(_leaf(self._raw, key)) for key in keys)
        return cut if plain else None


def _overrides(composer: Composer, values: Mapping[str, object], prefixes: Mapping[str, str]) -> list[str]:
    return [to_override(prefixes.get(k, ""), k, v, group=composer.chooses(k, v)) for k, v in values.items()]


def _raw(config: DictConfig) -> object:
    """Return a composed config as written. Raises ConfigError for keys that a frozen config cannot keep."""
    raw = OmegaConf.to_container(config, resolve=False)
    _check_keys(raw, ())
    return raw


def _check_keys(tree: object, at: tuple[object, ...]) -> None:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if not isinstance(key, str):
                raise ConfigError(
                    f"{'.'.join(map(str, (*at, key)))}: the key {key!r} is not a string",
                    why="configs are frozen as JSON, where every key is a string",
                    fix=f"write it in quotes, or as a list: {'.'.join(map(str, at))}: {{'{key}': ...}}",
                )
            _check_keys(value, (*at, key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            _check_keys(value, (*at, index))


def _all_reads(raw: object) -> dict[Path, Reads]:
    return {at: reads(text, at) for at, text in leaves(raw) if _interpolated(text)}


def _first_of(paths: Iterable[Path]) -> str:
    return next((".".join(at) for at in paths), "")


def _select(config: DictConfig, at: Path) -> object:
    return plain(OmegaConf.select(config, ".".join(at)))


def _refuse(all_reads: Mapping[Path, Reads]) -> None:
    """Refuse resolvers that would change a run's id with time or place, even if read through other keys."""
    for at in all_reads:
        if at[0] in IDENTITY or at[0] in STARTS:
            found = sorted(_reachable(all_reads, at, set()) & _REFUSED)
            if found:
                raise ConfigError(
                    f"{'.'.join(at)} reads ${{{found[0]}:...}}",
                    why="the same run would get a different id at another time or on another machine",
                    fix="write the value itself, or give it on the command line",
                )


def _refuse_misread(raw: Any, all_reads: Mapping[Path, Reads], misread: Mapping[Path, tuple[str, float]]) -> None:
    """Refuse a time or name that `resources` or `cluster` read from a key where YAML turned it into a number."""
    for at, read in all_reads.items():
        for key in read.keys & misread.keys() if is_as_written(at) else ():
            text, number = misread[key]
            if _is_plain_leaf(raw, key) and _leaf(raw, key) == number:  # not replaced by an override
                raise ConfigError(
                    f"{'.'.join(key)} is written {text}, and {'.'.join(at)} reads it",
                    why=f"YAML reads it as the number {number}",
                    fix=f"quote it: {key[-1]}: '{text}'",
                )


def _reachable(all_reads: Mapping[Path, Reads], at: Path, seen: set[Path]) -> set[str]:
    seen.add(at)
    found = set(all_reads[at].resolvers)
    for other in all_reads:
        if other not in seen and (all_reads[at].dynamic or any(overlap(other, key) for key in all_reads[at].keys)):
            found |= _reachable(all_reads, other, seen)
    return found


def _assign(tree: Any, changes: Mapping[Path, Any]) -> Any:
    """Return a copy of nested dicts with some leaves changed; unchanged parts are shared."""
    copy = dict(tree)
    below: dict[str, dict[Path, object]] = {}
    for path, value in changes.items():
        if len(path) == 1:
            copy[path[0]] = value
        else:
            below.setdefault(path[0], {})[path[1:]] = value
    for key, inner in below.items():
        copy[key] = _assign(copy[key], inner)
    return copy


def value_at(tree: object, key: str) -> object:
    """Return the value at a dotted key; None if there is none."""
    for part in filter(None, key.split(".")):
        tree = tree.get(part) if isinstance(tree, dict) else None
    return tree


def _leaf(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _is_plain_leaf(tree: object, path: Path) -> bool:
    for key in path:
        if not isinstance(tree, dict) or key not in tree or _PUNCTUATION & set(key):
            return False
        tree = tree[key]
    return not isinstance(tree, dict | list)


def _plain(value: object) -> bool:
    if isinstance(value, str):
        return "$" not in value and value != "???"  # these have a meaning to OmegaConf
    return value is None or isinstance(value, bool | int | float)


def _interpolated(value: object) -> bool:
    return isinstance(value, str) and "${" in value


def _point_text(point: Point) -> str:
    return " ".join(f"{key}={value}" for key, value in point.items()) or "the only point"
