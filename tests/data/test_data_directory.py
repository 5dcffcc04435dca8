"""A folder becomes a version: hashed once, checked for what cannot be one; and wrong requests say so."""

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from orchestrator.data import resolve
from orchestrator.data.checksum import checksum_of
from orchestrator.data.sources import directory as directory_source
from orchestrator.data.sources.directory import DirectoryVersion
from orchestrator.errors import ConfigError, RequestError


@pytest.fixture
def project(tmp_path):
    """A project whose data has names that break careless code."""
    files = {
        "plain": b"1",
        "empty": b"",
        "with space": b"2",
        "new\nline": b"3",
        "quo'te\"": b"4",
        "日本/é": b"5",
        "deep/er/still": b"6" * 3_000_000,
        ".hidden": b"7",
    }
    for name, content in files.items():
        path = tmp_path / "my project" / "the data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "my project"


def resolved(project, path="the data"):
    return resolve({"source": "directory", "path": path}, project=project, cache=project.parent / "cache")


def test_every_file_is_listed_with_its_md5_size_and_place(project):
    entries = {entry.path: entry for entry in resolved(project).entries}
    expected = {p.relative_to(project / "the data").as_posix() for p in (project / "the data").rglob("*")}
    assert set(entries) == {path for path in expected if (project / "the data" / path).is_file()}
    for entry in entries.values():
        content = Path(entry.sources[0]).read_bytes()
        assert entry.hash == "md5:" + hashlib.md5(content).hexdigest()
        assert entry.size == len(content)


def test_where_the_folder_lies_does_not_matter(project, tmp_path):
    before = resolved(project)
    (project / "the data").rename(tmp_path / "elsewhere")
    after = resolved(project, str(tmp_path / "elsewhere"))
    assert after.digest == before.digest


def test_a_changed_a_new_and_a_removed_file_change_the_version(project):
    digests = {resolved(project).digest}
    (project / "the data" / "plain").write_bytes(b"0")
    digests.add(resolved(project).digest)
    (project / "the data" / "new").write_bytes(b"0")
    digests.add(resolved(project).digest)
    (project / "the data" / "plain").unlink()
    digests.add(resolved(project).digest)
    assert len(digests) == 4


def later() -> int:
    return time.time_ns() + 10**10


def kept_answer(cache: Path) -> Path:
    (path,) = (cache / "directory").iterdir()
    return path


def test_a_file_is_hashed_once(project, tmp_path):
    version, cache = DirectoryVersion(path="the data"), tmp_path / "cache"
    first = directory_source.resolve(version, project=project, cache=cache, clock=later)
    kept = kept_answer(cache)
    known, other = first.entries[-1].hash, "md5:" + "0" * 32
    kept.write_text(kept.read_text().replace(known, other))  # proves that the kept answer is what is used
    second = directory_source.resolve(version, project=project, cache=cache, clock=later)
    assert [e.path for e in second.entries if e.hash == other] == [first.entries[-1].path]


def test_a_file_too_young_to_tell_is_not_kept(project, tmp_path):
    resolved(project)
    assert not (tmp_path / "cache" / "directory").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"question": null, "answer": []}'])
def test_a_damaged_cache_is_no_cache(project, tmp_path, content):
    version, cache = DirectoryVersion(path="the data"), tmp_path / "cache"
    first = directory_source.resolve(version, project=project, cache=cache, clock=later)
    kept_answer(cache).write_bytes(content)
    assert directory_source.resolve(version, project=project, cache=cache, clock=later) == first


@pytest.mark.parametrize("damage", [[], [1], "x", [0, 0, 0, 0, 7], None])
def test_a_damaged_row_of_the_cache_is_no_row(project, tmp_path, damage):
    version, cache = DirectoryVersion(path="the data"), tmp_path / "cache"
    first = directory_source.resolve(version, project=project, cache=cache, clock=later)
    value = json.loads(kept_answer(cache).read_text())
    value["answer"] = dict.fromkeys(value["answer"], damage)
    kept_answer(cache).write_text(json.dumps(value))
    assert directory_source.resolve(version, project=project, cache=cache, clock=later) == first


