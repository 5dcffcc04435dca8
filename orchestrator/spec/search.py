"""The nouns of an adaptive sweep: what is searched, and by whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from orchestrator.spec import Config, Objective, Point

KeyPath = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """What a key is drawn from, or searched in: a kind and its arguments, checked by config/sweep/space.py."""

    kind: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A config whose searched leaves are filled in on the node; one for each choice of what is composed at launch.

    `choices` are the values of the composed keys, `keys` the dotted keys that are searched where these hold. `fills`
    are leaves that read them: their path, and the texts and searched keys that they are put together from.
    """

    choices: Point
    keys: tuple[str, ...]
    fills: tuple[tuple[KeyPath, tuple[str | KeyPath, ...]], ...]
    config: Config

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        fills = tuple(
            (tuple(at), tuple(piece if isinstance(piece, str) else tuple(piece) for piece in pieces))
            for at, pieces in value["fills"]
        )
        return cls(
            choices=dict(value["choices"]),
            keys=tuple(map(_text, value["keys"])),
            fills=fills,
            config=dict(value["config"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """An adaptive sweep: each trial's values are asked for when it starts, from what the others have come to.

    `id` is the hash of all else. `sampler` and `pruner` are `_target_` nodes; without `pruner` nothing is pruned.
    """

    id: str
    space: Mapping[str, Distribution]
    sampler: Config
    pruner: Config | None
    seed: int
    objectives: tuple[Objective, ...]
    templates: tuple[Template, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        space = {
            key: Distribution(kind=_text(each["kind"]), arguments=tuple(each["arguments"]))
            for key, each in value["space"].items()
        }
        return cls(
            id=_text(value["id"]),
            space=space,
            sampler=dict(value["sampler"]),
            pruner=value["pruner"] and dict(value["pruner"]),
            seed=int(value["seed"]),
            objectives=tuple(Objective(**each) for each in value["objectives"]),
            templates=tuple(map(Template.from_json, value["templates"])),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One run of an adaptive sweep."""

    search: Search
    number: int


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.60} is not text")
    return value
