"""Parsers of Slurm's expressions: the features in a constraint, the names in a node list. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator


def features(text: str) -> list[str]:
    """Return the features that a constraint names, as in `a100&(80gb|40gb)`, `[rack1|rack2]`, `!old`, `gpu*2`."""
    return [word for word in re.split(r"[\s&|,!()\[\]]+", re.sub(r"\*[0-9]+", "", text)) if word]


def nodes(text: str) -> Iterator[str]:
    """Yield the nodes that a list such as `n1,ba[0-1,04]` names; none if it is the path of a file of names."""
    if "/" not in text:
        for part in re.findall(r"(?:[^,\[]|\[[^\]]*\]?)+", text):
            yield from _expanded(part)


def _expanded(text: str) -> Iterator[str]:
    before, bracket, rest = text.partition("[")
    inner, _, after = rest.partition("]")
    if not bracket:
        yield before
        return
    for item in inner.split(","):
        for number in _numbers(item):
            for end in _expanded(after):
                yield f"{before}{number}{end}"


def _numbers(item: str) -> Iterator[str]:
    first, dash, last = item.partition("-")
    if dash and re.fullmatch(r"[0-9]+-[0-9]+", item, re.ASCII):
        for number in range(int(first), int(last) + 1):
            yield f"{number:0{len(first)}}"
    else:
        yield item
