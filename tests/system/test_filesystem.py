"""Where a folder lies: as /proc/self/mountinfo tells it, and what follows for the embedded tracking store."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.layout import RunsRoot, cache_dir
from orchestrator.project import Project
from orchestrator.system.mounts import is_network, kind_of

MOUNTS = """\
21 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 21 0:26 / /home rw,relatime shared:15 - nfs4 server:/home rw,vers=4.2
31 30 0:27 / /home/me/my\\040disk rw,relatime - xfs /dev/sdb rw
32 21 0:28 / /scratch rw,relatime master:1 - lustre mds@tcp:/fs rw
33 21 0:29 / /mnt/a rw,relatime - fuse.sshfs me@host:/ rw
34 21 0:30 / /over rw - ext4 /dev/sdc rw
35 34 0:31 / /over rw - nfs server:/x rw
a damaged line
"""


@pytest.mark.parametrize(
    ("folder", "kind", "network"),
    [
        ("/disk/runs", "ext4", False),
        ("/home/me/project/runs", "nfs4", True),
        ("/home/me/my disk/runs", "xfs", False),
        ("/homes/me", "ext4", False),
        ("/scratch", "lustre", True),
        ("/mnt/a/b", "fuse.sshfs", True),
        ("/over/x", "nfs", True),
    ],
)
def test_the_innermost_mount_counts_and_of_two_at_one_place_the_later(folder, kind, network):
    assert kind_of(Path(folder), mounts=MOUNTS) == kind
    assert is_network(Path(folder), mounts=MOUNTS) is network


def test_of_what_is_not_known_nothing_is_concluded():
    assert kind_of(Path("/x"), mounts="") == ""
    assert not is_network(Path("/x"), mounts="")


def test_this_machines_own_folders_are_found(tmp_path):
    assert kind_of(tmp_path)
    assert kind_of(Path("/proc/self")) == "proc"


def test_on_a_shared_filesystem_the_store_is_the_users_own(tmp_path, monkeypatch):
    project = Project(folder=tmp_path / "my project", runs=RunsRoot(tmp_path / "my project" / "runs"))
    assert project.tracking_store == project.runs.mlflow
    shared = {project.runs.path}
    monkeypatch.setattr("orchestrator.project.is_network", lambda folder: folder in shared)
    assert project.tracking_store.parent == cache_dir() / "mlflow"
    assert project.tracking_store.name.startswith("my project-")
    shared.add(cache_dir() / "mlflow")
    assert str(project.tracking_store).startswith("/var/tmp/orchestrator-")
