"""State folders of users. All those of a session share their launches, as if they belonged to one user."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.records.launches import remember


def adopt(runs: Path) -> None:
    """Adopt runs that were copied here, as `orch adopt` does."""
    for header in runs.glob("*/launches/*/launch.json"):
        remember(json.loads(header.read_bytes())["token"], header.parent)


def own_state(factory: pytest.TempPathFactory, folder: Path | None = None) -> str:
    """Create a folder for $XDG_STATE_HOME, a new one by default, and return it."""
    memory, folder = factory.getbasetemp() / "launches", folder or factory.mktemp("state")
    memory.mkdir(mode=0o700, exist_ok=True)
    state = folder / "orchestrator"
    state.mkdir(parents=True, mode=0o700)
    (state / "launches").symlink_to(memory)
    return str(folder)
