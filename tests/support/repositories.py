"""Repositories for tests, made by git and DVC themselves, isolated from the user's settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.data.sources import dvc_probe, dvc_remote

_MAIN = """
import json, sys
from dvc.cli import main
for command in json.loads(sys.argv[1]):
    if status := main(command):
        sys.exit(status)
"""


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def git(repo: Path, *arguments: object) -> str:
    argv = ["git", "-C", str(repo), *map(str, arguments)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def dvc(repo: Path, *arguments: str) -> None:
    dvc_all(repo, list(arguments))


def dvc_all(repo: Path, *commands: list[str]) -> None:
    """Run several DVC commands in one process, since DVC takes a second to start."""
    argv = [sys.executable, "-c", _MAIN, json.dumps(commands)]
    done = subprocess.run(argv, cwd=repo, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def commit(repo: Path, message: str) -> None:
    git(repo, "add", "-A")
    git(repo, "commit", "-q", "-m", message)


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture(scope="module")
def private_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Isolate the tests from the user's git and DVC settings."""
    home = tmp_path_factory.mktemp("home")
    settings = {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "DVC_TEST": "true",
        "DVC_GLOBAL_CONFIG_DIR": str(home / "global"),
        "DVC_SYSTEM_CONFIG_DIR": str(home / "system"),
        "DVC_SITE_CACHE_DIR": str(home / "site"),
        "DVC_NO_ANALYTICS": "1",
        **{f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield


def probe_here(request):
    """Answer as the program `dvc_probe` does, in this process: DVC is imported once for all tests."""
    return json.loads(json.dumps(dvc_probe.probe(**request)))


def ask_here(remotes, objects, folder, stop):
    """Answer as the program `dvc_remote` does, in this process."""
    request = json.loads(json.dumps({"remotes": remotes, "objects": objects, "folder": str(folder or "")}))
    for answer in dvc_remote.answers(**request):
        yield answer["index"], answer
