"""The study of an adaptive sweep, for one of its trials: derived from the records of the others, with Optuna.

There is no controller and no database. A trial that starts reads what became of the others, and of those that run
what they were given and have reported; it makes a study in memory of that, with the numbers that the trials have, and
asks its sampler for its own values, and its pruner whether to stop. What these keep with a trial, or with the study, is
kept in that trial's events. The sampler of each trial is seeded by the search's seed and the trial's number (where all
have to agree on an order, by the first alone), so that with one trial at a time a search takes the same course again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import time
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, GridSampler, QMCSampler
from optuna.samplers.nsgaii import BaseCrossover, BaseMutation
from optuna.trial import FrozenTrial, TrialState

from orchestrator.config.build import build, locate
from orchestrator.errors import ConfigError, StateError
from orchestrator.identity import trial_id
from orchestrator.layout import ExperimentPaths
from orchestrator.records.experiment import ExperimentReader
from orchestrator.records.record import Record, RunState
from orchestrator.records.searches import template_at
from orchestrator.spec import Point, RunId
from orchestrator.spec.search import Distribution, Search
from orchestrator.system.files import names_in

SHARE = 0.02
"""Of a trial's time is spent at most on reading again what the others report."""

_RANDOM = {"_target_": "optuna.samplers.RandomSampler"}
_IN_ORDER = (GridSampler, QMCSampler)
"""Samplers whose seed makes an order of points, which all trials have to agree on."""

_PARTS = (BaseSampler, BasePruner, BaseCrossover, BaseMutation)
"""What samplers and pruners are made of. Functions are not: Optuna would call them with what they were given."""

_DIGITS = 6
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - Optuna's times have no zone, and nobody reads these


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of one trial. `reports`: validation -> the objective's value; `values`: one for each objective.

    `attrs` and `study` are what sampler and pruner keep, with the trial and, when it was asked for, with the study.
    """

    number: int
    point: Point
    state: TrialState
    values: tuple[float, ...] = ()
    reports: Mapping[int, float] = field(default_factory=dict)
    attrs: Mapping[str, object] = field(default_factory=dict)
    study: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a trial is given: the values of what is searched, and what the sampler keeps with it, and with the study."""

    point: Point
    attrs: Mapping[str, Any]
    study: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"point": dict(self.point), "attrs": dict(self.attrs), **({"study": self.study} if self.study else {})}


def known(search: Search, records: Mapping[RunId, Record], *, cancelled: Collection[str] = frozenset()) -> list[Known]:
    """Return the trials of a search that were given their values, in the order of their numbers.

    `cancelled` are the ids of runs that somebody has cancelled: whether their jobs go on is not known here.
    """
    numbers = {trial_id(search.id, number): number for number in _numbers(records)}
    ours = sorted((number, records[run]) for run, number in numbers.items() if run in records)
    return [_known(search, number, record, cancelled=record.id in cancelled) for number, record in ours if record.given]


def _numbers(records: Mapping[RunId, Record]) -> set[int]:
    found = (record.planned.point.get("trial") for record in records.values())
    return {number for number in found if type(number) is int}  # a sweep may have a key of that name, too


def _known(search: Search, number: int, record: Record, *, cancelled: bool) -> Known:
    state, values = _outcome(search, record, cancelled=cancelled)
    reports: dict[int, float] = {}
    attrs: dict[str, object] = {}
    kept: Mapping[str, object] = {}
    for attempt in record.history:
        attrs |= attempt.trial.get("attrs", {})
        kept = attempt.trial.get("study", kept)
        own = {int(n): math.nan if v is None else float(v) for n, v in attempt.trial.get("reports", ())}
        # It resumes from its checkpoint: what was reported later than that does not belong to its history.
        reports = {n: value for n, value in reports.items() if n < min(own, default=n + 1)} | own
    return Known(
        number=number, point=record.given or {}, state=state, values=values, reports=reports, attrs=attrs, study=kept
    )


def _outcome(search: Search, record: Record, *, cancelled: bool) -> tuple[TrialState, tuple[float, ...]]:
    """Return what became of a trial. One that was interrupted may yet go on: it counts as one that runs.

    A trial's value is the best that it has reached; of several, which have to belong together, the last ones.
    """
    last = record.last
    if record.state is RunState.CANCELLED or last is None or last.state is RunState.FAILED:
        return TrialState.FAIL, ()
    if last.state is not RunState.DONE:
        return (TrialState.FAIL if cancelled else TrialState.RUNNING), ()
    if last.trial.get("pruned"):
        return TrialState.PRUNED, ()
    metrics = [objective.metric for objective in search.objectives]
    found = [record.best_value(metrics[0])] if len(metrics) == 1 else [record.metrics.get(name) for name in metrics]
    values = tuple(value for value in found if value is not None and math.isfinite(value))
    return (TrialState.COMPLETE, values) if len(values) == len(found) else (TrialState.FAIL, ())


