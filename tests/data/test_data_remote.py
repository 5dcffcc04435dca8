"""Objects that no folder of this machine has come from where DVC says: remotes, imports, versions in a bucket, URLs."""

import hashlib
import json
import os
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
from buckets import KEY, SECRET
from repositories import ask_here, commit, dvc_all, git, probe_here, tree, write

from orchestrator.data import Manifest, Store, fetcher_of, resolve
from orchestrator.data.manifest import Entry
from orchestrator.data.sources.dvc import ask_dvc
from orchestrator.data.sources.dvc_fetcher import DvcFetcher, ask_remotes
from orchestrator.errors import DataError, RequestError

FILES = {
    "plain.txt": b"1\n",
    "empty": b"",
    "with space": b"2",
    "new\nline": b"3",
    "quo'te\"": b"4",
    "sub/日本/é": b"5",
    "binary": bytes(range(256)) * 500,
}
LABELS = b"a,b\r\n1,2\r\n"
CONFIG = (
    "[core]\n    remote = far\n['remote \"far\"']\n    url = s3://{bucket}/a folder\n    endpointurl = {endpoint}\n"
)
AWS = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="module", autouse=True)
def credentials(private_settings, tmp_path_factory):
    """Give the tests' credentials in the environment, and keep the user's own settings out of it."""
    files = tmp_path_factory.mktemp("aws")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in AWS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_CONFIG_FILE", str(files / "config"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(files / "credentials"))
        yield


