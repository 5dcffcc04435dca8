"""What looks like a credential, and is shown as `***`; and `${secret:NAME}`, which names one without saying it.

A key tells: `password`, `api_key`, `hf_token`. Numbers are none (`max_tokens: 512`), nor is what a vocabulary has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
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


def is_credential(key: str, value: Any) -> bool:
    """Return whether a value under a key (dotted, or its last part) looks like a credential itself."""
    last = key.rpartition(".")[2]
    named = _NAMES.search(last) is not None and _VOCABULARY.search(last) is None
    return named and isinstance(value, str) and bool(value) and REFERENCE.fullmatch(value) is None


def masked(tree: Any, at: str = "") -> Any:
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


def literal(tree: Any, at: str = "") -> Iterator[str]:
    """Yield the dotted keys of what looks like a credential."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from literal(value, f"{at}.{key}" if at else str(key))
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from literal(value, at)
    elif is_credential(at, tree):
        yield at


def referred(tree: Any) -> Iterator[str]:
    """Yield the names of the secrets that a tree refers to."""
    if isinstance(tree, Mapping | list | tuple):
        for value in tree.values() if isinstance(tree, Mapping) else tree:
            yield from referred(value)
    elif isinstance(tree, str):
        yield from REFERENCE.findall(tree)
