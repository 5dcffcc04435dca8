"""The campaign of damaged records: bytes and types of a runs folder, one at a time, and every verb that looks.

No traceback, no hang, and no run that is shown as done unless it was. The runs are those that version 0.1.0 left (done,
failed, interrupted, queued, packed, a search), of which the code of today has written no file.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from campaigns import SEED, amount
from old_runs import OldRuns

from orchestrator import dry_run
from orchestrator.cli import main
from orchestrator.errors import OrchError
from orchestrator.prepare import Prepared, prepare
from orchestrator.project import find_project

OTHERS: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2,
    1e308,
    float("nan"),
    10**400,
    "",
    "x",
    "../../x",
    "\x1b[31m",
    "\ud800",
    [],
    [None],
    ["x"],
    [[]],
    {},
    {"a": 1},
    {"v": 99},
    "2",
    1.5,
    [1, 2],
    "done",
    {"kind": 3},
)
INSERTED = (b"[" * 5000, b"\xff\xfe", b"\n", b"NaN", b"9" * 5000, b'"', b"\\ud800")
SECONDS = 60
SMALL = 200_000


class Hang(BaseException):
    """A verb took too long; nothing may catch it as an error."""


def look(argv: Sequence[str]) -> tuple[int, str]:
    """Return the exit status of a verb, and its output."""
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        try:
            status = main(list(argv))
        except SystemExit as error:
            status = int(error.code or 0)
    return status, output.getvalue()


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def with_other_type(content: bytes, chance: random.Random) -> bytes:
    """Give a value of a JSON file, or of one of its lines, another type; or remove it, or add a key."""
    lines = content.splitlines() or [b"{}"]
    whole = _json(content)
    at = chance.randrange(len(lines))
    value = whole if whole is not None else _json(lines[at])
    changed = json.dumps(_changed(value, chance)).encode()
    return changed if whole is not None else b"\n".join([*lines[:at], changed, *lines[at + 1 :], b""])


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None


def _changed(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict | list) and value and chance.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = chance.choice(list(keys))
        if isinstance(value, dict) and (chosen := chance.random()) < 0.2:
            extra = {**value, "an extra key": chance.choice(OTHERS)}
            return extra if chosen < 0.1 else {name: each for name, each in value.items() if name != key}
        value[key] = _changed(value[key], chance)
        return value
    return chance.choice(OTHERS)


def with_other_bytes(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content) + 1)
    until = at + chance.randint(1, 40)
    return chance.choice(
        [
            content[:at],
            content[:at] + bytes(until - at) + content[until:],
            content[:at] + chance.randbytes(1) + content[at + 1 :],
            content[:at] + content[until:],
            content[:at] + content[at:until] * 2 + content[until:],
            content[:at] + chance.choice(INSERTED) + content[at:],
        ]
    )


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> OldRuns:
    return OldRuns(tmp_path_factory.mktemp("old"))


@pytest.fixture
def alone(old: OldRuns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OldRuns:
    """Let what a look would start (an uploader, Slurm's commands) not start: it is not what is tested."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no program is started here")

    monkeypatch.chdir(old.project)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", old.env["XDG_STATE_HOME"])  # in which the runs are adopted
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    monkeypatch.setattr(subprocess.Popen, "__del__", lambda _: None)
    return old


@pytest.fixture
def planned(old: OldRuns) -> Iterator[Prepared]:
    """What `orch plan` has prepared before it reads the records: that is the same each time, and takes seconds."""
    with prepare(find_project(old.project), ["experiment=tiny"]) as prepared:
        yield prepared


def states(experiment: str) -> dict[str, str]:
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(io.StringIO()):
        main(["status", experiment, "--json", "--all"])
    found = json.loads(output.getvalue() or "{}")
    return {run["run"]: run["state"] for run in found.get("runs", ())}


def verbs(experiment: str, runs: Sequence[str]) -> Iterator[list[str]]:
    yield ["status"]
    yield ["status", experiment, "--all"]
    yield ["compare", experiment]
    yield ["compare", experiment, "--json"]
    yield ["show", experiment, "--json"] if not runs else ["show", runs[0]]
    if runs:
        yield ["show", runs[-1], "--json"]
        yield ["logs", runs[0]]
        yield ["diff", runs[0], runs[-1]]


@pytest.mark.campaign("damage", sample=True)
@pytest.mark.parametrize("change", [with_other_bytes, with_other_type])
def test_damage_is_told_and_nothing_is_done_that_was_not(
    planned: Prepared, alone: OldRuns, tmp_path: Path, change: Callable[[bytes, random.Random], bytes]
) -> None:
    pristine = tmp_path / "pristine"
    shutil.copytree(alone.runs, pristine, symlinks=True)
    names = sorted(folder.name for folder in alone.runs.iterdir() if (folder / "launches").is_dir())
    before = {name: states(name) for name in names}
    assert any(before.values())
    files = [
        path.relative_to(pristine)
        for name in names
        for path in sorted((pristine / name).rglob("*"))
        if path.is_file() and path.stat().st_size < SMALL and path.suffix in {".json", ".jsonl", ".offsets"}
    ]
    chance = random.Random(f"{change.__name__} {SEED}")
    wrong: list[str] = []
    for number in range(amount(8, 1_000)):
        file = chance.choice(files)
        experiment = file.parts[0]
        content = change((pristine / file).read_bytes(), chance)
        shutil.rmtree(alone.runs / experiment)
        shutil.copytree(pristine / experiment, alone.runs / experiment, symlinks=True)
        (alone.runs / file).write_bytes(content)
        wrong += [
            f"{number}: {file}: {each}\n{content[:2000]!r}"
            for each in _problems(experiment, before[experiment], alone, planned)
        ]
        shutil.rmtree(alone.runs / experiment)
        shutil.copytree(pristine / experiment, alone.runs / experiment, symlinks=True)
    assert not wrong, f"{len(wrong)}\n" + "\n\n".join(wrong[:20])


def _problems(experiment: str, before: dict[str, str], old: OldRuns, prepared: Prepared) -> Iterator[str]:
    for argv in verbs(experiment, list(before)):
        yield from _problem(" ".join(argv), lambda argv=argv: _status_of(argv))
    renamed = replace(prepared, experiment=replace(prepared.experiment, name=experiment))
    yield from _problem("plan", lambda: dry_run.plan(find_project(old.project), renamed))
    yield from _problem("status --json", lambda: _refuse_lies(states(experiment), before))


def _problem(name: str, act: Callable[[], object]) -> Iterator[str]:
    try:
        with limited(SECONDS):
            act()
    except OrchError:
        return
    except Hang:
        yield f"{name} hangs"
    except BaseException:  # noqa: BLE001 - it is the finding
        yield f"{name}\n{traceback.format_exc(limit=-6)}"


def _status_of(argv: Sequence[str]) -> None:
    status, said = look(argv)
    assert status in {0, 1, 2}, said
    assert "Traceback" not in said


def _refuse_lies(after: dict[str, str], before: dict[str, str]) -> None:
    assert not [run for run, state in after.items() if state == "done" and before.get(run) != "done"]
