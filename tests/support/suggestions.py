"""The suggestions of an error that can be followed word by word: what to type in the place of what was typed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

_OVERRIDE = re.compile(r"(?:^|(?:^add|: |^use) )(\+?[a-z_][\w./]*=\S.*|~[\w.]+)$")
_REMOVED = re.compile(r"\bremove (?:the override )?(~?[\w.]+)$")
_MEANT = re.compile(r"did you mean '([^']+)'")
_EDITS = ("remove it", "in its place")
_PLACEHOLDERS = (
    "NAME",
    "...",
    "package.module",
    "HOST",
    "{key: value}",
    "a value with spaces",
    "conf/",
    "=N",
    "assets/*",
)


def suggestions(said: str) -> list[str]:
    """Return the alternatives of an error's `fix:` line, and what it says was meant."""
    fix = said.rpartition("\nfix: ")[2]
    alternatives = [] if fix.startswith(_EDITS) else re.split(r"(?:, |; | )or |; ", fix)
    return [*(each for each in alternatives if not any(word in each for word in _PLACEHOLDERS)), *_MEANT.findall(said)]


def followed(words: Sequence[str], said: str) -> Iterator[tuple[list[str], str]]:
    """Yield the command's words as each suggestion would have them, and the key or word that it names.

    A clause after a comma limits what is before it.
    """
    for each in suggestions(said):
        if override := _OVERRIDE.search(each.strip()):
            if ", " not in re.sub(r"[\[{'].*[\]}']", "", override[1]):
                key = _key(override[1])
                added = any(word.startswith("+") and _key(word) == key for word in words)
                yield [*(word for word in words if _key(word) != key), "+" * added + override[1]], key
        elif (removed := _REMOVED.search(each)) and any(_key(word) == _key(removed[1]) for word in words):
            yield [word for word in words if _key(word) != _key(removed[1])], _key(removed[1])
        elif each in _MEANT.findall(said) and (corrected := corrected_in(words, each)):
            yield corrected, each


def corrected_in(texts: Sequence[str], meant: str) -> list[str] | None:
    """Return texts in which the part most like a word is that word; None if there is no such part."""
    parts = [(part, place) for place, text in enumerate(texts) for part in re.findall(r"-*\w[\w-]*(?:/\w+)?", text)]
    like = [
        (SequenceMatcher(None, part, meant).ratio(), place, part)
        for part, place in parts
        if part != meant and f"{meant}:" not in texts[place]
    ]
    ratio, place, part = max(like, default=(0.0, 0, ""))
    if ratio < 0.6:
        return None
    before, _, after = texts[place].rpartition(part)
    return [*texts[:place], f"{before}{meant}{after}", *texts[place + 1 :]]


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]