def ask(search: Search, others: Iterable[Known], number: int) -> Asked:
    """Return what a trial is given, from what is known of the others."""
    study = _study(search, others, Known(number=number, point={}, state=TrialState.RUNNING))
    trial = optuna.Trial(study, _id_of(study, number))
    composed = [key for key in search.space if key in search.templates[0].choices]
    point = {key: _suggest(trial, key, search.space[key]) for key in composed}
    template = template_at(search, point)
    if template is None:
        raise StateError(f"the search has no template for {point}", why="it is damaged", fix="launch it again")
    point |= {key: _suggest(trial, key, search.space[key]) for key in template.keys}
    return Asked(point=point, attrs=_attrs(study, number), study=_plain(_study_attrs(study)))


class Study:
    """The study as one trial sees it while it runs."""

    def __init__(self, experiment: ExperimentPaths, search: Search, number: int) -> None:
        self._search, self._number = search, number
        self._reader = ExperimentReader(experiment)
        self._known: list[Known] = []
        self._study: optuna.Study | None = None  # until there is news of the others
        self._again = 0.0
        self._point: Point = {}
        self._before: Mapping[int, float] = {}
        self._reports: dict[int, float] = {}
        self._attrs: dict[str, object] = {}

    @property
    def _others(self) -> list[Known]:
        return [each for each in self._known if each.number != self._number]

    def ask(self) -> Asked:
        self._read()
        return ask(self._search, self._others, self._number)

    def resume(self, asked: Asked) -> None:
        """Know what this trial was given, and what its earlier attempts have reported."""
        self._point, self._attrs = asked.point, dict(asked.attrs)
        self._read()
        mine = next((each for each in self._known if each.number == self._number), None)
        if mine:
            self._before, self._attrs = dict(mine.reports), {**self._attrs, **mine.attrs}

    def report(self, validation: int, value: float) -> tuple[bool, Mapping[str, object]]:
        """Take the objective's value at a validation; return whether to stop there, and what the pruner keeps."""
        if time.monotonic() >= self._again:
            self._read()
        self._reports[validation] = value
        before = {number: each for number, each in self._before.items() if number < validation}
        mine = Known(
            number=self._number,
            point=self._point,
            state=TrialState.RUNNING,
            reports={**before, **self._reports},
            attrs=self._attrs,
        )
        if self._study is None:
            self._study = _study(self._search, self._others, mine)
        else:
            _report(self._study, self._number, validation, value)
        study = self._study
        stop = study.pruner.prune(study, study.get_trials(deepcopy=False)[self._number])
        after = _attrs(study, self._number)
        new = {key: each for key, each in after.items() if self._attrs.get(key) != each}
        self._attrs |= new
        return bool(stop), new

    def _read(self) -> None:
        began = time.monotonic()
        state = self._reader.read({})
        marked = {launch.number: set(names_in(launch.paths.cancelled)) for launch in state.launches}
        cancelled = {run for run, record in state.records.items() if run in marked.get(record.planned.launch, ())}
        self._known, self._study = known(self._search, state.records, cancelled=cancelled), None
        now = time.monotonic()
        self._again = now + (now - began) / SHARE


def check(search: Search) -> None:
    """Raise ConfigError if a first trial cannot be asked for, or pruned. It imports what is named: see check.py."""
    try:
        asked = ask(search, (), 0)
        mine = Known(number=0, point=asked.point, state=TrialState.RUNNING, reports={1: 0.0}, attrs=asked.attrs)
        study = _study(search, (), mine)
        if len(search.objectives) == 1:
            study.pruner.prune(study, study.get_trials(deepcopy=False)[0])
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"sweep.optuna: {search.sampler['_target_']} cannot be asked for a trial",
            why=f"{error}",
            fix="correct sweep.optuna.sampler and pruner, or leave them out for TPE and the median",
        ) from error


def _refuse_others(node: object, kinds: tuple[type, ...]) -> None:
    """Raise ConfigError if a node, or one within it, is of another class: what is built is called, whatever it is."""
    if isinstance(node, list | tuple):
        for item in node:
            _refuse_others(item, kinds)
    if not isinstance(node, Mapping):
        return
    target = locate(str(node["_target_"])) if "_target_" in node else None
    if target is not None and not (inspect.isclass(target) and issubclass(target, kinds)):
        raise ConfigError(
            f"sweep.optuna: {node['_target_']} is not a class of Optuna's that samples or prunes",
            why=f"in a sampler or a pruner, a _target_ is a subclass of {', '.join(kind.__name__ for kind in kinds)}",
            fix="derive a class of yours from one of them",
        )
    _refuse_others(list(node.values()), _PARTS)


def _made(node: Mapping[str, object], kind: type) -> Any:
    """Build a sampler or a pruner, and nothing else."""
    _refuse_others(node, (kind,))
    return build(node)


