"""Whether what is started outlives the login session: logind may be set to kill all that a user leaves behind.

Where it is (`KillUserProcesses=yes` in logind.conf), a process survives only in a unit of the user's own service
manager, and that only if the user lingers.
"""

from __future__ import annotations

import getpass
import shutil
from collections.abc import Sequence
from pathlib import Path

from orchestrator.system.processes import ProgramError, run

_SCOPE = ("systemd-run", "--user", "--scope", "--quiet", "--collect", "--")
_LINGER = Path("/var/lib/systemd/linger")
_ANSWER_SECONDS = 5.0


def kills() -> bool:
    """Return whether logind kills a user's processes when the last session ends."""
    if not shutil.which("loginctl"):
        return False
    return _output("loginctl", "show", "--property=KillUserProcesses", "--value") == "yes"


def surviving(argv: Sequence[str]) -> list[str]:
    """Return what starts a program so that it outlives the session, as far as this machine lets it."""
    if kills() and _output(*_SCOPE, "echo", "works") == "works":
        return [*_SCOPE, *argv]
    return list(argv)


def note() -> str:
    """Return what a person should know of it; nothing where what is started survives."""
    if not kills():
        return ""
    problem = "logind kills your processes when you log out (KillUserProcesses=yes)"
    if _output(*_SCOPE, "echo", "works") != "works":
        return f"{problem}, and `systemd-run --user` does not work here: stay logged in, or runs are interrupted"
    if (_LINGER / getpass.getuser()).exists():
        return ""
    return f"{problem}: `loginctl enable-linger` lets your runs go on"


def _output(*argv: str) -> str:
    try:
        return run(argv, timeout_s=_ANSWER_SECONDS).decode(errors="replace").strip()
    except ProgramError:
        return ""
