"""Choosing runs on the command line: by id prefix, state, launch, or point (`model.lr=1e-3`). Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import RequestError, nearest
from orchestrator.record import Record, RunState

_ID = re.compile(r"[0-9a-f]{1,12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A parsed choice. Kinds are combined with `and`, several of one kind with `or`; nothing given: all runs."""

    ids: tuple[str, ...] = ()
    states: tuple[RunState, ...] = ()
    launches: tuple[int, ...] = ()
    tags: tuple[str, ...] = ()
    point: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def matches(self, record: Record, tags: Collection[str] = ()) -> bool:
        """Return whether a run is chosen; `tags` are its launch's."""
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
    """Return the selection that words stand for. Raises RequestError for one that is none of the forms.

    `experiments` are the names that a word may have been meant for.
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
            f"{text!r} is no state{nearest(text, states)}", why=f"states are {', '.join(states)}", fix="state=failed"
        ) from error


def _number(text: str) -> int:
    if not text.isdecimal():
        raise RequestError(f"launch={text!r}", why="a launch has a number", fix="launch=3")
    return int(text)


def _same(value: Any, text: str) -> bool:
    if isinstance(value, bool) or value is None:
        return text.lower() == {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int | float):
        try:
            return float(text) == value
        except ValueError:
            return False
    return str(value) == text
