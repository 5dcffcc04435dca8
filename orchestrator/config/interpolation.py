"""Which keys and resolvers a text with `${...}` reads, without resolving it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from antlr4 import ParserRuleContext
from omegaconf.grammar.gen.OmegaConfGrammarParser import OmegaConfGrammarParser
from omegaconf.grammar_parser import parse

Path = tuple[str, ...]

Pieces = tuple[str | Path, ...]
"""A text cut into literal text and the keys that it reads."""

_PLAIN_KEY = re.compile(r"\$\{(\.*[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)\}")
_READ_ARGUMENTS_ONLY = frozenset({"view", "project", "now", "hydra", "oc.env", "oc.decode", "oc.create"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """What one leaf reads. `dynamic`: a key is itself computed, or a resolver reads others: it may read anything."""

    keys: frozenset[Path]
    resolvers: frozenset[str]
    dynamic: bool


def reads(text: str, at: Path) -> Reads:
    """Return what the leaf at path `at` reads. Relative keys (`${.x}`) are made absolute."""
    keys: set[Path] = set()
    resolvers: set[str] = set()
    dynamic = False
    for node in _walk(parse(text)):
        if isinstance(node, OmegaConfGrammarParser.InterpolationNodeContext):
            body = node.getText()[2:-1].strip()
            dynamic |= "${" in body
            keys.add(_absolute(body, at))
        elif isinstance(node, OmegaConfGrammarParser.InterpolationResolverContext):
            resolvers.add(node.getChild(1).getText())
            dynamic |= not resolvers <= _READ_ARGUMENTS_ONLY
    return Reads(keys=frozenset(keys), resolvers=frozenset(resolvers), dynamic=dynamic)


def pieces(text: str, at: Path) -> Pieces | None:
    """Return the pieces of the leaf at path `at`; None where it contains more than plain keys and plain text."""
    literals, keys = (found := _PLAIN_KEY.split(text))[::2], found[1::2]
    if any("$" in literal or "\\" in literal for literal in literals):
        return None
    cut: list[str | Path] = [literals[0]]
    for key, literal in zip(keys, literals[1:], strict=True):
        cut += [_absolute(key, at), literal]
    return tuple(piece for piece in cut if piece)


def leaves(tree: object, at: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield (path, value) of every leaf of nested dicts and lists; list items have their index as key."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, (*at, str(key)))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from leaves(value, (*at, str(index)))
    else:
        yield at, tree


def overlap(a: Path, b: Path) -> bool:
    """Return whether one path is the other, or lies below it."""
    return a[: len(b)] == b[: len(a)]


def _walk(node: ParserRuleContext) -> Iterator[ParserRuleContext]:
    yield node
    for child in getattr(node, "children", None) or ():
        yield from _walk(child)


def _absolute(body: str, at: Path) -> Path:
    dots = len(body) - len(body.lstrip("."))
    parts = tuple(part for part in body[dots:].replace("[", ".").replace("]", "").split(".") if part)
    return parts if dots == 0 else (*at[: len(at) - dots], *parts)
