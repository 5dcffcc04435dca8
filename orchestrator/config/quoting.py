"""A key and a value -> the override that sets it, as Hydra's grammar reads it back. Pure text; Hydra is not needed."""

from __future__ import annotations

import re

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_OTHER_WORDS = frozenset({"true", "false", "null", "nan", "inf"})
_SPECIAL = re.compile(r"([\\()\[\]{}:=, \t])")
_BEFORE_QUOTE = re.compile(r"(\\*)'")


def as_override(key: str, value: object, *, prefix: str = "", plain: bool = False) -> str:
    """Return the override that sets `key` to `value`. `plain`: leave out quotes that a word does not need."""
    return f"{prefix}{key}={quoted(value, plain=plain)}"


def quoted(value: object, *, plain: bool = False) -> str:
    """Return a value as text that Hydra reads back as exactly that value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value if plain and _is_word(value) else _quoted_text(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(quoted(item, plain=plain) for item in value) + "]"
    if isinstance(value, dict):
        # The grammar has no quotes around keys; it refuses a key that it cannot read without.
        return "{" + ",".join(f"{_key(str(key))}:{quoted(item, plain=plain)}" for key, item in value.items()) + "}"
    return repr(value)


def _key(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)


def _quoted_text(text: str) -> str:
    """Return text in single quotes; backslashes are doubled before a quote, and only there."""
    inner = _BEFORE_QUOTE.sub(lambda found: found[1] * 2 + r"\'", text)
    trailing = len(inner) - len(inner.rstrip("\\"))
    return "'" + inner + "\\" * trailing + "'"


def _is_word(text: str) -> bool:
    return _PLAIN.fullmatch(text) is not None and text.lower() not in _OTHER_WORDS
