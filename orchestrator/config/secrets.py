"""`${secret:NAME}` on the node: read from the job's environment or a user's file; kept out of what `orch` writes.

The file is `$XDG_CONFIG_HOME/orchestrator/secrets/NAME` (`~/.config/...`), readable by its owner alone.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, quote_plus

from orchestrator.config.credentials import MASK, REFERENCE, Redact, referred
from orchestrator.errors import OrchError

_log = logging.getLogger(__name__)

_SHORTEST = 4  # characters: a shorter value occurs in half of all texts, and is not redacted


class Secrets:
    """The values of the secrets that a run's configuration refers to."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        found = {form for value in values.values() for form in forms(value)}
        self._hidden = sorted(found, key=len, reverse=True)  # one may contain another

    @classmethod
    def of(cls, config: object) -> Self:
        """Look up a configuration's secrets. Raises OrchError if one is missing or others can read it."""
        return cls({name: _look_up(name) for name in dict.fromkeys(referred(config))})

    def placed(self, node: object) -> Any:
        """Return a configuration with the values in place of their references."""
        if isinstance(node, dict):
            return {key: self.placed(value) for key, value in node.items()}
        if isinstance(node, list):
            return [self.placed(value) for value in node]
        if isinstance(node, str):
            return REFERENCE.sub(lambda found: self._values[found[1]], node)
        return node

    def redact(self, node: Any) -> Any:
        """Return a copy of a text, or a tree of texts, without the values; containers keep their types where possible.

        Numbers stay, and so do keys that contain no secret, because readers of a record look them up.
        """
        if isinstance(node, str):
            return self._redact_text(node)
        if isinstance(node, bytes):
            return self._redact_text(node.decode(errors="surrogateescape")).encode(errors="surrogateescape")
        if isinstance(node, Mapping):
            return _like(node, {self.redact(key): self.redact(value) for key, value in node.items()})
        if isinstance(node, list | tuple | set | frozenset):
            parts = [self.redact(part) for part in node]
            return type(node)(*parts) if hasattr(node, "_fields") else _like(node, parts)
        return node

    def found_in(self, content: bytes) -> bool:
        """Return whether a file's content contains a secret value, in any of its forms."""
        return any(form.encode(errors="surrogateescape") in content for form in self._hidden)

    def _redact_text(self, text: str) -> str:
        for value in self._hidden:
            text = text.replace(value, MASK)
        return text

    def __bool__(self) -> bool:
        return bool(self._hidden)


def redact_argument(redact: Redact, name: str, value: object) -> object:
    """Return a hyperparameter without secret values; an object that still contains one becomes the mask."""
    kept = redact(value)
    try:
        held = pickle.dumps(kept)
    except Exception:  # noqa: BLE001 - the user's object; torch cannot save it either, and reports that
        return kept
    if redact(held) == held:
        return kept
    _log.warning("hyperparameter %s holds a secret in a %s: it is saved as %s", name, type(value).__name__, MASK)
    return MASK


def forms(value: str) -> frozenset[str]:
    """Return the forms of a value when quoted, escaped or encoded, and each of its lines.

    Leaves out forms that are too short, which occur in half of all texts.
    """
    plain = {part for part in (value, *value.splitlines()) if len(part.strip()) >= _SHORTEST}
    quoted = {form for part in plain for form in _quoted(part)}
    found = {*plain, *quoted, *(json.dumps(form)[1:-1] for form in quoted)}
    return frozenset(form for form in found if len(form.strip()) >= _SHORTEST)


def _quoted(part: str) -> Iterator[str]:
    import html  # imported here: reading records does not need it

    raw = part.encode(errors="surrogateescape")
    yield from (repr(part)[1:-1], ascii(part)[1:-1], repr(raw)[2:-1], part.replace("\\", "\\\\").replace("'", "\\'"))
    yield from (json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1], html.escape(part))
    yield from (quote(raw, safe=""), quote(raw), quote_plus(raw))
    yield from (base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode())


def _like(node: Any, parts: Collection[Any]) -> Any:
    """Return parts in a container of a node's type, or in a plain one if that type cannot be built from them."""
    try:
        return type(node)(parts)
    except Exception:  # noqa: BLE001 - a container of any class
        return parts


def _look_up(name: str) -> str:
    if (value := os.environ.get(name)) is not None:
        return value
    path = folder() / name
    try:
        status = path.stat()
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) else "it is not text"
        raise OrchError(
            f"there is no secret {name} here",
            why=f"the job's environment has no {name}, and {path}: {told}",
            fix=f"on a machine that shares your home: install -m 600 /dev/stdin {path}",
        ) from error
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise OrchError(
            f"secret {name} is not used", why=f"others may read {path}, or it is not yours", fix=f"chmod 600 {path}"
        )
    return text.rstrip("\r\n")


def folder() -> Path:
    """Return the folder where a user keeps secrets, one file each."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "orchestrator" / "secrets"
