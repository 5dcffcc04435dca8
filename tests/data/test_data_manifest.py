"""A manifest's digest is its content; what is read back is what was written, or an error."""

import hashlib
import json
from dataclasses import replace

import pytest

from orchestrator.data.manifest import Entry, Manifest
from orchestrator.errors import DataError, StateError

ONE, TWO = "md5:" + "1" * 32, "md5:" + "2" * 32
NASTY = [
    "with space",
    "quo'te\"",
    "new\nline",
    "ünïcode-日本",
    "back\\slash",
    "-dash",
    "a/b/c",
    "bytes-\udcff",
]


def entry(path, checksum=ONE, size=1, sources=("/somewhere",)):
    return Entry(path=path, hash=checksum, size=size, sources=sources)


def manifest(*entries):
    return Manifest.of(entries, origin={"source": "directory"})


def test_the_digest_is_that_of_the_paths_and_checksums_alone():
    here = manifest(entry("a"), entry("b", TWO))
    there = manifest(entry("b", TWO, size=9, sources=("/x", "/y")), entry("a"))
    listing = f'[["a","{ONE}"],["b","{TWO}"]]'
    assert here.digest == there.digest == hashlib.sha256(listing.encode()).hexdigest()


@pytest.mark.parametrize("other", [[entry("a", TWO)], [entry("b")], [entry("a"), entry("b")], []])
def test_other_content_has_another_digest(other):
    assert manifest(*other).digest != manifest(entry("a")).digest


def test_it_knows_its_size():
    both = manifest(entry("a", size=3), entry("b", size=4))
    assert (both.files, both.bytes) == (2, 7)


@pytest.mark.parametrize("path", NASTY)
def test_any_name_survives_writing_and_reading(path, tmp_path):
    written = manifest(entry(path), entry("z", TWO, sources=("/a b", "/c\nd")))
    written.write(tmp_path / "new folder" / "m.json")
    assert Manifest.read(tmp_path / "new folder" / "m.json") == written


def test_what_a_remote_needs_to_know_survives_writing_and_reading(tmp_path):
    written = manifest(replace(entry("a"), remote=("s3", "key with\nnewline", "")), entry("b"))
    written.write(tmp_path / "m.json")
    assert Manifest.read(tmp_path / "m.json") == written
    assert written.digest == manifest(entry("a"), entry("b")).digest


def test_a_manifest_of_the_first_version_is_read_for_ever(tmp_path):
    """As it was written before entries could say where a remote has them."""
    rows = [["a", ONE, 1, ["/somewhere"]], ["b/c", TWO, 2, []]]
    digest = hashlib.sha256(f'[["a","{ONE}"],["b/c","{TWO}"]]'.encode()).hexdigest()
    old = {"version": 1, "digest": digest, "origin": {"source": "dvc"}, "entries": rows}
    (tmp_path / "m.json").write_text(json.dumps(old))
    read = Manifest.read(tmp_path / "m.json")
    assert (read.digest, read.entries[1]) == (digest, entry("b/c", TWO, 2, ()))


@pytest.mark.parametrize("path", ["", "/absolute", "..", "a/../b", "./a", "a/.", "a//b", "a/", "nul\0", "/"], ids=repr)
def test_a_path_that_is_not_plainly_inside_is_refused(path):
    with pytest.raises(DataError, match="a path must be relative"):
        manifest(entry(path))


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("a/" + "n" * 256, "more than 255 bytes"),
        ("日" * 86, "more than 255 bytes"),
        ("\ud800", "surrogates not allowed"),
        ("/".join("d" * 257), "deeper than 256 folders"),
    ],
    ids=["long", "long in bytes", "no text", "deep"],
)
def test_a_name_that_no_filesystem_takes_is_refused(path, why):
    with pytest.raises(DataError, match=why):
        manifest(entry(path))
    manifest(entry("n" * 255), entry("日" * 85), entry("/".join("d" * 256)), entry("/".join(["m" * 255] * 9)))


def test_paths_that_contradict_each_other_are_refused():
    with pytest.raises(DataError, match="listed twice"):
        manifest(entry("a"), entry("a", TWO))
    with pytest.raises(DataError, match="as a file and as a folder"):
        manifest(entry("a/b"), entry("a/b/c"), entry("a/b-c"))


@pytest.mark.parametrize("checksum", ["", "md5:", "md5:12", "crc:" + "1" * 32, "md5:" + "G" * 32, "1" * 32])
def test_a_checksum_of_another_kind_is_refused(checksum):
    with pytest.raises(DataError, match="not a checksum"):
        manifest(entry("a", checksum))


def test_a_size_below_zero_is_refused():
    with pytest.raises(DataError, match="its size is -1"):
        manifest(entry("a", size=-1))


@pytest.mark.parametrize(
    "damage",
    [
        lambda j: j.pop("entries"),
        lambda j: j.pop("version"),
        lambda j: j.update(version=3),
        lambda j: j.update(digest="0" * 64),
        lambda j: j.update(origin=None),
        lambda j: j["entries"].pop(),
        lambda j: j["entries"][0].pop(),
        lambda j: j["entries"].append(["../x", ONE, 1, []]),
        lambda j: j["entries"].__setitem__(0, ["a", ONE, "1", []]),
        lambda j: j["entries"].__setitem__(0, ["a", ONE, True, []]),
        lambda j: j["entries"].__setitem__(0, ["a", ONE, 1, "/a"]),
        lambda j: j["entries"].__setitem__(0, ["a", ONE, 1, [1]]),
        lambda j: j["entries"].__setitem__(0, ["a", ONE, 1, [], "key"]),
        lambda j: j["entries"].__setitem__(0, ["a", ONE, 1, [], [1]]),
        lambda j: j["entries"].__setitem__(0, ["a", ONE, 1, [], ["key"], []]),
        lambda j: j["entries"].__setitem__(0, ["a", TWO, 1, []]),
    ],
)
def test_a_damaged_manifest_is_refused_by_its_path(damage, tmp_path):
    value = manifest(entry("a"), entry("b")).to_json()
    damage(value)
    path = tmp_path / "m.json"
    path.write_text(json.dumps(value))
    with pytest.raises(StateError) as refusal:
        Manifest.read(path)
    assert str(path) in refusal.value.what
    assert refusal.value.fix


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"version": 1}'])
def test_what_is_no_manifest_is_refused_by_its_path(content, tmp_path):
    path = tmp_path / "m.json"
    path.write_bytes(content)
    with pytest.raises(StateError, match=r"m\.json"):
        Manifest.read(path)


def test_a_missing_manifest_is_refused_by_its_path(tmp_path):
    with pytest.raises(StateError, match=r"nowhere\.json"):
        Manifest.read(tmp_path / "nowhere.json")


def test_the_same_entries_can_be_read_from_elsewhere():
    near = manifest(entry("a"))
    far = Manifest.of([replace(e, sources=("/far",)) for e in near.entries], origin={"source": "dvc"})
    assert far.digest == near.digest
