"""Packages that only some uses need: the extras of pyproject.toml, each named after its package."""

from __future__ import annotations

import shlex
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

from orchestrator.errors import RequestError


def require(extra: str, use: str) -> None:
    """Raise RequestError if the package of an extra is not installed; `use` names what needs it."""
    try:
        distribution(extra)
    except PackageNotFoundError:
        why = f"it is an extra, and {sys.prefix} has been installed without it"
        raise RequestError(f"{use} needs {extra}, which is not installed", why=why, fix=installing(extra)) from None


def installing(extra: str) -> str:
    """Return the command that adds an extra to this environment; one made by `uv venv` has no pip."""
    pip = [sys.executable, "-m", "pip", "install"] if find_spec("pip") else ["uv", "pip", "install", "-p", sys.prefix]
    return shlex.join([*pip, f"slurm-orchestrator[{extra}]"])
