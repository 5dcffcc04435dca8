"""A tree of JSON values as YAML, for people. Writes only; importing yaml takes too long for a quick verb."""

from __future__ import annotations

import json
import re

_PLAIN = re.compile(
    r"[^\W\d][\w./+@%-]*(?: [\w./+@%(][\w./+@%(),-]*)*"  # words
    r"|/[\w./+@%-]*"  # a path
    r"|[\da-f]*[acdf][\da-f]*"  # an id or a digest, but not a number
    r"|\$\{[\w.:/-]+\}"  # a reference, as to a secret
)
"""Text that needs no quotes in YAML, unless it is a reserved word."""
_YAML_WORDS = frozenset({"true", "false", "yes", "no", "on", "off", "y", "n", "null"})


def yaml_lines(value: object) -> list[str]:
    """Return a tree of JSON values as lines."""
    if isinstance(value, dict) and value:
        return [line for key, entry in value.items() for line in _entry(f"{_scalar(key)}:", entry)]
    if isinstance(value, list) and value:
        return [line for entry in value for line in _item(*yaml_lines(entry))]
    return [_scalar(value)]


def _entry(key: str, value: object) -> list[str]:
    lines = yaml_lines(value)
    nested = bool(value) and isinstance(value, dict | list)
    return [key, *(f"  {line}" for line in lines)] if nested else [f"{key} {lines[0]}"]


def _item(first: str, *others: str) -> list[str]:
    return [f"- {first}", *(f"  {line}" for line in others)]


def _scalar(value: object) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _YAML_WORDS:
        return value
    if isinstance(value, float):
        return _number(value)
    text = json.dumps(value, ensure_ascii=False)
    return "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in text)


def _number(value: float) -> str:
    """Return a number that YAML 1.1 does not read as text: it requires a point in 1e-05, and before inf."""
    text = repr(value)
    if "n" in text:  # inf, nan
        return text.replace("inf", ".inf").replace("nan", ".nan")
    return text if "." in text else text.replace("e", ".0e")