@pytest.fixture
def no_credentials(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def bucket(buckets):
    return buckets.make()


@pytest.fixture(scope="module")
def origin(buckets, bucket, tmp_path_factory):
    """A repository whose objects are in a bucket: v1, and main with a file changed; `code.py` is git's alone.

    `inner` is a DVC repository of its own in the same git repository (`dvc init --subdir`).
    """
    repo = tmp_path_factory.mktemp("origin") / "the repo"
    write(repo, {f"data/digits/{name}": content for name, content in FILES.items()})
    write(repo, {"data/labels.csv": LABELS, "code.py": b"pass\n", "inner/own.bin": b"inner"})
    git(repo, "init", "-q", "-b", "main")
    config = CONFIG.format(bucket=bucket, endpoint=buckets.endpoint)
    dvc_all(repo, ["init"], ["--cd", "inner", "init", "--subdir"])
    write(repo, {".dvc/config": config.encode(), "inner/.dvc/config": config.encode()})
    dvc_all(repo, ["add", "data/digits", "data/labels.csv"], ["push"])
    dvc_all(repo / "inner", ["add", "own.bin"], ["push"])
    commit(repo, "one")
    git(repo, "tag", "v1")
    write(repo, {"data/digits/plain.txt": b"changed\n"})
    dvc_all(repo, ["add", "data/digits"], ["push"])
    commit(repo, "two")
    return repo


@pytest.fixture
def clone(origin, tmp_path):
    """A fresh clone: all objects are in the bucket, none on this machine."""
    git(tmp_path, "clone", "-q", origin, tmp_path / "clone")
    return tmp_path / "clone"


@pytest.fixture
def version(tmp_path):
    """Resolve a path of a repository; answers are kept in the test's own folder."""

    def resolved(repo, path="data/digits", rev=None, *, probe=probe_here, ask=ask_here, **keys):
        asked = {"source": "dvc", "repo": str(repo), "path": path, "rev": rev, **keys}
        return resolve(asked, project=tmp_path, cache=tmp_path / "cache", probe=probe, ask=ask)

    return resolved


def fetched(manifest, folder, *, ask=ask_here):
    """Return what can be had, by path, as the store has it: from a path of the entry, else from the origin."""
    folder.mkdir(exist_ok=True)
    come = {
        entry.path: Path(at).read_bytes() for entry in manifest.entries for at in entry.sources if Path(at).exists()
    }
    missing = [entry for entry in manifest.entries if entry.path not in come]
    problems = {}
    for arrival in remotes_of(manifest, ask).fetch(missing, folder, threading.Event()) if missing else ():
        if arrival.path:
            come[arrival.entry.path] = arrival.path.read_bytes()
        else:
            problems[arrival.entry.path] = arrival.problem
    return come, problems


def remotes_of(manifest, ask=ask_here):
    return DvcFetcher(remotes=manifest.origin["remotes"], ask=ask)


def unreachable(*question):
    pytest.fail(f"it was asked again: {question}")


def key_of(checksum):
    return f"a folder/files/md5/{checksum[4:6]}/{checksum[6:]}"


# --- remotes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rev", "first"), [("v1", b"1\n"), ("main", b"changed\n")])
def test_what_only_a_remote_has_is_a_version_with_sizes_and_comes_from_there(version, clone, tmp_path, rev, first):
    manifest = version(clone, rev=rev)
    expected = {**FILES, "plain.txt": first}
    assert {entry.path: entry.size for entry in manifest.entries} == {name: len(expected[name]) for name in expected}
    assert fetched(manifest, tmp_path / "node") == (expected, {})


def test_a_known_version_needs_neither_dvc_nor_the_remote(version, clone):
    first = version(clone, rev="v1")
    assert version(clone, rev="v1", probe=unreachable, ask=unreachable) == first


def test_the_programs_of_their_own_say_what_their_functions_say(version, clone, tmp_path):
    manifest = version(clone, rev="v1", probe=ask_dvc, ask=ask_remotes)
    shutil.rmtree(tmp_path / "cache")
    assert version(clone, rev="v1") == manifest
    (tmp_path / "node").mkdir()
    arrivals = list(fetcher_of(manifest).fetch(manifest.entries, tmp_path / "node", threading.Event()))
    assert {arrival.entry.path: arrival.path.read_bytes() for arrival in arrivals} == FILES


def test_resolving_and_fetching_write_nothing_into_the_repository(version, clone, tmp_path):
    def state():
        return {path: path.lstat().st_mtime_ns for path in clone.rglob("*")}

    before = state()
    assert fetched(version(clone), tmp_path / "node")[1] == {}
    assert state() == before


def test_only_what_is_missing_comes_from_the_remote(version, clone, tmp_path):
    manifest = version(clone, "data/labels.csv")
    have = clone / ".dvc/cache/files/md5" / manifest.entries[0].hash[4:6] / manifest.entries[0].hash[6:]
    write(have.parent, {have.name: LABELS})
    both = version(clone, "data")
    assert [entry.path for entry in both.entries if entry.sources] == ["labels.csv"]
    digits = {f"digits/{name}": content for name, content in FILES.items()}
    assert fetched(both, tmp_path / "node") == ({**digits, "digits/plain.txt": b"changed\n", "labels.csv": LABELS}, {})


def test_a_corrupt_object_in_the_cache_is_fetched_and_never_seen(version, clone, tmp_path, monkeypatch):
    manifest = version(clone, "data/labels.csv")
    corrupt = clone / ".dvc/cache/files/md5" / manifest.entries[0].hash[4:6] / manifest.entries[0].hash[6:]
    write(corrupt.parent, {corrupt.name: b"corrupt"})
    manifest = version(clone, "data/labels.csv")
    assert manifest.entries[0].sources == (str(corrupt),)
    staged = Store(tmp_path / "scratch").stage(manifest, fetcher=remotes_of(manifest))
    assert tree(staged.view) == {"labels.csv": LABELS}
    staged.release()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(DataError, match=r"no right copy of 'labels\.csv'") as refusal:
        Store(tmp_path / "another node").stage(manifest, fetcher=remotes_of(manifest))
    assert f"{corrupt} has md5:" in refusal.value.why
    assert "the remote 'far' (s3://" in refusal.value.why
    assert "no credentials" in refusal.value.why
    assert f"remove the damaged file, then: dvc --cd {clone} fetch data/labels.csv" in refusal.value.fix


def test_without_credentials_the_remote_the_object_the_file_and_the_command_are_named(
    version, clone, bucket, no_credentials, tmp_path
):
    with pytest.raises(RequestError, match="the list of the files of 'data/digits'") as refusal:
        version(clone)
    assert f"remote 'far' (s3://{bucket}/a folder): no credentials" in refusal.value.why
    with pytest.raises(RequestError, match=r"1 of the 1 files.*'labels.csv' \(md5:") as refusal:
        version(clone, "data/labels.csv")
    assert f"remote 'far' (s3://{bucket}/a folder): no credentials" in refusal.value.why
    assert refusal.value.fix == f"dvc --cd {clone} fetch data/labels.csv"


def test_a_node_without_credentials_says_so_for_each_object(version, clone, bucket, monkeypatch, tmp_path):
    manifest = version(clone)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    come, problems = fetched(manifest, tmp_path / "node")
    assert (come, set(problems)) == ({}, set(FILES))
    assert "no credentials" in problems["binary"]
    assert fetcher_of(manifest).name == f"the remote 'far' (s3://{bucket}/a folder)"


def test_secrets_of_the_clone_are_used_and_never_written_down(version, clone, no_credentials, tmp_path):
    secrets = f"['remote \"far\"']\n    access_key_id = {KEY}\n    secret_access_key = {SECRET}\n"
    (clone / ".dvc/config.local").write_text(secrets)
    manifest = version(clone)
    manifest.write(tmp_path / "m.json")
    assert fetched(Manifest.read(tmp_path / "m.json"), tmp_path / "node")[1] == {}
    ours = [tmp_path / "m.json", *(path for path in (tmp_path / "cache").rglob("*") if path.is_file())]
    assert not [path for path in ours if SECRET in path.read_text() or KEY in path.read_text()]


def test_wrong_bytes_in_the_remote_are_named_and_do_not_arrive(version, buckets, clone, tmp_path, monkeypatch):
    bucket = buckets.make()
    config = clone / ".dvc/config"
    for page in buckets.client.get_paginator("list_objects_v2").paginate(Bucket=first_bucket(config)):
        for row in page["Contents"]:
            source = {"Bucket": first_bucket(config), "Key": row["Key"]}
            buckets.client.copy_object(Bucket=bucket, Key=row["Key"], CopySource=source)
    config.write_text(config.read_text().replace(first_bucket(config), bucket))
    manifest = version(clone)
    checksums = {entry.path: entry.hash for entry in manifest.entries}
    buckets.put(bucket, key_of(checksums["binary"]), b"wrong")
    buckets.client.delete_object(Bucket=bucket, Key=key_of(checksums["empty"]))
    come, problems = fetched(manifest, tmp_path / "node")
    found = "md5:" + hashlib.md5(b"wrong").hexdigest()
    assert set(come) == set(FILES) - {"binary", "empty"}
    assert f"{bucket}/{key_of(checksums['binary'])} has {found}, not {checksums['binary']}" in problems["binary"]
    assert "it is not there" in problems["empty"]
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(RequestError, match=r"1 of the 7 files .* not on this machine or in a remote: 'empty'"):
        version(clone)


def first_bucket(config):
    return config.read_text().partition("s3://")[2].partition("/")[0]


def test_a_remote_can_be_chosen_and_an_unknown_one_has_neighbours(version, clone, tmp_path):
    (clone / ".dvc/config.local").write_text(f"['remote \"spare\"']\n    url = {tmp_path / 'empty'}\n")
    assert version(clone, remote="far").files == len(FILES)
    with pytest.raises(RequestError, match="7 of the 7 files"):
        version(clone, remote="spare")
    with pytest.raises(RequestError, match=r"no remote 'fra' \(did you mean 'far'\?\)") as refusal:
        version(clone, remote="fra")
    assert "'far', 'spare'" in refusal.value.why


def test_a_second_remote_has_what_the_first_has_not(version, clone, buckets, tmp_path):
    other = CONFIG.format(bucket=buckets.make(), endpoint=buckets.endpoint).replace("far", "new")
    (clone / ".dvc/config.local").write_text(other)
    assert fetched(version(clone, rev="v1"), tmp_path / "node") == (FILES, {})


def test_objects_come_over_http(version, clone, origin, tmp_path):
    served = tmp_path / "served"
    shutil.copytree(origin / ".dvc/cache", served)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=served)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        (clone / ".dvc/config.local").write_text(f"[core]\n    remote = web\n['remote \"web\"']\n    url = {url}\n")
        # in programs of their own: DVC never closes its sessions
        manifest = version(clone, rev="v1", remote="web", probe=ask_dvc, ask=ask_remotes)
        assert fetched(manifest, tmp_path / "node", ask=ask_remotes) == (FILES, {})
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


