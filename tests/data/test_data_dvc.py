"""What DVC tracks at a revision is what a run sees, byte by byte; real repositories, made by DVC itself."""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc_data.hashfile.hash import file_md5
from repositories import commit, dvc, dvc_all, git, probe_here, tree

from orchestrator.data import Store, resolve
from orchestrator.data.checksum import checksum_of
from orchestrator.data.sources.dvc import ask_dvc
from orchestrator.errors import DataError, RequestError

FILES = {
    "plain.txt": b"1\n", "windows.txt": b"a\r\nb\r\n", "empty": b"", "with space": b"2", "new\nline": b"3",
    "quo'te\"": b"4", "sub/deep/er/\xc3\xa9-\xe6\x97\xa5\xe6\x9c\xac".encode("latin-1").decode(): b"5",
    "binary": bytes(range(256)) * 5000, "run.sh": b"#!/bin/sh\n",
}  # fmt: skip
ODD = 'it\'s "the" repo'


pytestmark = pytest.mark.usefixtures("private_settings")


@pytest.fixture(scope="module")
def origin(tmp_path_factory, private_settings):
    """A repository with a bundled remote and two revisions: v1, and main with a file more and one changed.

    data/digits is a directory, data/labels.csv a file, copy.csv the output of a pipeline.
    """
    repo = tmp_path_factory.mktemp("origin") / ODD
    repo.mkdir()
    git(repo, "init", "-q", "-b", "main")
    dvc(repo, "init")
    (repo / ".dvc/config").write_text("[core]\n    remote = bundled\n['remote \"bundled\"']\n    url = ../remote\n")
    for name, content in FILES.items():
        path = repo / "data/digits" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (repo / "data/digits/run.sh").chmod(0o755)
    (repo / "data/labels.csv").write_bytes(b"a,b\r\n1,2\r\n")
    (repo / "dvc.yaml").write_text(
        "stages:\n  copy:\n    cmd: cp data/labels.csv copy.csv\n    deps: [data/labels.csv]\n    outs: [copy.csv]\n"
    )
    dvc_all(repo, ["add", "data/digits", "data/labels.csv"], ["repro"], ["push"])
    commit(repo, "one")
    git(repo, "tag", "v1")
    (repo / "data/digits/plain.txt").write_bytes(b"changed\n")
    (repo / "data/digits/new").write_bytes(b"new")
    dvc_all(repo, ["add", "data/digits"], ["push"])
    commit(repo, "two")
    return repo


@pytest.fixture(scope="module")
def pristine(origin, tmp_path_factory):
    """A fresh clone that is only looked at."""
    folder = tmp_path_factory.mktemp("pristine")
    git(folder, "clone", "-q", origin, folder / ODD)
    return folder / ODD


@pytest.fixture
def clone(origin, tmp_path):
    """A fresh clone: nothing in its DVC cache, all objects in the bundled remote."""
    git(tmp_path, "clone", "-q", origin, tmp_path / ODD)
    return tmp_path / ODD


@pytest.fixture
def full(origin, tmp_path):
    """A copy with all objects in the cache and in the remote."""
    shutil.copytree(origin, tmp_path / ODD, symlinks=True)
    return tmp_path / ODD


def resolved(repo, path="data/digits", rev=None, *, probe=probe_here):
    version = {"source": "dvc", "repo": repo.name, "path": path, "rev": rev}
    return resolve(version, project=repo.parent, cache=repo.parent / "cache", probe=probe)


def staged(repo, *arguments):
    return tree(Store(repo.parent / "scratch").stage(resolved(repo, *arguments)).view)


def cached(repo, checksum):
    return repo / ".dvc/cache/files/md5" / checksum[4:6] / checksum[6:]


def bundled(repo, checksum):
    return repo / "remote/files/md5" / checksum[4:6] / checksum[6:]


def rewrite(path, content):
    path.chmod(0o644)
    path.write_bytes(content)


def hash_of(repo, name):
    return next(entry.hash for entry in resolved(repo).entries if entry.path == name)


