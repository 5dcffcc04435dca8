"""The runs that version 0.1.0 left, unpacked for the current code. See tests/support/make_contract_fixture.py."""

from __future__ import annotations

import json
import os
import pickletools
import struct
import subprocess
import sysconfig
import tarfile
import venv
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT
from states import adopt

ARCHIVE = Path(__file__).parents[1] / "assets" / "runs-0.1.0.tar.xz"
THERE = "/tmp/orch-fixture"
"""Where the runs were made. Their Python was env/bin/python in that folder, their project project/."""


class OldRuns:
    """The project and its runs in a test's own folder, and the commands run in it.

    Paths in texts and pickles are replaced by the new ones; all other files, including checkpoints, are byte for byte
    what the old code wrote. The Python that they name imports this checkout. Without `slurm`, no Slurm answers.
    `adopted`: the user has adopted them with `orch adopt`.
    """

    def __init__(self, folder: Path, *, slurm: bool = False, adopted: bool = True) -> None:
        self.folder, self.project, self.runs = folder, folder / "project", folder / "project" / "runs"
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(folder, filter="tar")
        for path in self.project.rglob("*"):
            if path.is_file() and not path.is_symlink():
                _move(path, str(folder))
        self.python = _environment(folder / "env")
        (folder / "tmp").mkdir()
        if adopted:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("XDG_STATE_HOME", str(folder / "state"))
                adopt(self.runs)
        own = {"XDG_CACHE_HOME": "cache", "XDG_STATE_HOME": "state", "TMPDIR": "tmp"}
        own = {key: str(folder / name) for key, name in own.items()}
        self.env = {**os.environ, **own, "OMP_NUM_THREADS": "1"}
        self.env.pop("PYTHONPATH", None)
        self.env.pop("ORCH_RUNS", None)
        if not slurm:
            self.env["PATH"] = f"{_mute_slurm(folder / 'mute')}{os.pathsep}{self.env['PATH']}"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `python WORDS` in the project."""
        argv = [str(self.python), *words]
        return subprocess.run(
            argv, cwd=self.project, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    def orch(self, *words: str, status: int = 0) -> str:
        """Return the output of `orch WORDS`, which must end with this status."""
        done = self.run("-m", "orchestrator", *words)
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def states(self, name: str) -> dict[str, str]:
        """Return the states of an experiment's runs by id, as `orch status` shows them."""
        return {run["run"]: run["state"] for run in json.loads(self.orch("status", name, "--json"))["runs"]}

    def attempt(self, name: str, run: str, number: int) -> Path:
        return self.runs / name / "runs" / run / f"a{number:03d}"

    def events(self, name: str, run: str, number: int) -> list[dict[str, Any]]:
        """Return the events of an attempt; none before its start."""
        path = self.attempt(name, run, number) / "events.jsonl"
        return lines(path) if path.exists() else []


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _environment(folder: Path) -> Path:
    """Create a virtual environment on top of that of the tests, and return its Python.

    It imports this checkout, even if the other environment has an editable install of another one.
    """
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "outer.pth").write_text(f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
    return folder / "bin" / "python"


def _mute_slurm(folder: Path) -> Path:
    """Create Slurm commands that fail at once, so that a Slurm of this machine has no influence."""
    folder.mkdir()
    for name in ("sacct", "sbatch", "scancel", "scontrol", "sinfo", "squeue"):
        (folder / name).write_text("#!/bin/sh\necho 'there is no Slurm' >&2\nexit 1\n")
        (folder / name).chmod(0o755)
    return folder


def _move(path: Path, here: str) -> None:
    content = path.read_bytes()
    if THERE.encode() not in content or path.suffix in {".ckpt", ".pt"}:
        return
    moved = _moved(content, here) if path.suffix == ".pkl" else content.replace(THERE.encode(), here.encode())
    path.write_bytes(moved)


def _moved(content: bytes, here: str) -> bytes:
    """Return a pickle whose strings name the new folder; its other instructions stay unchanged.

    Frames, which state the length of a part, are left out; they are optional.
    """
    found = list(pickletools.genops(content))
    ends = [begin for _, _, begin in found[1:]] + [len(content)]
    written = b""
    for (operation, value, begin), end in zip(found, ends, strict=True):
        if isinstance(value, str) and THERE in value:
            text = value.replace(THERE, here).encode()
            written += pickletools.code2op["X"].code.encode() + struct.pack("<I", len(text)) + text
        elif operation.name != "FRAME":
            written += content[begin:end]
    return written
