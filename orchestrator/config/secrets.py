"""`${secret:NAME}` on the node: from the job's environment, or a file of the user's own; and kept out of what we write.

A file is `$XDG_CONFIG_HOME/orchestrator/secrets/NAME` (`~/.config/...`), for its owner alone.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from orchestrator.config.credentials import MASK, REFERENCE, referred
from orchestrator.errors import OrchError

_SHORTEST = 4  # characters: what is shorter stands in half of all texts, and is no secret


class Secrets:
    """The values of the secrets that a run's configuration refers to."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        texts = {value for value in values.values() if len(value) >= _SHORTEST}
        # In JSON a value may look different; the longest first, since one may hold another.
        self._hidden = sorted(texts | {json.dumps(text)[1:-1] for text in texts}, key=len, reverse=True)

    @classmethod
    def of(cls, config: object) -> Self:
        """Look up what a configuration refers to. Raises OrchError for what is not there, or others may read."""
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

    def conceal(self, text: str) -> str:
        """Return a text without the values."""
        for value in self._hidden:
            text = text.replace(value, MASK)
        return text

    def concealed(self, node: Any) -> object:
        """Return a tree without the values."""
        if isinstance(node, Mapping):
            return {key: self.concealed(value) for key, value in node.items()}
        if isinstance(node, list | tuple):
            return type(node)(map(self.concealed, node))
        return self.conceal(node) if isinstance(node, str) else node

    def __bool__(self) -> bool:
        return bool(self._hidden)


def _look_up(name: str) -> str:
    if (value := os.environ.get(name)) is not None:
        return value
    path = folder() / name
    try:
        status = path.stat()
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        told = error.strerror if isinstance(error, OSError) else "it is no text"
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
    """Return where a user keeps secrets, a file each."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "orchestrator" / "secrets"
