"""`orch data` on a node: bring a version here, see what is here, read it, remove it."""

from __future__ import annotations

import hashlib
import json

import pytest
from repositories import git, write

from orchestrator.cli import main
from orchestrator.data import Staging, Store, resolve, scratch_dir


@pytest.fixture
def data(tmp_path, capsys):
    """A function that says `orch data WORDS`, for a project with some data and a scratch folder."""
    folder = tmp_path / "my project"
    (folder / "raw").mkdir(parents=True)
    (folder / "conf").mkdir()
    (tmp_path / "scratch").mkdir()
    for number in range(3):
        (folder / "raw" / f"{number}.txt").write_text(str(number))

    def say(what, *words, status=0):
        argv = ["data", what, *words, "--project", str(folder), "--scratch", str(tmp_path / "scratch")]
        assert main(argv) == status
        return capsys.readouterr()

    return say


VERSION = "data.version={source: directory, path: raw}"


def test_a_version_is_staged_seen_read_and_removed(data):
    view = data("stage", VERSION).out.strip()
    assert "versions/" in view
    assert data("stage", VERSION).err.endswith(" s\n")
    (version,) = json.loads(data("status", "--json").out)["versions"]
    assert (version["view"], version["files"], version["held_by"]) == (view, 3, [])
    table = data("status").out
    assert version["digest"][:12] in table
    assert "directory raw" in table
    assert data("verify").out == f"{version['digest'][:12]}  ok\n"
    assert data("gc").out == ""
    assert json.loads(data("gc", "--all", "--json").out)["removed"] == [version["digest"]]
    assert "0 versions" in data("status").out


def test_a_damaged_version_is_named_and_copied_anew(data, tmp_path):
    first = json.loads(data("stage", VERSION, "--json").out)
    damaged = next(tmp_path.glob("scratch/*/versions/*/view/1.txt"))
    damaged.chmod(0o600)
    damaged.write_text("x")
    told = data("verify", first["digest"][:6], status=1).out
    assert "damaged" in told
    assert "'1.txt' has md5:" in told
    again = json.loads(data("stage", VERSION, "--json").out)
    assert (again["hit"], again["digest"]) == (False, first["digest"])
    assert data("verify").out.count("ok") == 1


def test_what_dvc_2_hashed_without_its_line_endings_is_told(data, tmp_path, private_settings):
    repo, checksum = tmp_path / "my project", hashlib.md5(b"a\nb\n").hexdigest()
    write(repo, {f".dvc/cache/{checksum[:2]}/{checksum[2:]}": b"a\r\nb\r\n", ".dvc/config": b""})
    write(repo, {"t.csv.dvc": f"outs:\n- md5: {checksum}\n  size: 6\n  path: t.csv\n".encode()})
    git(repo, "init", "-q")
    git(repo, "add", "-f", ".dvc/config", "t.csv.dvc")
    git(repo, "commit", "-q", "-m", "old")
    told = data("resolve", "data.version={source: dvc, path: t.csv}").out
    assert "line endings are not pinned: 1 files have a hash of DVC 2's; dvc cache migrate" in told
    assert "line endings" not in data("resolve", VERSION).out


def test_what_a_run_holds_is_named_and_stays(data, tmp_path):
    manifest = resolve(
        {"source": "directory", "path": "raw"}, project=tmp_path / "my project", cache=tmp_path / "cache"
    )
    store = Store(scratch_dir(str(tmp_path / "scratch"), {}), Staging(keep_free_gb=0), job="17_4")
    staged = store.stage(manifest)
    assert "(job 17_4)" in data("status").out
    assert json.loads(data("gc", "--all", "--json").out)["removed"] == []
    staged.release()
    assert "held_by" in data("status", "--json").out
    assert json.loads(data("gc", "--max-gb", "0", "--json").out)["removed"] == [manifest.digest]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("verify", "abc"), "no version abc on this node"),
        (("stage",), "no data version is chosen"),
        (("gc", "--max-gb", "-1"), "max_gb"),
    ],
)
def test_what_cannot_be_is_refused(data, tmp_path, words, told):
    assert told in data(*words, status=2).err
