"""Rules for the keys of a section: each is a line of data, and one message says what is wrong and how to fix it.

No section is defined here: `schema`, the Slurm package and `data` define their own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import ConfigError, closest, nearest
from orchestrator.system.units import hours_of


def _as_it_is(value: object) -> object:
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """The rule for the value of a key.

    `rule` is its wording in an error; the suggested fix is `KEY=example`, or `fix`. `optional`: null means the default.
    `choices` are words; an error names the nearest one. `read` converts the text as written to the value.
    """

    holds: Callable[[Any], bool]
    rule: str
    example: str = ""
    fix: str = ""
    optional: bool = True
    choices: tuple[str, ...] = ()
    read: Callable[[Any], Any] = _as_it_is

    def check(self, key: str, value: object) -> Any:
        """Return the checked value of a key. Raises ConfigError for a value that is not allowed."""
        if value is None and self.optional:
            return None
        if self.holds(value):
            return self.read(value)
        word = value if isinstance(value, str) else ""
        hint, example = nearest(word, self.choices), closest(word, self.choices) or self.example
        fix = self.fix or (f"{key}={example}" if example else f"correct {key}")
        raise ConfigError(f"{key} is {value!r}{hint}", why=self.rule, fix=fix)


ANYTHING = Field(holds=lambda _: True, rule="")
"""A key that is checked elsewhere."""


def check(section: str, given: Mapping[str, object], fields: Mapping[str, Field], *, fix: str = "") -> dict[str, Any]:
    """Return a section's values, without those that are null. Raises ConfigError for an unknown key or a wrong value.

    `fix` says what to do about an unknown key, besides renaming it; `{key}` in it is replaced by the key.
    """
    check_known(section, given, fields, fix=fix)
    values = {key: fields[key].check(f"{section}.{key}", value) for key, value in given.items()}
    return {key: value for key, value in values.items() if value is not None}


def check_known(section: str, given: Mapping[str, object], known: Collection[str], *, fix: str = "") -> None:
    """Refuse keys that a section does not have; `fix` is as in `check`."""
    for key in given:
        if key not in known:
            full = f"{section}.{key}" if section else str(key)
            meant = closest(str(key), known)
            ways = [f"rename it to {meant}" if meant else "" if fix else "use one of them"]
            raise ConfigError(
                f"{full} is unknown{nearest(str(key), known)}",
                why=f"known are {', '.join(known)}",
                fix=", or ".join(filter(None, [*ways, fix.format(key=key) or f"remove {full}"])),
            )


def check_mapping(key: str, value: object, *, fix: str = "") -> Mapping[str, object]:
    """Return a section. Raises ConfigError for a value that is not a mapping."""
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{key} is {value!r}", why="it is a mapping of keys to values", fix=fix or f"write {key}: {{key: value}}"
        )
    return value


def whole(least: int, *, most: float = float("inf"), optional: bool = False) -> Field:
    """Return the rule for a whole number from `least` to `most`."""
    return Field(
        holds=lambda value: type(value) is int and least <= value <= most,
        rule=f"it is a whole number{f', at least {least}' if most == float('inf') else f' from {least} to {most}'}",
        example=str(max(least, 0)),
        optional=optional,
    )


def positive() -> Field:
    """Return the rule for a number above 0; null is None."""
    return Field(
        holds=lambda value: _is_number(value) and 0 < value < 1e12,
        rule="it is a positive number below 1e12",
        example="4",
        read=float,
    )


def hours() -> Field:
    """Return the rule for a time in hours: a number, or text in Slurm's format. The value is in hours; null is None.

    YAML reads a time such as 1:00:00 as a number of seconds; `files` keeps the text as written. Where it does not, a
    number so large that YAML must have made it is refused. So is MIN:SEC, which people read as hours and minutes.
    """
    return Field(
        holds=lambda value: 0 < (_hours(value) or 0) < _YAMLS_SECONDS,
        rule=f"it is a number of hours below {_YAMLS_SECONDS}, or a time such as 24:00:00 or 1-12 (days-hours);"
        " 1:30 may mean two times: write 1:30:00, or 0:01:30",
        example="24",
        read=lambda value: float(_hours(value) or 0),
    )


_GPU_TYPE = re.compile(r"[\w.-]+")
_YAMLS_SECONDS = 3600  # of 1:00:00, the least that YAML makes of H:MIN:SEC; as hours it would be 150 days


def _hours(value: object) -> float | None:
    if isinstance(value, str):
        return hours_of(value) if value.count(":") > 1 or "-" in value else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def gpu_type() -> Field:
    """Return the rule for a type of GPU, as Slurm names it, such as 3090; null means any."""
    return Field(
        holds=lambda value: type(value) is int or (isinstance(value, str) and _GPU_TYPE.fullmatch(value) is not None),
        rule="it is a type of GPU, as `sinfo -o %G` shows it",
        example="a100",
        read=str,
    )


def not_negative() -> Field:
    """Return the rule for a number of at least 0, below 10**12."""
    return Field(holds=lambda value: _is_number(value) and 0 <= value < 1e12, rule="it is a number, at least 0")


def at_least(least: float) -> Field:
    """Return the rule for a number from `least` on, below 10**12."""
    return Field(
        holds=lambda value: _is_number(value) and least <= value < 1e12,
        rule=f"it is a number, at least {least:g}",
        example=f"{least:g}",
        read=float,
    )


def truth(example: str = "", *, optional: bool = True) -> Field:
    """Return the rule for true and false."""
    return Field(
        holds=lambda value: isinstance(value, bool), rule="it is true or false", example=example, optional=optional
    )


def choice(*choices: str, optional: bool = False) -> Field:
    """Return the rule for one of `choices`; the first is the example."""
    return Field(
        holds=lambda value: isinstance(value, str) and value in choices,
        rule=f"it is one of {', '.join(choices)}",
        example=choices[0],
        choices=choices,
        optional=optional,
    )


def text(rule: str, *, example: str = "", fix: str = "", holds: Callable[[str], object] = bool) -> Field:
    """Return the rule for a text that passes `holds`, or, without it, that is not empty."""
    return Field(holds=lambda value: isinstance(value, str) and bool(holds(value)), rule=rule, example=example, fix=fix)


def texts(rule: str, *, example: str, holds: Callable[[str], object] = bool) -> Field:
    """Return the rule for a list of texts that each pass `holds`; null is the empty list."""
    return Field(
        holds=lambda value: not value or _are_texts(value, holds),
        rule=rule,
        example=example,
        read=lambda v: tuple(v or ()),
    )


def _are_texts(value: object, holds: Callable[[str], object]) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) and holds(each) for each in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
