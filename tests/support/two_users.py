"""Two ordinary users of one machine, for tests that run as root: their commands, and the files that they leave."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import ROOT

ADA, EVE = 64001, 64002
"""The users' ids, which nobody has on this machine."""
_PATIENCE_SECONDS = 120.0
_READS_ALL = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
"""Both can read the checkout wherever it is; a user who can read everything of the other is the harder case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An ordinary user with a home folder, whose commands are found there first."""

    uid: int
    home: Path

    @property
    def env(self) -> dict[str, str]:
        return {
            **{key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "ORCH_"))},
            "HOME": str(self.home),
            "USER": self.home.name,
            "LOGNAME": self.home.name,
            "PATH": f"{self.home / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(self, *argv: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a program as this user; the test fails if it does not end."""
        return subprocess.run(
            ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", *_READS_ALL, *argv],
            cwd=cwd or self.home,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )

    def python(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        done = self.run(sys.executable, *words, **env)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def orch(self, verb: str, *words: str, runs: Path, **env: str) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "orchestrator", verb, "--runs", str(runs), *words, **env)

    def program(self, name: str, *, mark: str) -> None:
        """Put a command first on this user's path, which leaves a mark in their home."""
        path = self.home / "bin" / name
        path.write_text(f"#!/bin/sh\ntouch {shlex.quote(str(self.home / mark))}\n")
        path.chmod(0o755)

    def owns(self, *paths: Path) -> None:
        for path in paths:
            os.chown(path, self.uid, self.uid, follow_symlinks=False)


@contextmanager
def two_users() -> Iterator[list[User]]:
    """Yield Ada and Eve, with homes that both can reach. Only root can run as other users."""
    if os.getuid() != 0:
        pytest.skip("only root can be two other users")
    folder = Path(tempfile.mkdtemp(prefix="two users "))
    folder.chmod(0o755)
    try:
        users = [User(uid=ADA, home=folder / "ada"), User(uid=EVE, home=folder / "eve")]
        for user in users:
            (user.home / "bin").mkdir(parents=True)
            user.owns(user.home, user.home / "bin")
        yield users
    finally:
        shutil.rmtree(folder)


def tree(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return everything in a folder: modes, modification times and contents."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_mtime_ns, content)
    return found
