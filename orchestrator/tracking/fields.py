"""Names and values as MLflow accepts them: escaped reversibly, never cut silently. Pure text.

MLflow requires names of letters, digits and `_ - . / : space` that form a normalised relative path of at most 250
characters. Any other character becomes `:x<hex>:` (`acc@5` is `acc:x40:5`), an empty name `:x:`; `decode` is the
inverse. A name that is too long is cut and ends in `:cut:<digest>`; the run's tag `orch.name.<digest>` has it in
full. A value that is too long is cut, with a note that names the artifact with the full value.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

NAME_CHARACTERS = 250
PARAM_CHARACTERS = 6_000
TAG_CHARACTERS = 8_000

_ODD = re.compile(
    r"[^\w/.\- :]"  # characters that MLflow refuses
    r"|:(?=x)"  # the escape itself
    r"|^/|/\Z|/(?=/)"  # a path that would normalise to another one: empty parts,
    r"|(?:^|(?<=/))\.(?=\.?(?:/|\Z))|^\.(?=\.)"  # the parts `.` and `..`, and two leading dots
)
_ESCAPED = re.compile(r":x([0-9a-f]*):")


@lru_cache(maxsize=16_384)
def encode(name: str) -> str:
    """Return the name under which MLflow stores a metric, param or tag."""
    stored = _ODD.sub(lambda match: f":x{ord(match[0]):x}:", name) or ":x:"
    return stored if len(stored) <= NAME_CHARACTERS else f"{stored[:220]}:cut:{digest(name)}"


def decode(stored: str) -> str:
    """Return the name that `encode` was given, unless it was cut."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)) if match[1] else "", stored)


def cut_name(name: str) -> dict[str, str]:
    """Return the tag with the full name if `encode` has to cut it, else nothing."""
    stored = encode(name)
    return {f"orch.name.{digest(name)}": name} if len(stored) > 220 and ":cut:" in stored[220:] else {}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def text(value: object) -> str:
    """Return a value as text that every database can store: no NUL, no lone surrogates."""
    return str(value).replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def shorten(value: str, limit: int, artifact: str) -> str:
    """Return the value if it fits, else its beginning and a note that says where the full value is."""
    if len(value) <= limit:
        return value
    note = f" ... [cut: {len(value)} characters, sha256 {digest(value)}; whole in artifact {artifact}]"
    return value[: limit - len(note)] + note


def flatten(tree: Mapping[str, object]) -> dict[str, str]:
    """Return a nested config as dotted names and text. Lists stay text unless they contain mappings."""
    return {name: text(value) for name, value in _leaves(tree, "")} if tree else {}


def _leaves(node: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(node, Mapping) and node:
        items = [(str(key), value) for key, value in node.items()]
    elif isinstance(node, list | tuple) and any(isinstance(item, Mapping) for item in node):
        items = [(str(index), item) for index, item in enumerate(node)]
    else:
        yield path, node
        return
    for key, value in items:
        yield from _leaves(value, f"{path}.{key}" if path else key)