# --- any git repository ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(origin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bare") / "the-repo.git"
    git(folder.parent, "clone", "-q", "--bare", origin, folder)
    return folder


@pytest.mark.parametrize("form", [str, lambda path: f"file://{path}"], ids=["bare", "url"])
def test_a_bare_repository_and_a_url_are_as_good_as_a_clone(version, bare, tmp_path, form):
    manifest = version(form(bare), rev="v1")
    assert fetched(manifest, tmp_path / "node") == (FILES, {})
    assert manifest.repair == f"dvc get --rev {manifest.origin['commit']} {form(bare)} data/digits"
    assert version(form(bare), rev="v1", probe=unreachable) == manifest
    assert version(form(bare), rev=manifest.origin["commit"], probe=unreachable).digest == manifest.digest
    with pytest.raises(RequestError, match="has no revision 'v2'") as refusal:
        version(form(bare), rev="v2")
    assert refusal.value.why == "it has 'main', 'v1'"


def test_a_new_commit_of_a_url_is_seen_and_a_known_one_needs_no_network(version, origin, tmp_path):
    upstream = tmp_path / "upstream.git"
    git(tmp_path, "clone", "-q", "--bare", origin, upstream)
    url = f"file://{upstream}"
    first = version(url)
    git(tmp_path, "clone", "-q", upstream, tmp_path / "work")
    git(tmp_path / "work", "rm", "-q", "data/digits.dvc")
    commit(tmp_path / "work", "three")
    git(tmp_path / "work", "push", "-q", "origin", "main")
    with pytest.raises(RequestError, match="DVC does not track 'data/digits'"):
        version(url)
    shutil.rmtree(upstream)
    assert version(url, rev=first.origin["commit"]).entries == first.entries
    with pytest.raises(RequestError, match=r"repo file://.*upstream\.git cannot be read"):
        version(url)


