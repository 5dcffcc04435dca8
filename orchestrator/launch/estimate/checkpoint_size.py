"""How large the checkpoint of a model is that was never trained: asked in a subprocess, and kept.

The model is built without memory for its parameters (torch's meta device), which still imports torch and the
user's code: seconds. So it is only done when it is asked for; what was found out once is read by everybody. An
answer holds for the code, the Python environment and the model's section.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.identity import canonical
from orchestrator.spec import PROJECT, Config
from orchestrator.system.cache import Answers
from orchestrator.system.processes import ProgramError, ask

_VERSION = 1
_TIMEOUT_S = 600.0
_PROBE = Path(__file__).with_name("checkpoint_size_probe.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSize:
    """The size of one checkpoint of a model: its weights and its optimizers' state; None: see `problem`."""

    bytes: int | None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """Measures the checkpoints of models, or reads the sizes that were measured before.

    `measure`: whether models of unknown size are built; otherwise only sizes in the cache are used. `search_path` is
    where their code is found, `project` what `${project:}` stands for, `code` identifies all of it.
    """

    project: Path
    search_path: Sequence[str]
    code: str
    cache: Path
    measure: bool

    def checkpoint_sizes(self, sections: Sequence[Config]) -> list[CheckpointSize | None]:
        """Return the size of each model's section; None where it is not known, and nobody is asked."""
        kept: dict[str, int] = self._answers.read(*self._question) or {}
        if not (kept or self.measure):
            return [None] * len(sections)
        names = [canonical(section) for section in sections]
        missing = dict.fromkeys(name for name in names if name not in kept)
        fresh = self._ask(list(missing)) if missing and self.measure else {}
        if new := {name: size.bytes for name, size in fresh.items() if size.bytes is not None}:
            self._answers.write(kept | new, *self._question)
        return [CheckpointSize(bytes=kept[name]) if name in kept else fresh.get(name) for name in names]

    @property
    def _answers(self) -> Answers:
        return Answers(self.cache)

    @property
    def _question(self) -> tuple[str | int, ...]:
        return (_VERSION, sys.executable, self.code)

    def _ask(self, names: Sequence[str]) -> dict[str, CheckpointSize]:
        sections = [_placed(json.loads(name), str(self.project)) for name in names]
        question = {"search_path": list(self.search_path), "sections": sections}
        try:
            answers = ask([str(_PROBE)], question, env={"PYTHONDONTWRITEBYTECODE": "1"}, timeout_s=_TIMEOUT_S)
        except ProgramError as error:
            answers = [{"problem": error.reason}] * len(names)
        return {
            name: CheckpointSize(bytes=answer.get("bytes"), problem=answer.get("problem", ""))
            for name, answer in zip(names, answers, strict=True)
        }


def _placed(node: object, project: str) -> object:
    if isinstance(node, Mapping):
        return {key: _placed(value, project) for key, value in node.items()}
    if isinstance(node, list):
        return [_placed(value, project) for value in node]
    return node.replace(PROJECT, project) if isinstance(node, str) else node
