"""Other users of one machine, played by real ones where we are root: what they take first, and what they may write."""

from __future__ import annotations

import json
import os
import stat
import tempfile
import uuid  # noqa: F401 - before a process becomes another user, who may not read it
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from two_users import ADA, EVE

from orchestrator.data.store.scratch import scratch_dir, taken
from orchestrator.errors import StateError
from orchestrator.local.device_locks import DeviceLocks, held_by_others
from orchestrator.local.schedule import Device
from orchestrator.local.socket_owners import Owner, owner
from orchestrator.local.workstation import Queue
from orchestrator.system import files
from orchestrator.system.cache import Answers
from orchestrator.system.processes import start_detached
from orchestrator.tracking import SpoolWriter

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become two users")


def run_as(uid: int, act: Callable[[], object], *, umask: int = 0o022) -> Any:
    """Return what a function returns, called in a process of a user's.

    It is forked: other users may not read the Python that runs the tests.
    """
    answer, tell = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.umask(umask)
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            os.write(tell, json.dumps(act(), default=str).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(tell)
    with os.fdopen(answer, "rb") as answered:
        said = answered.read()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(said)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder like /tmp, that all users reach and in which all may make names of their own."""
    with tempfile.TemporaryDirectory(prefix="orch-test-") as name:
        Path(name).chmod(0o1777)
        yield Path(name)


def squat(kind: str, name: Path) -> None:
    if kind == "symlink":
        name.symlink_to(name.parent)
    elif kind == "file":
        name.touch()
    else:
        name.mkdir()
        name.chmod(0o777)


@as_root
@pytest.mark.parametrize("kind", ["mkdir", "symlink", "file"])
def test_a_squatted_scratch_costs_ada_nothing_and_eve_is_named(shared: Path, kind: str) -> None:
    name = shared / f"orchestrator-{ADA}"
    run_as(EVE, lambda: squat(kind, name))
    run_as(EVE, lambda: squat("mkdir", name.with_name(f"{name.name}-00000000")))
    found, said = run_as(ADA, lambda: [scratch_dir(str(shared), {}), taken(str(shared), {})])
    again = run_as(ADA, lambda: scratch_dir(str(shared), {}))
    assert (Path(found).stat().st_uid, stat.S_IMODE(Path(found).stat().st_mode)) == (ADA, 0o700)
    assert found == again
    assert f"uid {EVE}" in said


@as_root
def test_who_holds_a_gpu_is_named_and_its_name_is_not_changed() -> None:
    device = Device(id="0", address=f"test-{os.getpid()}")
    name = f"orchestrator/gpu/{device.address}"
    locks = DeviceLocks()
    (ready, tell), (wait, let) = os.pipe(), os.pipe()
    eve = os.fork()
    if eve == 0:
        os.setuid(EVE)
        os.write(tell, b"no" if locks.take([device]) else b"ok")
        os.read(wait, 1)
        os._exit(0)
    try:
        assert os.read(ready, 2) == b"ok"
        assert owner(name) == Owner(uid=EVE, process=eve)
        assert held_by_others([device, Device(id="1", address="free")]) == {"0": f"uid {EVE}, process {eve}"}
        assert run_as(ADA, lambda: owner(name)) == f"uid {EVE}"
        assert locks.take([device]) == {device.address}
    finally:
        os.write(let, b"x")
        os.waitpid(eve, 0)
        for descriptor in (ready, tell, wait, let):
            os.close(descriptor)
    assert owner(name) is None


@pytest.mark.parametrize("kind", ["link", "writable", "foreign"])
def test_a_queue_that_is_not_the_users_own_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "workstation" / "host"
    folder.parent.mkdir()
    if kind == "link":
        folder.symlink_to(tmp_path)
    else:
        folder.mkdir()
        folder.chmod(0o777)
    if kind == "foreign":
        if os.getuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(folder, EVE, EVE)
    said = {"link": "symbolic link", "writable": "others may write", "foreign": f"belongs to uid {EVE}"}[kind]
    with pytest.raises(StateError, match=said), Queue(folder).lock():
        pass


# --- the modes of what we make, whatever the umask ------------------------------------------------------------


def make(base: Path) -> None:
    """Make one of each kind of file that we make."""
    Answers(base / "cache").write(1, "question")
    with Queue(base / "queue").lock():
        pass
    files.make_private(base / "private")
    files.make_folder(base / "runs" / "deep")
    files.write_text(base / "runs" / "new", "x")
    files.replace_text(base / "runs" / "replaced", "x")
    (base / "runs" / "loose").touch()
    (base / "runs" / "loose").chmod(0o666)
    files.replace_text(base / "runs" / "loose", "x")
    with SpoolWriter(base / "runs" / "spool") as spool:
        spool.tags({"a": 1})
    scratch_dir(str(base), {})
    start_detached(["true"], log=base / "queue" / "log")


PRIVATE = ("cache", "queue", "private", "orchestrator-")


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077], ids=oct)
def test_nobody_else_may_write_what_we_make_and_what_is_private_is_the_users_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        make(tmp_path)
    finally:
        os.umask(before)
    modes = {str(path.relative_to(tmp_path)): path.lstat().st_mode for path in tmp_path.rglob("*")}
    assert {"cache", "queue/lock", "queue/log", "runs/spool", "runs/new", "runs/deep", "runs/loose"} <= set(modes)
    for name, mode in modes.items():
        assert stat.S_ISREG(mode) or stat.S_ISDIR(mode), name
        assert not mode & 0o022, f"{name}: {stat.S_IMODE(mode):04o}"
        if name.startswith(PRIVATE) or name == "runs/spool":
            assert not mode & 0o077, f"{name}: {stat.S_IMODE(mode):04o}"
    if umask == 0o022:
        assert {modes["runs/new"] & 0o777, modes["runs/replaced"] & 0o777} == {0o644}


def test_a_new_file_is_not_made_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        files.write_text(tmp_path / "link", "x")
    files.replace_text(tmp_path / "link", "x")
    assert not (tmp_path / "elsewhere").exists()
    assert not (tmp_path / "link").is_symlink()


@as_root
def test_eve_can_write_nothing_of_adas_whatever_adas_umask(shared: Path) -> None:
    home = shared / "ada"
    home.mkdir()
    os.chown(home, ADA, ADA)
    run_as(ADA, lambda: make(home), umask=0)
    assert {path.lstat().st_uid for path in home.rglob("*")} == {ADA}

    def writable() -> list[str]:
        below = [Path(folder) / name for folder, folders, names in os.walk(home) for name in (*folders, *names)]
        return [str(path) for path in (home, *below) if os.access(path, os.W_OK)]

    assert run_as(EVE, writable) == []
