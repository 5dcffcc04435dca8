"""Other users of one machine, played by real ones where we are root: what they take first, and what they may write."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from processes import ROOT

from orchestrator.errors import StateError
from orchestrator.local.device_locks import held_by_others
from orchestrator.local.schedule import Device
from orchestrator.local.socket_owners import owner
from orchestrator.local.workstation import Queue
from orchestrator.system import files

ADA, EVE = 64001, 64002
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become two users")


def run_as(uid: int, code: str, *arguments: object, umask: int = 0o022) -> str:
    """Run Python code as a user, and return what it prints."""
    text = (
        f"import os; os.umask({umask}); os.setgroups([]); os.setgid({uid}); os.setuid({uid})\n{textwrap.dedent(code)}"
    )
    argv = [sys.executable, "-c", text, *map(str, arguments)]
    return subprocess.run(
        argv, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder like /tmp, that all users reach and in which all may make names of their own."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    for parent in [tmp_path, *tmp_path.parents]:
        if parent.stat().st_uid == os.getuid() and str(parent).startswith("/tmp/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    return folder


SCRATCH = """
import json, sys
from orchestrator.data.store.scratch import scratch_dir, taken
print(json.dumps([str(scratch_dir(sys.argv[1], {})), taken(sys.argv[1], {})]))
"""


@as_root
@pytest.mark.parametrize("squat", ["mkdir", "symlink", "file"])
def test_a_squatted_scratch_costs_ada_nothing_and_eve_is_named(shared: Path, squat: str) -> None:
    name = shared / f"orchestrator-{ADA}"
    made = {
        "mkdir": "os.mkdir(sys.argv[1], 0o777); os.chmod(sys.argv[1], 0o777)",
        "symlink": "os.symlink(os.path.dirname(sys.argv[1]), sys.argv[1])",
        "file": "open(sys.argv[1], 'w')",
    }
    run_as(EVE, f"import sys; {made[squat]}; os.mkdir(sys.argv[1] + '-00000000', 0o777)", name)
    found, said = json.loads(run_as(ADA, SCRATCH, shared))
    again, _ = json.loads(run_as(ADA, SCRATCH, shared))
    assert (Path(found).stat().st_uid, stat.S_IMODE(Path(found).stat().st_mode)) == (ADA, 0o700)
    assert found == again
    assert f"uid {EVE}" in said


@as_root
def test_who_holds_a_gpu_is_named_and_its_name_is_not_changed() -> None:
    device = Device(id="0", address=f"test-{os.getpid()}")
    code = f"""
    import socket, time
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    held.bind("\\0orchestrator/gpu/{device.address}")
    print("held", flush=True)
    time.sleep(60)
    """
    text = f"import os; os.setuid({EVE})\n{textwrap.dedent(code)}"
    eve = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)
    try:
        assert eve.stdout is not None
        assert eve.stdout.readline() == "held\n"
        found = owner(f"orchestrator/gpu/{device.address}")
        assert found is not None
        assert (found.uid, found.process) == (EVE, eve.pid)
        assert held_by_others([device, Device(id="1", address="free")]) == {"0": f"uid {EVE}, process {eve.pid}"}
        seen_by_ada = run_as(
            ADA,
            "import sys; from orchestrator.local.socket_owners import owner; print(owner(sys.argv[1]))",
            f"orchestrator/gpu/{device.address}",
        )
        assert seen_by_ada == f"uid {EVE}\n"
    finally:
        eve.kill()
        eve.communicate()
    assert owner(f"orchestrator/gpu/{device.address}") is None


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

MAKE = """
import sys
from pathlib import Path
from orchestrator.data.store.scratch import scratch_dir
from orchestrator.local.workstation import Queue
from orchestrator.system import files
from orchestrator.system.cache import Answers
from orchestrator.system.processes import start_detached
from orchestrator.tracking import SpoolWriter
base = Path(sys.argv[1])
Answers(base / "cache").write(1, "question")
with Queue(base / "queue").lock():
    pass
files.make_private(base / "private")
files.make_folder(base / "runs" / "deep")
files.write_text(base / "runs" / "new", "x")
files.replace_text(base / "runs" / "replaced", "x")
(base / "runs" / "loose").touch(); (base / "runs" / "loose").chmod(0o666)
files.replace_text(base / "runs" / "loose", "x")
with SpoolWriter(base / "runs" / "spool") as spool:
    spool.tags({"a": 1})
scratch_dir(str(base), {})
start_detached(["true"], cwd=base, log=base / "queue" / "log")
"""
PRIVATE = ("cache", "queue", "private", "orchestrator-")


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077], ids=oct)
def test_nobody_else_may_write_what_we_make_and_what_is_private_is_the_users_alone(tmp_path: Path, umask: int) -> None:
    argv = [sys.executable, "-c", f"import os; os.umask({umask})\n{MAKE}", str(tmp_path)]
    subprocess.run(argv, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
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
    run_as(ADA, MAKE, home, umask=0)
    code = """
    import sys
    for folder, _, names in os.walk(sys.argv[1]):
        print(*[path for path in [folder, *(f"{folder}/{name}" for name in names)] if os.access(path, os.W_OK)], end="")
    """
    assert run_as(EVE, code, home) == ""
