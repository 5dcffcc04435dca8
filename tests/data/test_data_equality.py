"""A view is what `dvc checkout` puts into a working tree, name by name and byte by byte; DVC itself says what."""

import hashlib
import json
import stat
import unicodedata
from pathlib import Path

import pytest
from dvc_data.hashfile.hash import file_md5
from repositories import commit, dvc, dvc_all, git, probe_here, write

from orchestrator.data import Staging, Store, fetcher_of, resolve

SMALL = {f"small/{number % 50}/{number:04}.txt": b"%d" % (number % 4000) for number in range(5000)}
ODD = {
    "empty": b"", "sub/empty too": b"", " both ends ": b"1", "-rf": b"2", "new\nline": b"3", "tab\t": b"4",
    "quo'te\"": b"5", "back\\slash": b"6", "a%20b": b"7", "#;$(x)`y`&|*?[z]": b"8", "日本/デ ータ/🎲": b"9",
    unicodedata.normalize("NFC", "é"): b"10", unicodedata.normalize("NFD", "é"): b"11", "Case": b"12", "case": b"13",
    "n" * 255: b"14", "/".join("deep" * 20): b"15", ".hidden/.file": b"16", "windows.txt": b"a\r\nb\r\n",
    "binary": bytes(range(256)) * 9000, "run.sh": b"#!/bin/sh\n", "x.dvcignored": b"17", "..two": b"18",
}  # fmt: skip
FIRST = {"becomes a folder": b"a", "becomes a file/x": b"b"}
CHANGED = {"becomes a folder/file": b"20", "becomes a file": b"21", "binary": b"other", "run.sh": b""}

pytestmark = pytest.mark.usefixtures("private_settings")


def listing(folder: Path) -> tuple[dict[str, bytes], set[str]]:
    """Return all files with their bytes, and all folders."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    files = {name: path.read_bytes() for name, path in paths.items() if path.is_file()}
    return files, {name for name, path in paths.items() if path.is_dir()}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository of two revisions: v1; and v2, with files changed, removed, and changed to folders and back."""
    repo = tmp_path_factory.mktemp("repository") / "the repo"
    write(repo, {f"data/{name}": content for name, content in SMALL.items()})
    write(repo, {f"data/odd/{name}": content for name, content in (ODD | FIRST).items()})
    write(repo, {"tool.sh": b"#!/bin/sh\n"})
    (repo / "data/nothing/in here").mkdir(parents=True)
    for name in ("data/odd/run.sh", "tool.sh"):
        (repo / name).chmod(0o755)
    git(repo, "init", "-q", "-b", "main")
    dvc_all(repo, ["init"], ["add", "data", "tool.sh"])
    commit(repo, "one")
    git(repo, "tag", "v1")
    for name in [*(f"odd/{name}" for name in FIRST), *list(SMALL)[:100]]:
        (repo / "data" / name).unlink()
    (repo / "data/odd/becomes a file").rmdir()
    write(repo, {f"data/odd/{name}": content for name, content in CHANGED.items()})
    dvc(repo, "add", "data")
    commit(repo, "two")
    git(repo, "tag", "v2")
    return repo


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store for all: versions share their objects."""
    return Store(tmp_path_factory.mktemp("scratch") / "store", Staging(keep_free_gb=0))


def checked_out(repo: Path, folder: Path, rev: str = "HEAD") -> Path:
    """Have DVC check a revision out into a fresh clone that uses the repository's cache."""
    git(folder, "clone", "-q", repo, folder / "clone")
    git(folder / "clone", "checkout", "-q", rev)
    dvc_all(folder / "clone", ["cache", "dir", "--local", str(repo / ".dvc/cache")], ["checkout"])
    return folder / "clone"


def viewed(store: Store, repo: Path, path: str, cache: Path, rev: str | None = None) -> Path:
    asked = {"source": "dvc", "repo": str(repo), "path": path, "rev": rev}
    manifest = resolve(asked, project=repo, cache=cache, probe=probe_here)
    staged = store.stage(manifest, fetcher=fetcher_of(manifest))
    assert store.verify(staged.version) == []
    return staged.view


@pytest.mark.parametrize("rev", ["v1", "v2"])
def test_a_folder_of_thousands_of_odd_files_at_each_revision(repository, store, tmp_path, rev):
    clone = checked_out(repository, tmp_path, rev)
    expected = listing(clone / "data")
    assert listing(viewed(store, repository, "data", tmp_path / "cache", rev)) == expected
    assert len(expected[0]) == len(SMALL) + len(ODD) + 2 - (100 if rev == "v2" else 0)
    assert "nothing" not in expected[1]  # DVC keeps no empty folders, either


def test_a_file_and_the_whole_repository(repository, store, tmp_path):
    clone = checked_out(repository, tmp_path)
    file = viewed(store, repository, "tool.sh", tmp_path / "cache") / "tool.sh"
    assert file.read_bytes() == (clone / "tool.sh").read_bytes()
    assert stat.S_IMODE((clone / "tool.sh").stat().st_mode) & 0o111  # the one difference: see "what a run sees"
    assert stat.S_IMODE(file.stat().st_mode) == 0o444
    files, folders = listing(viewed(store, repository, ".", tmp_path / "cache"))
    assert files == {f"data/{name}": data for name, data in listing(clone / "data")[0].items()} | {
        "tool.sh": b"#!/bin/sh\n"
    }
    assert folders == {"data"} | {f"data/{name}" for name in listing(clone / "data")[1]}


def test_what_is_imported_at_a_revision(repository, store, tmp_path):
    repo = tmp_path / "importing"
    repo.mkdir()
    git(repo, "init", "-q", "-b", "main")
    one = ["import", str(repository), "data/odd", "--rev", "v1", "-o", "copy"]
    dvc_all(repo, ["init"], one, ["import", str(repository), "data/odd/sub", "-o", "part"])
    commit(repo, "imports")
    clone = checked_out(repo, tmp_path)
    for path in ("copy", "part"):
        assert listing(viewed(store, repo, path, tmp_path / "cache")) == listing(clone / path)


def test_what_dvc_2_tracked_in_its_own_layout(store, tmp_path):
    repo = tmp_path / "old"
    files = {name: content for name, content in ODD.items() if name != "run.sh"} | {"text.csv": b"1\r\n2\r\n\r\n3\n"}
    rows = [{"md5": _kept_as_dvc_2(repo, content), "relpath": name} for name, content in sorted(files.items())]
    folder = json.dumps(rows, sort_keys=True).encode()
    top = hashlib.md5(folder).hexdigest() + ".dir"
    write(repo, {f".dvc/cache/{top[:2]}/{top[2:]}": folder, ".dvc/config": b"", ".gitignore": b"/old\n/.dvc/cache\n"})
    write(repo, {"old.dvc": f"outs:\n- md5: {top}\n  nfiles: {len(files)}\n  path: old\n".encode()})
    git(repo, "init", "-q", "-b", "main")
    commit(repo, "old")
    expected = listing(checked_out(repo, tmp_path) / "old")
    assert expected[0] == files
    assert listing(viewed(store, repo, "old", tmp_path / "cache")) == expected


def _kept_as_dvc_2(repo: Path, content: bytes) -> str:
    """Put a file into the cache as DVC 2 did, and return its checksum."""
    file = repo.parent / "file"
    file.write_bytes(content)
    checksum = str(file_md5(str(file), name="md5-dos2unix"))
    write(repo, {f".dvc/cache/{checksum[:2]}/{checksum[2:]}": content})
    return checksum
