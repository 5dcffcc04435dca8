"""An experiment as its YAML and overrides describe it: all points composed and their built-in keys checked.

A composed experiment is not resolved yet: its data versions are unknown and its targets unchecked, so its points
have no ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from orchestrator.config import overrides as command_line
from orchestrator.config import schema
from orchestrator.config.compose import Composer, resolve
from orchestrator.config.credentials import literal, referred
from orchestrator.config.explain import not_global
from orchestrator.config.points import (
    IDENTITY,
    Resolved,
    Searched,
    Takes,
    resolve_points,
    resolve_search,
    takes_nothing,
    value_at,
)
from orchestrator.config.sweep import grid as sweep
from orchestrator.config.sweep import search
from orchestrator.config.sweep.space import distribution
from orchestrator.errors import ConfigError, nearest
from orchestrator.spec import CheckpointOptions, Config, LaunchOptions, Objective, Point, Resources, SnapshotOptions
from orchestrator.spec.experiment import ASK_ABOVE
from orchestrator.spec.search import Distribution, Template

_ONE_PER_LAUNCH = frozenset(
    {"name", "cluster", "tracking", "snapshot", "env", "objective", "sweep", "experiment", "launch", "tags", "after"}
    | {"init_from_trusted", "checkpoint"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposedPoint:
    """One grid point: its coordinates, its resolved config (model, data, trainer, seed, task), its resources."""

    point: Point
    config: Config
    resources: Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposedSearch:
    """An adaptive sweep. The first points of its experiment are those of its templates, in the same order."""

    definition: search.Definition
    templates: tuple[Template, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComposedExperiment:
    """An experiment before its data versions are resolved and its targets are checked.

    `points` are its grid points; those of a `search` are not known yet, so these are sample points to check it at.
    """

    name: str
    points: tuple[ComposedPoint, ...]
    objective: Objective | None
    cluster: Mapping[str, Any]
    tracking: Mapping[str, Any]
    snapshot: SnapshotOptions
    launch: LaunchOptions
    tags: tuple[str, ...]
    env: str
    choices: Mapping[str, str]
    sweep: Mapping[str, object]
    overrides: tuple[str, ...]
    notes: tuple[str, ...]
    ask_above: int = ASK_ABOVE
    after: tuple[str, ...] = ()
    init_from_trusted: bool = False
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    search: ComposedSearch | None = None


def compose_experiment(project: Path, overrides: Sequence[str], takes: Takes = takes_nothing) -> ComposedExperiment:
    """Compose and check an experiment; `takes` knows the arguments of targets. Raises ConfigError; writes nothing."""
    composer = Composer(project)
    line = command_line.parse(overrides, composer.options_of)
    _check_axes([axis.key for axis in line.axes])
    head, definition = _definition(composer, line)
    head["overrides"] = tuple(overrides)
    fixed = [text for text in line.fixed if text != "sweep=none"]
    if head["search"]:
        return _searched(composer, fixed, head, definition, takes)
    points, notes = sweep.expand(definition, line.values)
    _check_axes(list(definition.keys))
    _check_group_values(composer, definition)
    prefixes = {axis.key: axis.prefix for axis in line.axes}
    resolved = list(resolve_points(composer, fixed, points, prefixes, takes))
    return _assemble(head, resolved, definition, notes)


def data_version(project: Path, overrides: Sequence[str]) -> Any:
    """Return the data version that overrides choose, as written; the rest of the config may be incomplete."""
    composer = Composer(project)
    line = command_line.parse(overrides, composer.options_of)
    if line.axes:
        raise ConfigError(
            f"{line.axes[0].key} is swept", why="one data version at a time is shown", fix="give it one value"
        )
    return resolve(composer.compose(line.fixed).config, where="the data", only="data").get("version")


@contextmanager
def placing(project: Path, overrides: Sequence[str]) -> Iterator[None]:
    """Add to ConfigErrors raised in a block where the value was written: the override, or the file and line."""
    try:
        yield
    except ConfigError as error:
        fixed = [text for text in overrides if text != "sweep=none"]
        composer = Composer(project)
        if composer.unread and "there is no conf/" in error.what:
            raise ConfigError(error.what, why=error.why, fix=f"ln -s {composer.unread} conf") from error
        place = composer.place_of(error.what, fixed)
        if not place or place in error.what:
            raise
        raise ConfigError(f"{error.what} ({place})", why=error.why, fix=error.fix) from error


def _definition(composer: Composer, line: command_line.CommandLine) -> tuple[dict[str, Any], sweep.Sweep]:
    """Compose once without the axes, to read the values common to all points: the name, the sweep, the cluster."""
    fixed = [text for text in line.fixed if text != "sweep=none"]
    config = composer.compose(fixed).config
    raw = OmegaConf.to_container(config, resolve=False)
    _check_package(raw)
    schema.check_top_level(cast("Mapping[str, Any]", raw))
    optional = {"after": schema.after, "init_from_trusted": schema.trusted, "checkpoint": schema.checkpoint}
    head = {key: _section(config, key) for key in sorted(_ONE_PER_LAUNCH.difference(optional, {"experiment"}))}
    head |= {key: check(_section(config, key) if key in config else None) for key, check in optional.items()}
    for key in head.keys() - {"sweep"}:
        _refuse_secrets(key, head[key])
    written = {} if line.drop_sweep else head["sweep"]
    axes = _named(composer, {axis.key: list(axis.values) for axis in line.axes})
    head["unread"] = composer.unread
    head["ask_above"] = sweep.ask_above(head["sweep"])
    head["sweep"] = {key: value for key, value in written.items() if value and key != "ask_above"}
    expanded = _named(composer, _expand_text(written, composer.options_of))
    head["search"] = search.define(expanded, replaced=line.keys, axes=axes)
    return head, sweep.define(expanded, replaced=line.keys, axes=axes)


def _searched(
    composer: Composer,
    fixed: Sequence[str],
    head: Mapping[str, Any],
    definition: sweep.Sweep,
    takes: Takes,
) -> ComposedExperiment:
    """Return the experiment of an adaptive sweep, composed for each choice and checked at sample points of each."""
    wanted: search.Definition = head["search"]
    _check_axes(list(wanted.space))
    composed = search.composed_keys(wanted, composer.chooses)
    _check_options(composer, ((key, value) for key in composed for value in wanted.space[key].arguments))
    keys = [key for key in wanted.space if key not in composed]
    probes = partial(search.probes, wanted)
    chosen = {json.dumps(choice): choice for choice in search.choices(wanted, composed)}
    found = {key: resolve_search(composer, fixed, choice, keys, probes) for key, choice in chosen.items()}
    if any(not any(key in each.keys for each in found.values()) for key in keys):
        found = {
            key: resolve_search(composer, fixed, choice, keys, probes, takes=takes) for key, choice in chosen.items()
        }
    _check_there(keys, [each.keys for each in found.values()])
    first = [each.points[0] for each in found.values()]
    others = [point for each in found.values() for point in each.points[1:]]
    drafted = _assemble(head, [*first, *others], definition, _search_notes(wanted, found))
    _check_same(drafted.points)
    objectives = wanted.objectives or ((drafted.objective,) if drafted.objective else ())
    if not objectives:
        raise ConfigError(
            "sweep.optuna has no objective",
            why="a search has to know what is better",
            fix="objective={metric: val/acc, mode: max}",
        )
    templates = tuple(
        Template(choices=json.loads(choice), keys=each.keys, fills=each.fills, config=point.config)
        for (choice, each), point in zip(found.items(), drafted.points, strict=False)
    )
    return replace(
        drafted, search=ComposedSearch(definition=replace(wanted, objectives=objectives), templates=templates)
    )


def _search_notes(wanted: search.Definition, found: Mapping[str, Searched]) -> tuple[str, ...]:
    """Return notes on a search for the user."""
    by = [str(node["_target_"]).rpartition(".")[2] for node in (wanted.sampler, wanted.pruner) if node]
    notes = [f"sweep.optuna: trials are asked for when they start, by {' and '.join(by)}"]
    for key in wanted.space:
        where = [choice for choice, each in found.items() if key in each.keys]
        if where and len(where) < len(found):
            told = ["/".join(map(str, json.loads(choice).values())) for choice in where]
            notes.append(f"sweep.optuna: {key} is searched with {', '.join(told[:3])}{', ...' * (len(told) > 3)} only")
    return tuple(notes)


def _check_there(keys: Sequence[str], found: Sequence[Sequence[str]]) -> None:
    """Refuse a searched key that no choice has; a key that only some choices have is searched with those."""
    for key in keys:
        if not any(key in here for here in found):
            raise ConfigError(
                f"sweep.optuna: there is no key {key}",
                why="what is searched has a value in the config already",
                fix="correct it, or add the key to the config",
            )


def _check_same(points: Sequence[ComposedPoint]) -> None:
    """Refuse a search whose trials differ in data or resources: both are fixed before a trial is requested."""
    first = points[0]
    for point in points:
        data = point.config["data"].get("version") == first.config["data"].get("version")
        if not data or point.resources != first.resources:
            one, other = (" ".join(f"{k}={v}" for k, v in each.point.items()) for each in (first, point))
            raise ConfigError(
                f"sweep.optuna: {one} and {other} differ in {'resources' if data else 'data.version'}",
                why="a job is submitted, and its data copied, before its trial is asked for",
                fix="give all of them the same, or make two experiments",
            )


def _check_package(raw: object) -> None:
    """Refuse an experiment's file whose keys Hydra has put under `experiment:`, where nothing reads them."""
    if isinstance(raw, Mapping) and raw.get("experiment") == {}:
        raise ConfigError(
            "the experiment's file sets nothing", why="an experiment has a name, and a model", fix="name: my-experiment"
        )
    if isinstance(raw, Mapping) and isinstance(raw.get("experiment"), Mapping):
        raise not_global(f"the experiment's keys came under `experiment:`: {', '.join(map(str, raw['experiment']))}")


