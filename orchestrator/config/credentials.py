"""What looks like a credential, and is shown as `***`; and `${secret:NAME}`, which names one without saying it.

A key tells: `password`, `api_key`, `hf_token`. Numbers are none (`max_tokens: 512`), nor is what a vocabulary has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

MASK = "***"
REFERENCE = re.compile(r"\$\{secret:([A-Za-z_][A-Za-z0-9_]*)\}")
"""As it stands in a frozen configuration; the node replaces it."""

_NAMES = re.compile(
    r"(?:^|[_-])(?:pass(?:word|wd|phrase)?|pwd|secret|token|credentials?|(?:api|access|secret|private|auth)[_-]?key)$",
    re.IGNORECASE,
)
_VOCABULARY = re.compile(r"(?:^|_)(?:pad|eos|bos|unk|cls|sep|mask|start|end|image|special)_token$", re.IGNORECASE)


def reference(name: str) -> str:
    """Return what stands for a secret in a frozen configuration."""
    return f"${{secret:{name}}}"


def is_credential(key: str, value: object) -> bool:
    """Return whether a value under a key (dotted, or its last part) looks like a credential itself."""
    return isinstance(value, str) and bool(value) and _names(key) and REFERENCE.fullmatch(value) is None


@lru_cache(4096)
def _names(key: str) -> bool:
    last = key.rpartition(".")[2]
    return _NAMES.search(last) is not None and _VOCABULARY.search(last) is None


def masked(tree: object, at: str = "") -> Any:
    """Return a tree of mappings and lists in which nothing looks like a credential any more."""
    if isinstance(tree, Mapping):
        return {key: masked(value, str(key)) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [masked(value, at) for value in tree]
    return MASK if is_credential(at, tree) else tree


def masked_override(text: str) -> str:
    """Return an override of the command line as it may be shown."""
    key, equals, value = text.partition("=")
    return f"{key}={MASK}" if equals and is_credential(key.lstrip("+"), value.strip("'\"")) else text


def literal(tree: Mapping[str, object]) -> Iterator[str]:
    """Yield the dotted keys of what looks like a credential. Of 10,000 configurations: it is to be quick."""
    for key, value in tree.items():
        if type(value) is dict:
            for inner in literal(value):
                yield f"{key}.{inner}"
        elif type(value) is str:
            if is_credential(key, value):
                yield key
        elif isinstance(value, list | tuple):
            for item in value:
                yield from literal({key: item})


def referred(tree: object) -> Iterator[str]:
    """Yield the names of the secrets that a tree refers to."""
    if isinstance(tree, Mapping | list | tuple):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from referred(value)
    elif isinstance(tree, str):
        yield from REFERENCE.findall(tree)


def described(point: Mapping[str, object]) -> str:
    """Return a point as it is written on the command line, without what must not be shown."""
    return " ".join(f"{key}={value}" for key, value in masked(point).items()) or "(no sweep)"
