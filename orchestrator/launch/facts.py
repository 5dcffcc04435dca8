"""The facts of a launch: what its code, environment and data versions are, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import orchestrator
from orchestrator import snapshot
from orchestrator.data import Manifest
from orchestrator.project import Project
from orchestrator.snapshot import Pending, environment
from orchestrator.snapshot.environment import Environment
from orchestrator.spec import SnapshotOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found out before launching. `code`: the project's tree, then those of editable installs."""

    code: tuple[Pending, ...]
    environment: Environment
    manifests: Mapping[str, Manifest]

    @property
    def code_id(self) -> str:
        return "+".join(pending.snapshot.tree for pending in self.code)


def gather(project: Project, options: SnapshotOptions, manifests: Mapping[str, Manifest], stack: ExitStack) -> Facts:
    """Return the code and the environment as they are now, with the data versions. `stack` holds the code open."""
    roots = [project.folder, *environment.editable_roots(), *_own_checkout()]
    roots = [root for i, root in enumerate(roots) if not any(_within(root, other) for other in roots[:i])]
    elsewhere = replace(options, include=())  # globs of the project's own
    data = [Path(str(m.origin["folder"])) for m in manifests.values() if m.origin.get("folder")]  # pinned already
    code = tuple(
        stack.enter_context(snapshot.take(root, options if i == 0 else elsewhere, exclude=[project.runs.path, *data]))
        for i, root in enumerate(roots)
    )
    return Facts(code=code, environment=environment.current(), manifests=manifests)


def _own_checkout() -> list[Path]:
    """Return the checkout that this package runs from, if it is not an installed one."""
    return [Path(folder) for folder in orchestrator.__path__[1:]]


def _within(inner: Path, outer: Path) -> bool:
    return bool(inner == outer or outer in inner.parents)