def test_a_password_in_a_url_is_shown_nowhere(version, tmp_path):
    with pytest.raises(RequestError) as refusal:
        version("http://me:hunter2@127.0.0.1:9/x.git")
    assert "http://127.0.0.1:9/x.git cannot be read" in refusal.value.what
    assert "hunter2" not in str(refusal.value)


def test_a_repository_of_dvc_inside_another_is_found_by_its_path(version, origin, bare, tmp_path):
    for repo in (origin, bare):
        assert fetched(version(repo, "inner/own.bin"), tmp_path / "node") == ({"own.bin": b"inner"}, {})
    assert fetched(version(origin / "inner", "own.bin"), tmp_path / "node") == ({"own.bin": b"inner"}, {})


def test_what_no_repository_of_dvc_is_around_has_those_there_are_as_neighbours(version, tmp_path):
    repo = tmp_path / "mono"
    write(repo, {"a/.dvc/config": b"", "b c/.dvc/config": b"", "code/x.py": b""})
    git(repo, "init", "-q", "-b", "main")
    commit(repo, "x")
    with pytest.raises(RequestError, match="is not a DVC repository") as refusal:
        version(repo, "code/data")
    assert "DVC repositories in 'a', 'b c'" in refusal.value.why


# --- imports --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def importing(origin, bare, buckets, bucket, tmp_path_factory):
    """A repository without a remote that imports: a folder and a file of DVC's, one of git's, and from URLs."""
    repo = tmp_path_factory.mktemp("importing") / "repo"
    outside = tmp_path_factory.mktemp("outside")
    write(outside, {"a folder/x": b"x", "a folder/y/z": b"yz"})
    buckets.put(bucket, "elsewhere/one.bin", b"one")
    repo.mkdir()
    git(repo, "init", "-q", "-b", "main")
    dvc_all(
        repo,
        ["init"],
        ["import", str(origin), "data/digits", "--rev", "v1", "-o", "digits"],
        ["import", f"file://{bare}", "data/labels.csv", "-o", "renamed.csv"],
        ["import", str(origin), "code.py"],
        ["import-url", str(outside / "a folder"), "folder"],
        ["remote", "add", "web", f"s3://{bucket}/elsewhere"],
        ["remote", "modify", "web", "endpointurl", buckets.endpoint],
        ["import-url", "remote://web/one.bin", "one.bin"],
    )
    commit(repo, "imports")
    return repo


IMPORTED = {
    "digits": FILES,
    "renamed.csv": {"renamed.csv": LABELS},
    "code.py": {"code.py": b"pass\n"},
    "folder": {"x": b"x", "y/z": b"yz"},
    "one.bin": {"one.bin": b"one"},
}


def test_imports_that_are_in_the_cache_are_read_from_there(version, importing, tmp_path):
    everything = {
        (f"{path}/{name}" if path in ("digits", "folder") else name): content
        for path, files in IMPORTED.items()
        for name, content in files.items()
    }
    manifest = version(importing, ".")
    assert all(entry.sources for entry in manifest.entries)
    assert fetched(manifest, tmp_path / "node") == (everything, {})


@pytest.mark.parametrize("path", ["digits", "digits/sub", "renamed.csv", "code.py", "one.bin"])
def test_imports_that_are_nowhere_here_come_from_where_they_were_imported(version, importing, tmp_path, path):
    git(tmp_path, "clone", "-q", importing, tmp_path / "fresh")
    expected = IMPORTED.get(path) or {"日本/é": b"5"}
    manifest = version(tmp_path / "fresh", path)
    assert fetched(manifest, tmp_path / "node") == (expected, {})
    assert {entry.path: entry.size for entry in manifest.entries} == {
        name: len(data) for name, data in expected.items()
    }