def _refuse_secrets(key: str, value: object) -> None:
    """Refuse a secret in a place where no node fills it in."""
    if name := next(referred(value), None):
        raise ConfigError(
            f"{key} refers to ${{secret:{name}}}",
            why="secrets are filled in on the node, in model, data and trainer only",
            fix="use the environment variables of the program that reads it: MLFLOW_TRACKING_TOKEN, AWS_PROFILE",
        )


def _section(config: Any, key: str) -> Any:
    return resolve(config, where="the experiment", only=key)


def _expand_text(written: Mapping[str, Any], options: command_line.Options) -> dict[str, object]:
    """Expand axes written as text in Hydra's grammar, such as `seed: range(0,5)`, and the space of random points."""
    zips = written.get("zip")
    together = [_expand_keys(each, options) for each in zips] if isinstance(zips, list) else _expand_keys(zips, options)
    grid = _expand_keys(written.get("grid"), options)
    spaces = {kind: _spaced(kind, written[kind]) for kind in ("random", "optuna") if kind in written}
    return {**written, "grid": grid, "zip": together, **spaces}


def _spaced(kind: str, written: Any) -> object:
    """Return `sweep.random`, or `sweep.optuna`, with the distributions that its texts stand for."""
    space = written.get("space") if isinstance(written, Mapping) else None
    if not isinstance(space, Mapping):
        return written
    return {**written, "space": {key: _distribution(f"sweep.{kind}", key, each) for key, each in space.items()}}


