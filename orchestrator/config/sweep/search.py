"""The definition of an adaptive sweep, `sweep.optuna`, as written -> space, sampler, pruner and objectives. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.config.sweep import space
from orchestrator.config.sweep.grid import check_count
from orchestrator.errors import ConfigError, nearest
from orchestrator.spec import Objective, Point
from orchestrator.spec.search import Distribution

KEY = "optuna"
EXAMPLE = 'optuna: {n: 20, space: {model.lr: "loguniform(1e-4, 1e-1)"}}'
SAMPLER = {"_target_": "optuna.samplers.TPESampler"}
PRUNER = {"_target_": "optuna.pruners.MedianPruner"}
MOST_TEMPLATES = 1_000
"""The most combinations of config groups, and of values with more than one leaf, that are composed at launch."""

_OPTIONS = ("n", "seed", "space", "sampler", "pruner", "objectives")
_ALONE = ("grid", "zip", "list", "random", "seeds", "exclude")
_SAME_FOR_ALL = ("resources", "task", "init_from", "resume_from")
_PROBES = (0.5, 0.001, 0.999)


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A checked definition. `objectives` are those written (several or none); later, if none, the experiment's own.

    `pruner`: None if no trial is pruned.
    """

    n: int
    seed: int
    space: Mapping[str, Distribution]
    sampler: Mapping[str, object]
    pruner: Mapping[str, object] | None
    objectives: tuple[Objective, ...]

    @property
    def custom(self) -> bool:
        """Whether the user chose the sampler or the pruner, which may not fit the space."""
        return self.sampler != SAMPLER or self.pruner not in (PRUNER, None)


def define(sweep: Mapping[str, object], *, replaced: Collection[str], axes: Collection[str]) -> Definition | None:
    """Return the definition of a sweep; None for a sweep of another kind. Its space contains distributions.

    `replaced` are keys that the command line gives a value, `axes` those that it sweeps. Raises ConfigError.
    """
    raw = sweep.get(KEY)
    if not raw:
        return None
    if not isinstance(raw, Mapping) or set(raw) - set(_OPTIONS):
        wrong = min(set(raw) - set(_OPTIONS)) if isinstance(raw, Mapping) else ""
        raise ConfigError(
            f"sweep.optuna is {raw!r}{nearest(wrong, _OPTIONS) if wrong else ''}",
            why=f"it has {', '.join(_OPTIONS)}",
            fix=EXAMPLE,
        )
    if others := [*(f"sweep.{kind}" for kind in _ALONE if sweep.get(kind)), *axes]:
        raise ConfigError(
            f"sweep.optuna is given together with {others[0]}",
            why="a search chooses all of its points itself",
            fix=f"search {others[0]} too: put it into sweep.optuna.space; or give it one value",
        )
    n = check_count("sweep.optuna.n", raw.get("n"), least=1)
    seed = check_count("sweep.optuna.seed", raw.get("seed", 0), least=0)
    wanted = {key: each for key, each in _space(raw.get("space")).items() if key not in replaced}
    if not wanted:
        raise ConfigError(
            "sweep.optuna has nothing to search", why="the command line gives all of its keys a value", fix="sweep=none"
        )
    objectives = tuple(map(_objective, raw.get("objectives") or ()))
    if len(objectives) == 1:
        raise ConfigError(
            "sweep.optuna.objectives holds one",
            why="one objective is the experiment's own, by which runs are ranked",
            fix=f"objective={{metric: {objectives[0].metric}, mode: {objectives[0].mode}}}",
        )
    pruner = raw.get("pruner", PRUNER if len(objectives) < 2 else None)
    if pruner is not None and len(objectives) > 1:
        raise ConfigError(
            "sweep.optuna.pruner is set, and there are several objectives",
            why="a trial is pruned by one value",
            fix="sweep.optuna.pruner=null",
        )
    return Definition(
        n=n,
        seed=seed,
        space=wanted,
        sampler=_target("sampler", raw.get("sampler") or SAMPLER),
        pruner=None if pruner is None else _target("pruner", pruner),
        objectives=objectives,
    )