def test_the_files_of_an_imported_folder_come_from_its_url_while_they_are_as_they_were(version, importing, tmp_path):
    git(tmp_path, "clone", "-q", importing, tmp_path / "fresh")
    listing = next(
        path for path in (importing / ".dvc/cache").rglob("*.dir") if len(json.loads(path.read_bytes())) == 2
    )
    here = tmp_path / "fresh/.dvc/cache" / listing.relative_to(importing / ".dvc/cache")
    write(here.parent, {here.name: listing.read_bytes()})
    assert fetched(version(tmp_path / "fresh", "folder"), tmp_path / "node") == (IMPORTED["folder"], {})


# --- objects under their own names, with versions -------------------------------------------------------


@pytest.mark.parametrize("kind", ["version_aware", "worktree"])
def test_outputs_that_the_bucket_keeps_the_versions_of_come_at_their_versions(version, buckets, tmp_path, kind):
    repo, bucket = tmp_path / "repo", buckets.make(versioned=True)
    plain = {name: content for name, content in FILES.items() if "\n" not in name}  # DVC itself loses that one
    write(repo, {f"data/{name}": content for name, content in plain.items()})
    write(repo, {"one.bin": b"one"})
    git(repo, "init", "-q", "-b", "main")
    options = {"url": f"s3://{bucket}/top", "endpointurl": buckets.endpoint, kind: "true"}
    remote = [["remote", "modify", "far", name, value] for name, value in options.items()]
    add = [["remote", "add", "-d", "far", options["url"]], *remote]
    dvc_all(repo, ["init"], *add, ["add", "data", "one.bin"], ["push"])
    commit(repo, "one")
    write(repo, {"data/plain.txt": b"changed", "one.bin": b"two"})
    dvc_all(repo, ["add", "data", "one.bin"], ["push"])
    commit(repo, "two")
    git(tmp_path, "clone", "-q", repo, tmp_path / "fresh")
    changed = {**plain, "plain.txt": b"changed"}
    for rev, files, one in [("HEAD~1", plain, b"one"), ("HEAD", changed, b"two")]:
        expected = {"one.bin": one, **{f"data/{name}": content for name, content in files.items()}}
        assert fetched(version(tmp_path / "fresh", ".", rev), tmp_path / rev) == (expected, {})


# --- the program that asks ------------------------------------------------------------------------------


def test_a_program_that_breaks_is_the_problem_of_what_it_did_not_answer(tmp_path):
    entry = Entry(path="x", hash="md5:" + "0" * 32, size=1, sources=(), remote=("far",))
    remote = {"name": "far", "url": str(tmp_path), "folder": None, "kind": "files", "config": {}, "dvc_root": ""}
    (arrival,) = DvcFetcher(remotes=[remote]).fetch([entry], tmp_path, threading.Event())
    assert (arrival.path, arrival.problem) == (None, "IndexError: list index out of range")


def _command(process):
    """Return a process's command; nothing of one that has ended, and is only yet to be waited for."""
    try:
        return " ".join(process.cmdline())
    except (psutil.ZombieProcess, psutil.NoSuchProcess):
        return ""


def test_who_stops_listening_ends_the_transfers(version, clone, tmp_path):
    (tmp_path / "node").mkdir()
    manifest = version(clone)
    arrivals = fetcher_of(manifest).fetch(manifest.entries, tmp_path / "node", threading.Event())
    next(arrivals)
    arrivals.close()
    before = sorted(os.listdir(tmp_path / "node"))
    assert not [process for process in psutil.Process().children() if "dvc_remote" in _command(process)]
    assert sorted(os.listdir(tmp_path / "node")) == before


@pytest.mark.parametrize("option", ["configpath", "credentialpath"])
def test_a_clones_own_configuration_names_no_program_and_the_users_own_may(
    version, clone, no_credentials, tmp_path, option, monkeypatch
):
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name)
    answer = json.dumps({"Version": 1, "AccessKeyId": KEY, "SecretAccessKey": SECRET})
    (tmp_path / "program").write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\necho '{answer}'\n")
    (tmp_path / "program").chmod(0o755)
    (tmp_path / "aws").write_text(f"[default]\nCredential_Process = {tmp_path / 'program'}\n")
    section = f"['remote \"far\"']\n    {option} = {tmp_path / 'aws'}\n"
    (clone / ".dvc/config.local").write_text(section)
    with pytest.raises(RequestError, match=f"names a program \\({option}\\)"):
        version(clone)
    assert not (tmp_path / "ran").exists()
    own = Path(os.environ["DVC_GLOBAL_CONFIG_DIR"], "config")
    own.parent.mkdir(exist_ok=True)
    own.write_text(f"{section}    url = s3://any\n")
    try:
        assert version(clone).files == len(FILES)
    finally:
        own.unlink()
    assert (tmp_path / "ran").exists()
