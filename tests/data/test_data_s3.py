"""A prefix of a bucket becomes a version, and its bytes come to the node; on a real S3-compatible server."""

import hashlib
import os
import threading
from dataclasses import replace

import pytest
from buckets import KEY, SECRET

from orchestrator.data import Manifest, fetcher_of, resolve
from orchestrator.data.checksum import checksum_of
from orchestrator.errors import ConfigError, RequestError

FILES = {
    "plain.txt": b"1\n",
    "empty": b"",
    "with space": b"2",
    "quo'te\"": b"4",
    "sub/deep/日本/é": b"5",
    "a+b&c=d?e#f%20": b"6",
    "binary": bytes(range(256)) * 500,
}
MIB = 2**20
LARGE = b"x" * (5 * MIB) + b"y" * (5 * MIB) + b"z"


@pytest.fixture(autouse=True)
def credentials(monkeypatch, tmp_path):
    """Give the tests' credentials in the environment, and keep the user's own settings out of it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def fill(buckets, bucket, files=FILES, prefix="raw/"):
    for name, content in files.items():
        buckets.put(bucket, f"{prefix}{name}", content)


@pytest.fixture(scope="module")
def plain(buckets):
    """A bucket that keeps no versions."""
    bucket = buckets.make()
    fill(buckets, bucket)
    buckets.put(bucket, "raw2/other", b"beside")
    buckets.put(bucket, "raw/folder marker/", b"")
    return bucket


@pytest.fixture
def version(buckets, tmp_path):
    """Resolve a URL of the server, with further keys."""

    def resolved(url, **keys):
        asked = {"source": "s3", "url": url, "endpoint_url": buckets.endpoint, **keys}
        return resolve(asked, project=tmp_path, cache=tmp_path / "cache")

    return resolved


def fetched(manifest, folder):
    """Return what the origin brings, by path, and what it says of the rest."""
    folder.mkdir(exist_ok=True)
    come, problems = {}, {}
    for arrival in fetcher_of(manifest).fetch(manifest.entries, folder, threading.Event()):
        if arrival.path:
            assert checksum_of(arrival.path, arrival.entry.algorithm) == arrival.entry.hash
            come[arrival.entry.path] = arrival.path.read_bytes()
        else:
            problems[arrival.entry.path] = arrival.problem
    return come, problems


@pytest.mark.parametrize("url", ["raw", "raw/"])
def test_all_files_below_a_prefix_are_listed_and_brought_with_their_bytes(version, plain, tmp_path, url):
    manifest = version(f"s3://{plain}/{url}")
    assert {entry.path: entry.size for entry in manifest.entries} == {name: len(FILES[name]) for name in FILES}
    assert fetched(manifest, tmp_path / "node") == (FILES, {})


def test_the_whole_bucket_and_a_single_object_are_versions_too(version, plain):
    assert {entry.path for entry in version(f"s3://{plain}").entries} == {f"raw/{name}" for name in FILES} | {
        "raw2/other"
    }
    assert [entry.path for entry in version(f"s3://{plain}/raw/sub/deep/日本/é").entries] == ["é"]


def test_the_same_files_are_the_same_version_as_in_a_folder(version, plain, tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    folder = resolve({"source": "directory", "path": "folder"}, project=tmp_path, cache=tmp_path / "cache")
    assert version(f"s3://{plain}/raw").digest == folder.digest


def test_a_manifest_can_be_written_down_and_holds_no_secret(version, plain, tmp_path):
    manifest = version(f"s3://{plain}/raw")
    manifest.write(tmp_path / "m.json")
    assert fetched(Manifest.read(tmp_path / "m.json"), tmp_path / "node") == (FILES, {})
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "node"]
    assert kept
    assert not [path for path in kept if SECRET in path.read_text() or KEY in path.read_text()]


def test_a_version_stays_what_it_was_after_its_objects_were_overwritten_and_deleted(version, buckets, tmp_path):
    bucket = buckets.make(versioned=True)
    fill(buckets, bucket)
    first = version(f"s3://{bucket}/raw")
    buckets.put(bucket, "raw/plain.txt", b"changed")
    buckets.client.delete_object(Bucket=bucket, Key="raw/binary")
    second = version(f"s3://{bucket}/raw")
    assert fetched(first, tmp_path / "one") == (FILES, {})
    expected = {**FILES, "plain.txt": b"changed"}
    del expected["binary"]
    assert fetched(second, tmp_path / "two") == (expected, {})
    assert first.origin["versioned"]


def test_without_versions_a_changed_object_is_refused_by_its_name(version, buckets, tmp_path):
    bucket = buckets.make()
    fill(buckets, bucket)
    manifest = version(f"s3://{bucket}/raw")
    buckets.put(bucket, "raw/plain.txt", b"changed")
    buckets.client.delete_object(Bucket=bucket, Key="raw/binary")
    come, problems = fetched(manifest, tmp_path / "node")
    assert come == {name: content for name, content in FILES.items() if name not in ("plain.txt", "binary")}
    found = "md5:" + hashlib.md5(b"changed").hexdigest()
    assert f"s3://{bucket}/raw/plain.txt has {found}" in problems["plain.txt"]
    assert "changed after the launch" in problems["plain.txt"]
    assert f"s3://{bucket}/raw/binary" in problems["binary"]


# --- hashes ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(buckets):
    """A bucket with an object that was uploaded in parts."""
    bucket = buckets.make()
    buckets.put_in_parts(bucket, "d/large", LARGE, part_bytes=5 * MIB)
    return bucket


def test_an_object_uploaded_in_parts_is_verified_by_the_hash_of_its_parts(version, large, tmp_path):
    manifest = version(f"s3://{large}/d")
    assert manifest.entries[0].hash.startswith(f"md5-parts-{5 * MIB}:")
    assert fetched(manifest, tmp_path / "node") == ({"large": LARGE}, {})
    wrong = Manifest.of(
        [replace(manifest.entries[0], hash=f"md5-parts-{5 * MIB + 1}:{'0' * 32}")], origin=manifest.origin
    )
    assert "has md5-parts-" in fetched(wrong, tmp_path / "node")[1]["large"]


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
def test_the_hash_of_parts_does_not_depend_on_how_they_are_read(size, chunk):
    from orchestrator.data.checksum import Checksum

    content = bytes(range(size))
    checksum = Checksum("md5-parts-4")
    for at in range(0, size, chunk):
        checksum.update(content[at : at + chunk])
    parts = b"".join(hashlib.md5(content[at : at + 4]).digest() for at in range(0, size, 4))
    assert str(checksum) == "md5-parts-4:" + hashlib.md5(parts).hexdigest()


def test_parts_of_several_sizes_are_read_once_and_remembered(version, buckets, tmp_path):
    bucket = buckets.make()
    at = {"Bucket": bucket, "Key": "d/odd"}
    upload = buckets.client.create_multipart_upload(**at)["UploadId"]
    contents = [b"a" * (5 * MIB), b"b" * (6 * MIB), b"c" * (6 * MIB)]
    done = [
        buckets.client.upload_part(**at, UploadId=upload, PartNumber=number, Body=body)
        for number, body in enumerate(contents, 1)
    ]
    parts = [{"PartNumber": number, "ETag": each["ETag"]} for number, each in enumerate(done, 1)]
    buckets.client.complete_multipart_upload(**at, UploadId=upload, MultipartUpload={"Parts": parts})
    checksum = "md5:" + hashlib.md5(b"".join(contents)).hexdigest()
    assert version(f"s3://{bucket}/d").entries[0].hash == checksum
    (kept,) = (tmp_path / "cache/s3").iterdir()
    kept.write_text(
        kept.read_text().replace(checksum, "md5:" + "0" * 32)
    )  # proves that the kept answer is what is used
    assert version(f"s3://{bucket}/d").entries[0].hash == "md5:" + "0" * 32


def test_a_store_whose_etags_are_not_trusted_is_asked_or_read(version, buckets, large):
    bucket = buckets.make()
    buckets.put(bucket, "d/told", b"told", ChecksumAlgorithm="SHA256")
    buckets.put(bucket, "d/untold", b"untold")
    hashes = {entry.path: entry.hash for entry in version(f"s3://{bucket}/d", hash="content").entries}
    assert hashes == {
        "told": "sha256:" + hashlib.sha256(b"told").hexdigest(),
        "untold": "md5:" + hashlib.md5(b"untold").hexdigest(),
    }
    assert version(f"s3://{large}/d", hash="content").entries[0].hash == "md5:" + hashlib.md5(LARGE).hexdigest()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"question": null, "answer": []}'])
def test_a_damaged_memory_is_none(version, large, tmp_path, damage):
    first = version(f"s3://{large}/d")
    (kept,) = (tmp_path / "cache/s3").iterdir()
    kept.write_text(damage)
    assert version(f"s3://{large}/d") == first


# --- wrong requests -------------------------------------------------------------------------------------


def test_an_unknown_bucket_and_prefix_are_refused_with_their_neighbours(version, plain, buckets):
    with pytest.raises(RequestError, match="there is no bucket") as refusal:
        version(f"s3://{plain}x/raw")
    assert f"'{plain}'" in refusal.value.why
    with pytest.raises(RequestError, match=r"did you mean 'raw2?/'") as refusal:
        version(f"s3://{plain}/rawx")
    assert "'raw/', 'raw2/'" in refusal.value.why
    with pytest.raises(RequestError, match="holds no files") as refusal:
        version(f"s3://{plain}/raw/plain")
    assert "'raw/plain.txt'" in refusal.value.why
    with pytest.raises(RequestError, match="holds no files") as refusal:
        version(f"s3://{plain}/war/deep/er")
    assert "'raw/', 'raw2/'" in refusal.value.why
    with pytest.raises(RequestError, match="has nothing there"):
        version(f"s3://{buckets.make()}")


def test_missing_and_wrong_credentials_are_said_at_launch_and_on_the_node(version, plain, monkeypatch, tmp_path):
    manifest = version(f"s3://{plain}/raw")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(RequestError, match="cannot be read: access refused") as refusal:
        version(f"s3://{plain}/raw")
    assert f"s3 ls 's3://{plain}/raw'" in refusal.value.fix
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(RequestError, match="no credentials"):
        version(f"s3://{plain}/raw")
    come, problems = fetched(manifest, tmp_path / "node")
    assert come == {}
    assert f"s3://{plain}/raw/plain.txt: no credentials: set AWS_PROFILE" in problems["plain.txt"]


def test_a_profile_is_taken_from_awss_own_files(version, plain, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    (tmp_path / "aws credentials").write_text(f"[lab]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n")
    manifest = version(f"s3://{plain}/raw", profile="lab")
    assert fetched(manifest, tmp_path / "node") == (FILES, {})
    with pytest.raises(RequestError, match=r"no profile 'lap' \(did you mean 'lab'\?\)"):
        version(f"s3://{plain}/raw", profile="lap")


def test_an_endpoint_that_only_the_environment_names_is_pinned(plain, buckets, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", buckets.endpoint)
    asked = {"source": "s3", "url": f"s3://{plain}/raw"}
    manifest = resolve(asked, project=tmp_path, cache=tmp_path / "cache")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert fetched(manifest, tmp_path / "node") == (FILES, {})


def test_a_store_that_does_not_answer_is_named(tmp_path):
    asked = {"source": "s3", "url": "s3://some-bucket/raw", "endpoint_url": "http://127.0.0.1:9"}
    with pytest.raises(RequestError, match=r"s3://some-bucket/raw cannot be read: .*127\.0\.0\.1:9"):
        resolve(asked, project=tmp_path, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"url": "bucket/prefix"}, "names no bucket"),
        ({"url": "s3://"}, "names no bucket"),
        ({"url": "s3://UPPER/x"}, "names no bucket"),
        ({"url": "s3://bucket/x", "endpoint_url": "not a url"}, "cannot be reached"),
        ({"url": "s3://bucket/x", "hash": "contents"}, "did you mean 'content'"),
        ({"url": "s3://bucket/x", "secret": "x"}, "unknown key 'secret'"),
        ({}, "has no 'url'"),
    ],
)
def test_keys_that_make_no_sense_are_a_configuration_error(keys, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        resolve({"source": "s3", **keys}, project=tmp_path, cache=tmp_path / "cache")
