"""The new lines of a log, as they are written."""

from __future__ import annotations

import codecs
import sys
from pathlib import Path

from orchestrator.cli.text import print_log
from orchestrator.system.files import listed, open_file


class Tail:
    """Copies new content of a file to standard output; with a label, whole lines only, each after the label."""

    def __init__(self, path: Path, label: str = "") -> None:
        self._path, self._label, self._offset = path, label, 0
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode

    def copy(self, *, ended: bool = False) -> bool:
        if listed(self._path):
            with open_file(self._path) as file:
                file.seek(self._offset)
                new = file.read()
            if self._label and not ended:
                new = new[: new.rfind(b"\n") + 1]
            self._offset += len(new)
            lines = self._decode(new, ended).splitlines(keepends=True)
            print_log("".join(f"{self._label}{line}" for line in lines))
            sys.stdout.flush()
        return False
