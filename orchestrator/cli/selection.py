"""Choosing runs on the command line: by experiment, id prefix, state, launch, or point (`model.lr=1e-3`)."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.cli.text import say
from orchestrator.config.credentials import described
from orchestrator.errors import RequestError, nearest
from orchestrator.project import Project
from orchestrator.records.experiment import ExperimentState
from orchestrator.records.record import Record, RunState
from orchestrator.refresh import refresh
from orchestrator.report.summary import count

_ID = re.compile(r"[0-9a-f]{1,12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A parsed choice. Kinds are combined with `and`, several of one kind with `or`; an empty one chooses all."""

    ids: tuple[str, ...] = ()
    states: tuple[RunState, ...] = ()
    launches: tuple[int, ...] = ()
    tags: tuple[str, ...] = ()
    point: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def matches(self, record: Record, tags: Collection[str] = ()) -> bool:
        """Return whether a run is chosen; `tags` are those of its launch."""
        return (
            (not self.ids or any(record.id.startswith(prefix) for prefix in self.ids))
            and (not self.states or record.state in self.states)
            and (not self.launches or record.planned.launch in self.launches)
            and (not self.tags or not set(self.tags).isdisjoint(tags))
            and all(
                key in record.point and any(_same(record.point[key], value) for value in values)
                for key, values in self.point.items()
            )
        )

    def choose(self, records: Iterable[Record], tags: Mapping[int, Collection[str]]) -> list[Record]:
        """Return the chosen runs; `tags` are those of each launch."""
        return [record for record in records if self.matches(record, tags.get(record.planned.launch, ()))]


def parse(words: Sequence[str], *, experiments: Sequence[str] = ()) -> Selection:
    """Parse words into a selection. Raises RequestError for a word that has none of the forms.

    `experiments` are the names that an error may suggest.
    """
    ids, states, launches, tags = [], [], [], []
    point: dict[str, tuple[str, ...]] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if word in set(RunState) or key == "state":
            states += [_state(part) for part in (value if equals else word).split(",")]
        elif key == "launch" and equals:
            launches.append(_number(value))
        elif key == "tag" and equals:
            tags += value.split(",")
        elif equals:
            point[key] = (*point.get(key, ()), *value.split(","))
        elif _ID.fullmatch(word):
            ids.append(word)
        else:
            raise RequestError(
                f"{word!r} chooses no runs{nearest(word, [*experiments, *(state.value for state in RunState)])}",
                why="runs are chosen by experiment, id prefix, state, launch=N, tag=WORD or point (model.lr=1e-3)",
                fix="orch status lists the experiments; orch status NAME their runs",
            )
    return Selection(ids=tuple(ids), states=tuple(states), launches=tuple(launches), tags=tuple(tags), point=point)


def _state(text: str) -> RunState:
    try:
        return RunState(text)
    except ValueError as error:
        states = [state.value for state in RunState]
        raise RequestError(
            f"{text!r} is not a state{nearest(text, states)}", why=f"states are {', '.join(states)}", fix="state=failed"
        ) from error


def _number(text: str) -> int:
    if not text.isdecimal():
        raise RequestError(f"launch={text!r}", why="a launch has a number", fix="launch=3")
    return int(text)


def _same(value: object, text: str) -> bool:
    if isinstance(value, bool) or value is None:
        return text.lower() == {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int | float):
        try:
            return float(text) == value
        except ValueError:
            return False
    return str(value) == text


def select(
    project: Project, words: Sequence[str], *, read_state: Callable[[Project, str], ExperimentState] = refresh
) -> tuple[str, ExperimentState, list[Record]]:
    """Return the experiment that words name, or else the only one whose runs they choose, and the chosen runs."""
    experiments = [paths.name for paths in project.runs.experiments()]
    named = [word for word in words if word in experiments]
    if len(named) > 1:
        raise RequestError(f"{named[0]} and {named[1]} are two experiments", fix="name one of them")
    chosen = parse([word for word in words if word not in named], experiments=experiments)
    candidates = named or experiments
    found = [
        (state, chosen.choose(state.records.values(), state.tags))
        for state in (read_state(project, name) for name in candidates)
    ]
    only_states = not (chosen.ids or chosen.point or chosen.tags)
    _check_keys(chosen, [record for state, _ in found for record in state.records.values()])
    hits = [(state, records) for state, records in found if records or named or (only_states and len(found) == 1)]
    if len(hits) != 1:
        _refuse(project, words, [state.experiment.name for state, _ in hits], experiments)
    state, records = hits[0]
    if (chosen.ids or chosen.point) and not records:
        raise RequestError(f"no run of {named[0]} is chosen by {' '.join(words)}", fix=f"orch status {named[0]}")
    if state.read_only:
        say(f"read only: {state.read_only}")
    return state.experiment.name, state, records


def _refuse(project: Project, words: Sequence[str], hits: Sequence[str], experiments: Sequence[str]) -> None:
    if not experiments:
        raise RequestError(f"no experiments in {project.runs.path}", fix="start one: orch launch experiment=NAME")
    given = " ".join(words) or "nothing given"
    if hits:
        raise RequestError(
            f"{given}: runs of {', '.join(hits)}", why="one experiment at a time", fix="name one of them"
        )
    hint = nearest(words[0], experiments) if words else ""
    raise RequestError(
        f"{given}: no such experiment or run{hint}",
        why=f"there are {', '.join(experiments)}",
        fix="orch status lists them",
    )


def _check_keys(chosen: Selection, records: Sequence[Record]) -> None:
    known = sorted({key for record in records for key in record.point}) if chosen.point else []
    for key, values in chosen.point.items():
        if records and key not in known:
            raise RequestError(
                f"{key}={','.join(values)} chooses no runs{nearest(key, known)}",
                why=f"swept were {', '.join(known) or 'no keys'}",
                fix="choose by one of them, an id prefix, state=... or launch=N",
            )


def one(records: Sequence[Record]) -> Record:
    """Return the only chosen run. Raises RequestError if there is none, or several."""
    if len(records) != 1:
        some = "; ".join(f"{record.id[:8]} {described(record.point)}" for record in records[:4])
        more = " ..." if len(records) > 4 else ""
        chosen = f" ({some}{more})" if some else ""
        raise RequestError(f"{count(len(records))} chosen{chosen}", why="one is needed", fix="give an id prefix")
    return records[0]


def shown(state: ExperimentState, records: Sequence[Record], arguments: Namespace) -> list[Record]:
    """Return the runs that are not hidden, or all with `--hidden`."""
    kept = [record for record in records if arguments.hidden or record.id not in state.hidden]
    if len(kept) < len(records):
        say(f"note: {count(len(records) - len(kept))} hidden: --hidden")
    return kept