def _distribution(where: str, key: str, written: object) -> object:
    if isinstance(written, list):
        return distribution(key, "choice", written, where=where)
    if not isinstance(written, str):
        return written
    return distribution(key, *command_line.call_of(key, written, where=where), where=where)


def _expand_keys(axes: object, options: command_line.Options) -> object:
    if not isinstance(axes, Mapping):
        return axes
    found = {key: command_line.axis_of(key, text, options) for key, text in axes.items() if isinstance(text, str)}
    return {key: list(axis.values) if (axis := found.get(key)) else values for key, values in axes.items()}


def _named(composer: Composer, tree: object) -> Any:
    """Return a sweep in which each option of a config group has one spelling: `any.yaml` becomes `any`."""
    if isinstance(tree, list):
        return [_named(composer, each) for each in tree]
    if not isinstance(tree, Mapping):
        return tree
    return {
        key: replace(each, arguments=tuple(composer.option(key, list(each.arguments))))
        if isinstance(each, Distribution)
        else composer.option(key, _named(composer, each))
        for key, each in tree.items()
    }


def _check_axes(keys: Sequence[str]) -> None:
    for key in keys:
        if re.split(r"[./@]", key.lstrip("+"))[0] in _ONE_PER_LAUNCH:
            raise ConfigError(
                f"{key} is swept", why="a launch has one of it", fix=f"give {key} one value, and launch once per value"
            )