# --- the right bytes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rev", ["v1", "main"])
def test_the_view_of_a_fresh_clone_is_what_dvc_get_gives(origin, pristine, tmp_path, rev):
    dvc(tmp_path, "get", "--rev", rev, str(origin), "data/digits", "-o", "expected")
    assert staged(pristine, "data/digits", rev) == tree(tmp_path / "expected")


def test_a_single_file_is_a_view_of_one_file(pristine):
    assert staged(pristine, "data/labels.csv") == {"labels.csv": b"a,b\r\n1,2\r\n"}


def test_an_output_of_a_pipeline_is_as_good_as_an_added_file(pristine):
    assert staged(pristine, "copy.csv") == {"copy.csv": b"a,b\r\n1,2\r\n"}


def test_a_folder_above_holds_all_that_is_tracked_below(pristine):
    digits = {f"digits/{name}": content for name, content in staged(pristine).items()}
    labels = {"labels.csv": b"a,b\r\n1,2\r\n"}
    assert staged(pristine, "data") == digits | labels
    assert set(staged(pristine, ".")) == {f"data/{name}" for name in digits | labels} | {"copy.csv"}


def test_a_part_of_a_tracked_folder_can_be_named(pristine):
    assert staged(pristine, "data/digits/sub/", "v1") == {"deep/er/é-日本": b"5"}
    assert staged(pristine, "data/digits/plain.txt", "v1") == {"plain.txt": b"1\n"}


def test_resolving_writes_nothing_into_the_repository(clone):
    def state():
        return {path: path.lstat().st_mtime_ns for path in clone.rglob("*")}

    before = state()
    resolved(clone)
    assert state() == before


def test_the_manifest_says_where_it_came_from(pristine):
    v1 = subprocess.run(["git", "-C", pristine, "rev-parse", "v1"], check=True, capture_output=True, text=True)
    repair = shlex.join(["dvc", "--cd", str(pristine), "fetch", "--all-commits", "data/digits"])
    assert resolved(pristine, rev="v1").origin == {
        "source": "dvc",
        "repo": str(pristine),
        "path": "data/digits",
        "rev": "v1",
        "commit": v1.stdout.strip(),
        "dirty": False,
        "repair": repair,
    }


def test_a_tag_a_branch_and_a_commit_are_the_same_version(pristine):
    commit_id = resolved(pristine, rev="v1").origin["commit"]
    assert resolved(pristine, rev="v1").digest == resolved(pristine, rev=commit_id).digest
    assert resolved(pristine, rev="main").digest == resolved(pristine).digest != resolved(pristine, rev="v1").digest


def test_uncommitted_changes_are_not_used_but_noted(clone):
    committed = resolved(clone)
    definition = clone / "data/digits.dvc"
    definition.write_text(definition.read_text().replace("nfiles: 10", "nfiles: 11"))
    changed = resolved(clone)
    assert (changed.digest, changed.origin["dirty"]) == (committed.digest, True)
    assert resolved(clone, "data/labels.csv").origin["dirty"] is False
    assert resolved(clone, rev="v1").origin["dirty"] is False


def test_a_dvc_repository_in_a_subfolder_of_git_is_found(full, tmp_path):
    mono = tmp_path / "mono"
    shutil.copytree(full, mono / "sub" / "repo", ignore=shutil.ignore_patterns(".git"))
    git(mono, "init", "-q", "-b", "main")
    commit(mono, "all")
    expected = staged(full)
    version = {"source": "dvc", "path": "data/digits", "repo": str(mono / "sub" / "repo")}
    manifest = resolve(version, project=tmp_path, cache=tmp_path / "cache")
    assert tree(Store(tmp_path / "scratch").stage(manifest).view) == expected
    below = {"source": "dvc", "path": "digits", "repo": str(mono / "sub" / "repo" / "data")}
    assert resolve(below, project=tmp_path, cache=tmp_path / "cache").digest == manifest.digest


# --- old caches -----------------------------------------------------------------------------------------


def test_objects_in_the_old_layout_are_found(full):
    expected = staged(full)
    shutil.rmtree(full / "remote")
    for folder in (full / ".dvc/cache/files/md5").iterdir():
        folder.rename(full / ".dvc/cache" / folder.name)
    shutil.rmtree(full.parent / "scratch")
    assert staged(full) == expected


