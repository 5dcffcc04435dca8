"""Answers worth keeping: JSON under the user's cache folder, by question.

Any of it may be deleted or damaged at any time: whatever cannot be read is simply not known. Failing
to write is not an error either.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import StateError
from orchestrator.system.files import NOT_JSON, PRIVATE, make_private, replace_bytes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to one kind of question, one file each. A question is made of what JSON can hold, without tuples."""

    folder: Path

    def read(self, *question: object, seconds: float | None = None) -> Any | None:
        """Return the kept answer; None where there is none, or none of the last `seconds`."""
        path = self._path(question)
        try:
            if seconds is not None and not 0 <= time.time() - path.stat().st_mtime < seconds:
                return None
            kept = json.loads(path.read_bytes())
            return kept["answer"] if kept["question"] == list(question) else None
        except (OSError, KeyError, TypeError, *NOT_JSON):
            return None

    def write(self, answer: object, *question: object) -> None:
        content = json.dumps({"question": question, "answer": answer}).encode()
        try:
            make_private(self.folder)
            replace_bytes(self._path(question), content, mode=PRIVATE)
        except (OSError, StateError) as error:
            _warn(self.folder, str(error))

    def _path(self, question: tuple[object, ...]) -> Path:
        name = hashlib.sha256(json.dumps(question).encode()).hexdigest()
        return self.folder / f"{name}.json"


@functools.cache
def _warn(folder: Path, why: str) -> None:
    """Warn of a folder that cannot be written, once: there may be a question for each of many files."""
    log.warning("cannot keep an answer under %s: %s", folder, why)