def _study(search: Search, others: Iterable[Known], mine: Known) -> optuna.Study:
    """Return a study in which each trial has its own number; those that nothing is known of count as failed."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # of what a user chose
    study = optuna.create_study(
        study_name=search.id,
        sampler=_made(_seeded(search.sampler, search, mine.number), BaseSampler),
        pruner=_made(search.pruner, BasePruner) if search.pruner else optuna.pruners.NopPruner(),
        directions=["maximize" if objective.mode == "max" else "minimize" for objective in search.objectives],
    )
    numbered = {each.number: each for each in (*others, mine)}
    nothing = FrozenTrial(
        number=0,
        trial_id=0,
        state=TrialState.FAIL,
        value=None,
        datetime_start=_EPOCH,
        datetime_complete=_EPOCH,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values={},
    )
    for number in range(max(numbered) + 1):
        study.add_trial(_frozen(search, numbered[number]) if number in numbered else nothing)
    for key, value in numbered[max(numbered.keys() - {mine.number}, default=mine.number)].study.items():
        study._storage.set_study_system_attr(study._study_id, key, value)  # noqa: SLF001 - no other way
    return study


def _frozen(search: Search, trial: Known) -> FrozenTrial:
    space = {key: _distribution(search.space[key]) for key in trial.point if key in search.space}
    ended = trial.state is not TrialState.RUNNING
    return FrozenTrial(
        number=trial.number,
        trial_id=0,
        state=trial.state,
        value=None,
        values=list(trial.values) or _last(trial),
        datetime_start=_EPOCH,
        datetime_complete=_EPOCH if ended else None,
        params={
            key: _category(trial.point[key]) if isinstance(d, CategoricalDistribution) else trial.point[key]
            for key, d in space.items()
        },
        distributions=space,
        user_attrs={},
        system_attrs=dict(trial.attrs),
        intermediate_values=dict(trial.reports),
    )


def _last(trial: Known) -> list[float] | None:
    """Return the value of a trial that was pruned: its last report, as Optuna has it."""
    last = trial.reports[max(trial.reports)] if trial.state is TrialState.PRUNED and trial.reports else math.nan
    return [last] if math.isfinite(last) else None


def _report(study: optuna.Study, number: int, validation: int, value: float) -> None:
    study._storage.set_trial_intermediate_value(_id_of(study, number), validation, value)  # noqa: SLF001 - ask()'s trials only else


def _id_of(study: optuna.Study, number: int) -> int:
    return study.get_trials(deepcopy=False)[number]._trial_id  # noqa: SLF001 - Optuna's own integrations use it, too


def _distribution(wanted: Distribution) -> BaseDistribution:
    if wanted.kind == "choice":
        return CategoricalDistribution(list(map(_category, wanted.arguments)))
    low, high, *step = wanted.arguments
    if wanted.kind == "int":
        return _whole(low, high, *step)
    return FloatDistribution(float(low), float(high), log=wanted.kind == "loguniform")


def _whole(low: int, high: int, step: int = 1) -> IntDistribution:
    return IntDistribution(low, high - (high - low) % step, step=step)  # Optuna warns of a bound between two steps


def _category(value: object) -> Any:
    """Return what stands for a choice in Optuna, which knows plain values only."""
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value


def _suggest(trial: optuna.Trial, key: str, wanted: Distribution) -> Any:
    if wanted.kind == "choice":
        categories = list(map(_category, wanted.arguments))
        return wanted.arguments[categories.index(trial.suggest_categorical(key, categories))]
    low, high, *step = wanted.arguments
    if wanted.kind == "int":
        whole = _whole(low, high, *step)
        return trial.suggest_int(key, whole.low, whole.high, step=whole.step)
    value = trial.suggest_float(key, float(low), float(high), log=wanted.kind == "loguniform")
    return min(max(float(f"{value:.{_DIGITS}g}"), float(low)), float(high))  # to be read, and given as it is shown


def _seed(search: Search, number: int | None) -> int:
    digest = hashlib.sha256(json.dumps([search.id, search.seed, number]).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _seeded(node: Any, search: Search, number: int) -> Any:
    """Return a `_target_` node in which all that takes a seed is given one: its trial's own."""
    if isinstance(node, list):
        return [_seeded(item, search, number) for item in node]
    if not isinstance(node, Mapping):
        return node
    inner = {key: _seeded(item, search, number) for key, item in node.items()}
    target = locate(str(node["_target_"])) if "_target_" in node else None
    if target is None or "seed" not in inspect.signature(target).parameters or "seed" in inner:
        return inner
    if target is QMCSampler and "independent_sampler" not in inner:  # else it draws the same for each trial
        inner["independent_sampler"] = _seeded(_RANDOM, search, number)
    return {**inner, "seed": _seed(search, None if target in _IN_ORDER else number)}


def _attrs(study: optuna.Study, number: int) -> dict[str, object]:
    """Return what sampler and pruner keep with a trial, without what JSON cannot hold."""
    return _plain(study.get_trials(deepcopy=False)[number].system_attrs)


def _study_attrs(study: optuna.Study) -> Mapping[str, object]:
    found: Mapping[str, object] = study._storage.get_study_system_attrs(study._study_id)  # noqa: SLF001 - see _id_of
    return found


def _plain(attrs: Mapping[str, object]) -> dict[str, object]:
    found = {}
    for key, value in attrs.items():
        try:
            found[key] = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            continue
    return found
