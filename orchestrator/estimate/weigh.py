"""How large the checkpoint of a model is that was never trained: asked in a subprocess, and kept.

The model is built without memory for its parameters (torch's meta device), which still imports torch and the
user's code: seconds. So it is only done when it is asked for; what was found out once is read by everybody. An
answer holds for the code, the Python environment and the model's section.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import ledger
from orchestrator.identity import canonical
from orchestrator.process import ProgramError, run
from orchestrator.spec import PROJECT, Config

_VERSION = 1
_TIMEOUT_S = 600.0
_PROBE = Path(__file__).with_name("weigh_probe.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """The size of one checkpoint of a model: its weights and its optimizers' state; None: see `problem`."""

    bytes: int | None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """Weighs models. `ask`: whether those that are not known yet are built; else only what is kept is told.

    `search_path` is where their code is found, `project` what `${project:}` stands for, `code` names all of it.
    """

    project: Path
    search_path: Sequence[str]
    code: str
    cache: Path
    ask: bool

    def weigh(self, sections: Sequence[Config]) -> list[Weight | None]:
        """Return the weight of each model's section; None where it is not known, and nobody is asked."""
        kept = self._read()
        if not (kept or self.ask):
            return [None] * len(sections)
        names = [canonical(section) for section in sections]
        missing = dict.fromkeys(name for name in names if name not in kept)
        fresh = self._ask(list(missing)) if missing and self.ask else {}
        if new := {name: weight.bytes for name, weight in fresh.items() if weight.bytes is not None}:
            ledger.make_private(self._file.parent)
            ledger.replace_text(self._file, json.dumps(kept | new))
        return [Weight(bytes=kept[name]) if name in kept else fresh.get(name) for name in names]

    @property
    def _file(self) -> Path:
        key = hashlib.sha256(json.dumps([_VERSION, sys.executable, self.code]).encode()).hexdigest()
        return self.cache / f"{key}.json"

    def _read(self) -> dict[str, int]:
        try:
            kept: dict[str, int] = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
        return kept

    def _ask(self, names: Sequence[str]) -> dict[str, Weight]:
        sections = [_placed(json.loads(name), str(self.project)) for name in names]
        question = {"search_path": list(self.search_path), "sections": sections}
        try:
            said = run([sys.executable, "-P", str(_PROBE)], stdin=json.dumps(question).encode(), timeout_s=_TIMEOUT_S,
                       env={"PYTHONDONTWRITEBYTECODE": "1"})  # fmt: skip
            answers = json.loads(said)
        except (ProgramError, ValueError) as error:
            told = str(error).strip().splitlines()[-1]
            answers = [{"problem": told}] * len(names)
        return {
            name: Weight(bytes=answer.get("bytes"), problem=answer.get("problem", ""))
            for name, answer in zip(names, answers, strict=True)
        }


def _placed(node: Any, project: str) -> Any:
    if isinstance(node, Mapping):
        return {key: _placed(value, project) for key, value in node.items()}
    if isinstance(node, list):
        return [_placed(value, project) for value in node]
    return node.replace(PROJECT, project) if isinstance(node, str) else node