def test_what_dvc_2_tracked_is_verified_by_its_own_checksums(tmp_path):
    """DVC 2 hashed text with LF instead of CRLF; its cache and .dvc files are laid out as it did."""
    repo = tmp_path / "old"
    files = {"windows.txt": b"a\r\nb\r\n", "unix.txt": b"a\nb2\n", "binary": b"\0\r\n", "sub/empty": b""}
    cache = repo / ".dvc/cache"

    def keep(name, content):
        (cache / name[:2]).mkdir(parents=True, exist_ok=True)
        (cache / name[:2] / name[2:]).write_bytes(content)
        return name

    (tmp_path / "file").touch()
    rows = []
    for path, content in files.items():
        (tmp_path / "file").write_bytes(content)
        checksum = file_md5(str(tmp_path / "file"), name="md5-dos2unix")
        rows.append({"md5": keep(checksum, content), "relpath": path})
    listing = json.dumps(sorted(rows, key=lambda row: row["relpath"]), sort_keys=True).encode()
    top = keep(hashlib.md5(listing).hexdigest() + ".dir", listing)
    (repo / ".dvc/config").touch()
    (repo / "old.dvc").write_text(f"outs:\n- md5: {top}\n  nfiles: 4\n  path: old\n")
    (repo / ".gitignore").write_text("/old\n/.dvc/cache\n")
    git(repo, "init", "-q", "-b", "main")
    commit(repo, "old")
    assert staged(repo, "old") == files


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a\r\nb",
        b"\0\r\n",
        b"\xff" * 200 + b"\r\n" * 100,
        b"\xff" * 10 + b"a\r\n" * 100,
        b"x" * (2**20 - 1) + b"\r\n" + b"\xff" * 600 + b"\r\n",
        b"\r\n" * 2**20,
    ],
    ids=range(7),
)
@pytest.mark.parametrize("algorithm", ["md5", "md5-dos2unix"])
def test_checksums_are_those_of_dvc(tmp_path, content, algorithm):
    (tmp_path / "file").write_bytes(content)
    expected = file_md5(str(tmp_path / "file"), name=algorithm)
    assert checksum_of(tmp_path / "file", algorithm) == f"{algorithm}:{expected}"


# --- DVC is asked once ----------------------------------------------------------------------------------


class CountedProbe:
    """DVC's real answers, counted."""

    def __init__(self):
        self.asked = 0

    def __call__(self, request):
        self.asked += 1
        return probe_here(request)


def test_dvc_is_asked_once_for_a_commit_and_a_target(clone):
    probe = CountedProbe()
    first = resolved(clone, probe=probe)
    assert resolved(clone, probe=probe) == first
    assert resolved(clone, rev="main", probe=probe).entries == first.entries
    assert resolved(clone, "data//digits/", probe=probe).entries == first.entries
    assert probe.asked == 1
    resolved(clone, rev="v1", probe=probe)
    assert probe.asked == 2


def test_dvc_is_asked_again_when_objects_may_have_moved(clone):
    probe = CountedProbe()
    before = resolved(clone, probe=probe)
    (clone / "remote").rename(clone.parent / "moved")
    (clone / ".dvc/config.local").write_text(f"['remote \"bundled\"']\n    url = {clone.parent / 'moved'}\n")
    after = resolved(clone, probe=probe)
    assert probe.asked == 2
    assert after.digest == before.digest
    assert str(clone.parent / "moved") in after.entries[0].sources[1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: "{",
        lambda kept: "[]",
        lambda kept: json.dumps({**kept, "answer": {}}),
        lambda kept: json.dumps({**kept, "answer": {**kept["answer"], "files": [["a"]]}}),
        lambda kept: json.dumps({**kept, "answer": None}),
        lambda kept: json.dumps({**kept, "question": ["another"]}),
    ],
)
def test_a_damaged_answer_is_asked_for_again(clone, damage):
    first = resolved(clone, "copy.csv")
    (kept,) = (clone.parent / "cache/dvc").iterdir()
    kept.write_text(damage(json.loads(kept.read_text())))
    probe = CountedProbe()
    assert resolved(clone, "copy.csv", probe=probe) == first
    assert probe.asked == 1