def test_a_cache_that_cannot_be_written_is_no_error(project, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    version, cache = DirectoryVersion(path="the data"), tmp_path / "cache"
    assert directory_source.resolve(version, project=project, cache=cache, clock=later).files == 8


def test_symbolic_links_that_stay_inside_are_followed(project):
    (project / "the data" / "link").symlink_to("plain")
    (project / "the data" / "folder link").symlink_to("deep")
    paths = {entry.path: entry.hash for entry in resolved(project).entries}
    assert paths["link"] == paths["plain"]
    assert paths["folder link/er/still"] == paths["deep/er/still"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.symlink_to("/"), "leads out of the data version"),
        (lambda p: p.symlink_to("../../"), "leads out of the data version"),
        (lambda p: p.symlink_to("."), "leads to a folder that it is in"),
        (lambda p: p.symlink_to("nothing"), "cannot be read: No such file"),
        (lambda p: p.symlink_to(p.name), "cannot be read"),
        (os.mkfifo, "neither a file nor a folder"),
    ],
)
def test_what_cannot_be_data_is_refused_by_its_path(project, make, message):
    make(project / "the data" / "odd one")
    with pytest.raises(RequestError, match=message) as refusal:
        resolved(project)
    assert "the data/odd one" in refusal.value.what
    assert refusal.value.fix


@pytest.mark.parametrize("content", [b"x" * 3_000_000, b"longer" * 10**6])
def test_a_file_that_changes_while_it_is_hashed_is_refused(project, monkeypatch, content):
    """Also where its size stays: half of the hash would be of bytes that are no more."""

    def changes_meanwhile(path, algorithm):
        checksum = checksum_of(path, algorithm)
        if path.name == "still":
            path.write_bytes(content)
        return checksum

    monkeypatch.setattr(directory_source, "checksum_of", changes_meanwhile)
    with pytest.raises(RequestError, match=r"deep/er/still changed while it was read"):
        resolved(project)


def test_folders_within_folders_end_somewhere(project):
    deep = project / "the data"
    for _ in range(600):
        deep = deep / "d"
        deep.mkdir()
    (deep / "file").touch()
    with pytest.raises(RequestError, match="deeper than 256"):
        resolved(project)


def test_an_empty_folder_is_refused(project):
    (project / "nothing" / "in here").mkdir(parents=True)
    with pytest.raises(RequestError, match="holds no files"):
        resolved(project, "nothing")


def test_a_folder_that_is_not_there_is_refused_with_its_neighbour(project):
    with pytest.raises(RequestError, match="did you mean 'the data'"):
        resolved(project, "the dta")
    with pytest.raises(RequestError, match="is a file"):
        resolved(project, "the data/plain")


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ({}, "source: None"),
        ({"source": "dcv", "path": "x"}, "did you mean 'dvc'"),
        ({"source": ["dvc"], "path": "x"}, "known are dvc, directory, s3"),
        ({"source": "directory"}, "has no 'path'"),
        ({"source": "directory", "path": None}, "has no 'path'"),
        ({"source": "directory", "path": ""}, "it must be text"),
        ({"source": "directory", "path": 3}, "path: 3"),
        ({"source": "directory", "path": "a\0b"}, "it must be text"),
        ({"source": "directory", "path": "x", "rev": "v1"}, "unknown key 'rev'"),
        ({"source": "dvc", "path": "x", "revv": "v1"}, "did you mean 'rev'"),
        ({"source": "dvc", "path": "x", "rev": 1.0}, "rev: 1.0"),
        ({"source": "dvc", "path": "../x"}, "leads out of its repository"),
        ({"source": "dvc", "path": "/x"}, "leads out of its repository"),
    ],
)
def test_a_version_that_makes_no_sense_is_a_configuration_error(version, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as refusal:
        resolve(version, project=tmp_path, cache=tmp_path / "cache")
    assert refusal.value.fix
    assert not (tmp_path / "cache").exists()
