"""The log of an attempt: the format of its lines, and the file that all output goes to."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from orchestrator.config.credentials import Redact
from orchestrator.system.files import again


def to_stderr() -> None:
    """Log to standard error. Call it before Lightning is imported, which otherwise configures logging itself."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)


def redact(texts: Redact) -> None:
    """Redact secrets in all log lines from now on, including their tracebacks."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Redacting(handler.formatter or logging.Formatter(), texts))


class _Redacting(logging.Formatter):
    def __init__(self, inner: logging.Formatter, texts: Redact) -> None:
        super().__init__()
        self._inner, self._texts = inner, texts

    def format(self, record: logging.LogRecord) -> str:
        return str(self._texts(self._inner.format(record)))


def to_file(path: Path) -> None:
    """Redirect all output of this process and its children to a file, and change to the file's folder."""
    descriptor = again(lambda: os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    os.chdir(path.parent)
    to_stderr()