def test_which_copy_exists_is_looked_up_every_time(full):
    probe = CountedProbe()
    resolved(full, probe=probe)
    shutil.rmtree(full / ".dvc/cache")
    assert resolved(full, probe=probe).files == 10
    shutil.rmtree(full / "remote")
    with pytest.raises(RequestError, match="10 of the 10 files"):
        resolved(full, probe=probe)
    assert probe.asked == 1


# --- missing and damaged --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil",
    [lambda p: rewrite(p, b"0" * p.stat().st_size), lambda p: rewrite(p, p.read_bytes()[:-1]), Path.unlink],
    ids=["corrupt", "truncated", "gone"],
)
def test_a_bad_object_in_the_cache_is_taken_from_the_remote(full, spoil):
    expected = tree(full / "data/digits")
    spoil(cached(full, hash_of(full, "binary")))
    assert staged(full) == expected


def test_of_a_cache_half_gone_and_half_damaged_all_comes_from_the_remote(full, caplog):
    expected = tree(full / "data/digits")
    objects = sorted(
        path for path in (full / ".dvc/cache").rglob("*") if path.is_file() and path.stat().st_size < 10**6
    )
    objects = [path for path in objects if path.suffix != ".dir"]
    for number, path in enumerate(objects):
        path.unlink() if number % 2 else rewrite(path, path.read_bytes()[:-1] if number % 4 else b"corrupt")
    manifest = resolved(full)
    view = Store(full.parent / "scratch").stage(manifest).view
    assert tree(view) == expected
    damaged = [path for path in objects[::2] if str(path) in {entry.sources[0] for entry in manifest.entries}]
    assert damaged
    for path in damaged:
        (line,) = {line for line in caplog.text.splitlines() if f"{path} has md5:" in line}
        assert manifest.repair in line


def test_a_bad_listing_in_the_cache_is_taken_from_the_remote(full):
    expected = tree(full / "data/digits")
    (listing,) = (p for p in (full / ".dvc/cache").rglob("*.dir") if len(json.loads(p.read_bytes())) == 10)
    rewrite(listing, b"[]")
    assert staged(full) == expected


def test_a_corrupt_object_without_a_right_copy_is_named_with_the_repair(full):
    checksum = hash_of(full, "binary")
    rewrite(cached(full, checksum), b"one")
    rewrite(bundled(full, checksum), b"two")
    store, manifest = Store(full.parent / "scratch"), resolved(full)
    with pytest.raises(DataError) as refusal:
        store.stage(manifest)
    found = "md5:" + hashlib.md5(b"one").hexdigest()
    assert f"{cached(full, checksum)} has {found} (3 bytes), not {checksum}" in refusal.value.why
    assert str(bundled(full, checksum)) in refusal.value.why
    assert manifest.repair in refusal.value.fix
    assert store.versions() == []


def test_missing_objects_are_named_with_the_repair(full):
    checksum = hash_of(full, "binary")
    cached(full, checksum).unlink()
    bundled(full, checksum).unlink()
    with pytest.raises(RequestError) as refusal:
        resolved(full)
    assert "1 of the 10 files of 'data/digits'" in refusal.value.what
    assert f"'binary' ({checksum})" in refusal.value.what
    assert str(full / "remote") in refusal.value.why
    assert refusal.value.fix == shlex.join(["dvc", "--cd", str(full), "fetch", "data/digits"])


def test_the_repair_is_a_command_that_dvc_takes(full):
    # an absolute URL, as of a remote elsewhere: DVC itself misreads a relative one at other revisions
    (full / ".dvc/config.local").write_text(f"['remote \"bundled\"']\n    url = {full / 'remote'}\n")
    expected = staged(full, "data/digits", "v1")
    shutil.rmtree(full / ".dvc/cache")
    argv = shlex.split(resolved(full, rev="v1").repair)
    subprocess.run([sys.executable, "-m", *argv], check=True, capture_output=True)
    shutil.rmtree(full / "remote")
    shutil.rmtree(full.parent / "scratch")
    assert staged(full, "data/digits", "v1") == expected