def composed_keys(definition: Definition, chooses: Callable[[str, object], bool]) -> tuple[str, ...]:
    """Return the keys whose values Hydra has to compose: options of config groups, lists and mappings."""
    return tuple(
        key
        for key, each in definition.space.items()
        if each.kind == "choice" and any(chooses(key, v) or isinstance(v, list | dict) for v in each.arguments)
    )


def choices(definition: Definition, keys: Sequence[str]) -> Iterator[Point]:
    """Yield each combination of the values of keys that are composed. Raises ConfigError for too many of them."""
    values = [definition.space[key].arguments for key in keys]
    if (size := math.prod(map(len, values))) > MOST_TEMPLATES:
        raise ConfigError(
            f"sweep.optuna has {size:,} combinations of {', '.join(keys)}",
            why=f"each is composed and checked before the launch, {MOST_TEMPLATES:,} at most",
            fix="search fewer of them, or numbers in place of lists",
        )
    return (dict(zip(keys, row, strict=True)) for row in itertools.product(*values))


def probes(definition: Definition, keys: Sequence[str]) -> list[Point]:
    """Return sample points to check a search at: the middle of each key, near both ends, and every choice."""
    if not keys:
        return [{}]
    chosen = [len(each.arguments) for key in keys if (each := definition.space[key]).kind == "choice"]
    return [
        {key: _probe(definition.space[key], number) for key in keys} for number in range(max([len(_PROBES), *chosen]))
    ]


def _probe(distribution: Distribution, number: int) -> object:
    if distribution.kind == "choice":
        return distribution.arguments[number % len(distribution.arguments)]
    return space.at(distribution, _PROBES[number % len(_PROBES)])


def _space(raw: object) -> Mapping[str, Distribution]:
    if not isinstance(raw, Mapping) or not raw:
        raise ConfigError(f"sweep.optuna.space is {raw!r}", why="it says for each key where to search", fix=EXAMPLE)
    for key, each in raw.items():
        if not isinstance(each, Distribution):
            raise ConfigError(
                f"sweep.optuna: {key} is searched in {each!r}",
                why="that is not a distribution",
                fix=f'{key}: "uniform(0, 1)"; write a dotted key in one piece',
            )
        if each.kind == "normal":
            raise ConfigError(
                f"sweep.optuna: {key} is searched in a normal distribution",
                why="a search needs bounds",
                fix=f'{key}: "uniform(LOW, HIGH)"',
            )
        if key.partition(".")[0] in _SAME_FOR_ALL or key.startswith("data.version"):
            raise ConfigError(
                f"sweep.optuna: {key} is searched",
                why="it is fixed for all trials before the first one starts",
                fix=f"give {key} one value",
            )
        if any(value in each.arguments[:place] for place, value in enumerate(each.arguments)):  # 1 and 1.0 are equal
            raise ConfigError(f"sweep.optuna: {key} has a choice twice", why="one is enough", fix="remove one")
    return raw


def _objective(raw: object) -> Objective:
    if not isinstance(raw, Mapping) or set(raw) != {"metric", "mode"} or raw["mode"] not in {"min", "max"}:
        raise ConfigError(
            f"sweep.optuna.objectives holds {raw!r}",
            why="each has a metric, and a mode: min or max",
            fix="objectives: [{metric: val/acc, mode: max}, {metric: params, mode: min}]",
        )
    return Objective(metric=str(raw["metric"]), mode=raw["mode"])


def _target(name: str, raw: object) -> Mapping[str, object]:
    if not isinstance(raw, Mapping) or not isinstance(raw.get("_target_"), str):
        raise ConfigError(
            f"sweep.optuna.{name} is {raw!r}",
            why="it names a class of Optuna or of your own, and its arguments",
            fix=f"{name}: {{_target_: {(SAMPLER if name == 'sampler' else PRUNER)['_target_']}}}",
        )
    if name == "sampler" and "seed" in raw:
        raise ConfigError(
            "sweep.optuna.sampler has a seed",
            why="each trial's sampler is seeded by sweep.optuna.seed and its number",
            fix=f"sweep.optuna.seed={raw['seed']}",
        )
    return raw