def _check_group_values(composer: Composer, definition: sweep.Sweep) -> None:
    _check_options(composer, ((k, v) for block in definition.blocks for point in block for k, v in point.items()))


def _check_options(composer: Composer, chosen: Iterable[tuple[str, object]]) -> None:
    for key, value in chosen:
        if composer.chooses(key, value) and value is not None:
            options = composer.options(key.partition("@")[0])
            for option in map(str, value if isinstance(value, list) else [value]):
                if option not in options:
                    raise ConfigError(
                        f"sweep: {key}={option!r} is not an option{nearest(option, options)}",
                        why=f"the options of {key} are {', '.join(options)}",
                        fix=f"choose one of them for {key}",
                    )


def _assemble(
    head: Mapping[str, Any],
    resolved: Sequence[Resolved],
    definition: sweep.Sweep,
    notes: tuple[str, ...],
) -> ComposedExperiment:
    used: set[int] = set()
    points = tuple(_point(item, definition, used) for item in resolved)
    unused = [rule for i, rule in enumerate(definition.resources) if i not in used]
    more = tuple(f"sweep.resources: when {dict(when)} matches no point" for when, _ in unused)
    # Points with the same choices have the same keys and differ only in swept values: no need to check all 10,000.
    kinds = {id(item.choices): point.config for item, point in zip(resolved, points, strict=True)}
    shown = dict.fromkeys(
        key for config in (*kinds.values(), *(point.point for point in points)) for key in literal(config)
    )
    if head["cluster"].get("kind") != "slurm" and any(point.resources.gpu_type for point in points):
        more += ("resources.gpu_type counts on Slurm only: these runs take the GPUs of this machine",)
    if unread := head["unread"]:
        more += (f"{unread}/ is not read, and there is no conf/: ln -s {unread} conf",)
    more += tuple(
        f"{key} looks like a credential, and is written to disk: write ${{secret:NAME}} instead" for key in shown
    )
    objective, tracking = schema.objective(head["objective"]), schema.tracking(head["tracking"])
    schema.check_register(tracking, objective)
    return ComposedExperiment(
        name=schema.name(head["name"]),
        points=points,
        objective=objective,
        cluster=schema.cluster(head["cluster"]),
        tracking=tracking,
        snapshot=schema.snapshot(head["snapshot"]),
        launch=schema.launch(head["launch"]),
        tags=schema.tags(head["tags"]),
        env=schema.env(head["env"]),
        choices=resolved[0].choices,
        sweep=head["sweep"],
        overrides=head["overrides"],
        notes=notes + more,
        ask_above=head["ask_above"],
        after=head["after"],
        init_from_trusted=head["init_from_trusted"],
        checkpoint=head["checkpoint"],
    )


def _point(item: Resolved, definition: sweep.Sweep, used: set[int]) -> ComposedPoint:
    wanted, changed = dict(item.config["resources"]), dict[str, Any]()
    for i, (when, changes) in enumerate(definition.resources):
        if sweep.matches(when, {**{key: value_at(item.config, key) for key in when}, **item.choices, **item.point}):
            used.add(i)
            changed |= changes
    try:
        config = {key: item.config[key] for key in IDENTITY}
        schema.component("model", config["model"], optional=False)
        schema.component("data", config["data"], optional=True)
        _refuse_secrets("data.version", config["data"].get("version"))
        config["trainer"] = schema.trainer(config["trainer"])
        config["seed"], config["task"] = schema.seed(config["seed"]), schema.task(config["task"])
        config |= schema.starts(item.config, config["task"])
        return ComposedPoint(point=item.point, config=config, resources=_resources(wanted, changed))
    except ConfigError as error:
        if not item.point:
            raise
        told = " ".join(f"{key}={value}" for key, value in item.point.items())
        raise ConfigError(f"point {told}: {error.what}", why=error.why, fix=error.fix) from error


def _resources(written: Mapping[str, object], changed: Mapping[str, object]) -> Resources:
    """Return a point's resources; an error in a value that `sweep.resources` has set names `sweep.resources`."""
    try:
        return schema.resources({**written, **changed})
    except ConfigError as error:
        if not any(error.what.startswith(f"resources.{key} ") for key in changed):
            raise
        raise ConfigError(f"sweep.resources: {error.what}", why=error.why, fix=error.fix) from error
