"""Answers worth keeping: JSON under the user's cache folder, by question.

Any of it may be deleted or damaged at any time: whatever cannot be read is simply not known. Failing
to write is no error either.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.data.publish import publish

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to one kind of question, one file each."""

    folder: Path

    def read(self, *question: str) -> Any | None:
        """Return the kept answer, or None."""
        try:
            kept = json.loads(self._path(question).read_bytes())
            return kept["answer"] if kept["question"] == list(question) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, answer: Any, *question: str) -> None:
        content = json.dumps({"question": question, "answer": answer}).encode()
        try:
            publish(self._path(question), content)
        except OSError as error:
            log.warning("cannot keep an answer under %s: %s", self.folder, error)

    def _path(self, question: tuple[str, ...]) -> Path:
        name = hashlib.sha256(json.dumps(question).encode()).hexdigest()
        return self.folder / f"{name}.json"
