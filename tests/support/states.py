"""Folders for a user's own state. All of a session know of each other's launches, as one user does."""

from __future__ import annotations

from pathlib import Path

import pytest


def own_state(factory: pytest.TempPathFactory, folder: Path | None = None) -> str:
    """Make a folder for $XDG_STATE_HOME, a new one by default, and return it."""
    memory, folder = factory.getbasetemp() / "launches", folder or factory.mktemp("state")
    memory.mkdir(mode=0o700, exist_ok=True)
    state = folder / "orchestrator"
    state.mkdir(parents=True, mode=0o700)
    (state / "launches").symlink_to(memory)
    return str(folder)