def test_a_listing_that_is_damaged_everywhere_is_named(clone):
    for listing in (clone / "remote").rglob("*.dir"):
        rewrite(listing, b"[]")
    with pytest.raises(RequestError, match="is damaged") as refusal:
        resolved(clone)
    assert refusal.value.fix.startswith("rm ")
    assert str(clone / "remote") in refusal.value.why


# --- wrong requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rev", ["v2", "mian", "--help", "0" * 40, "HEAD~99", "v1..main", "main:data", "new\nline"])
def test_an_unknown_revision_is_refused_with_those_that_exist(pristine, rev):
    with pytest.raises(RequestError, match="has no revision") as refusal:
        resolved(pristine, rev=rev)
    assert "'v1'" in refusal.value.why
    assert "'origin/main'" in refusal.value.why


@pytest.mark.parametrize(
    ("path", "neighbour"),
    [
        ("data/digit", "'data/digits'"),
        ("data/digits.dvc", "'data/digits'"),
        ("data/digits/plain", "'data/digits/plain.txt'"),
        ("README.md", "'copy.csv'"),
    ],
)
def test_an_unknown_path_is_refused_with_its_neighbours(clone, path, neighbour):
    with pytest.raises(RequestError, match="DVC does not track") as refusal:
        resolved(clone, path)
    assert neighbour in refusal.value.why
    assert not list((clone.parent / "cache").rglob("*.json"))


def test_a_definition_that_cannot_be_read_is_named_only_where_it_matters(clone):
    (clone / "broken.dvc").write_text("outs: 1\n")
    commit(clone, "broken")
    assert staged(clone, "copy.csv")
    with pytest.raises(RequestError, match=r"could not be read: .*broken\.dvc"):
        resolved(clone, "broken")


def test_a_repository_that_git_distrusts_is_refused_with_gits_own_fix(clone, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(RequestError, match="dubious ownership") as caught:
        resolved(clone)
    assert caught.value.fix.endswith(f"--add safe.directory {shlex.quote(str(clone))}")


def test_what_is_no_repository_is_refused(clone, tmp_path):
    (tmp_path / "plain folder").mkdir()
    with pytest.raises(RequestError, match="not in a git working tree"):
        resolved(tmp_path / "plain folder")
    with pytest.raises(RequestError, match="no folder"):
        resolved(tmp_path / "nowhere")
    git(tmp_path / "plain folder", "init", "-q")
    with pytest.raises(RequestError, match="it has no commit yet"):
        resolved(tmp_path / "plain folder")
    git(tmp_path / "plain folder", "commit", "-q", "--allow-empty", "-m", "x")
    with pytest.raises(RequestError, match="is not a DVC repository"):
        resolved(tmp_path / "plain folder")


def test_an_empty_tracked_folder_is_refused(tmp_path):
    repo = tmp_path / "r"
    top = hashlib.md5(b"[]").hexdigest() + ".dir"
    listing = repo / ".dvc/cache/files/md5" / top[:2] / top[2:]
    listing.parent.mkdir(parents=True)
    listing.write_bytes(b"[]")
    (repo / ".dvc/config").touch()
    (repo / "d.dvc").write_text(f"outs:\n- md5: {top}\n  hash: md5\n  path: d\n")
    git(repo, "init", "-q", "-b", "main")
    git(repo, "add", "-f", ".dvc/config", "d.dvc")
    git(repo, "commit", "-q", "-m", "x")
    with pytest.raises(RequestError, match="'d' holds no files"):
        resolved(repo, "d")


def test_the_program_says_what_its_function_says(clone):
    told = resolved(clone, "data", probe=ask_dvc)
    shutil.rmtree(clone.parent / "cache")
    assert resolved(clone, "data") == told


def test_a_probe_that_breaks_is_an_error_with_its_last_line():
    with pytest.raises(DataError, match="TypeError") as refusal:
        ask_dvc({"root": "/", "target": "x"})
    assert refusal.value.fix == "dvc --cd / doctor"


def test_resolving_does_not_import_dvc():
    code = "import sys, orchestrator.data; sys.exit(any(name.split('.')[0] == 'dvc' for name in sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0
