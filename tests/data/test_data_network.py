"""Objects that come over a network that breaks or falls silent: the right bytes in the end, or an error by name."""

import json
import os
import threading
from dataclasses import replace

import pytest
from buckets import KEY, SECRET
from faulty_wire import wire_to
from repositories import commit, dvc_all, git, probe_here, tree, write
from small_disk import MB

from orchestrator.data import Staging, Store, fetcher_of, resolve
from orchestrator.errors import DataError

LARGE = bytes(range(256)) * 20_000
FILES = {"large.bin": LARGE, "small": b"1", "sub/日本": b"2", "empty": b""}

pytestmark = pytest.mark.usefixtures("private_settings")


@pytest.fixture(scope="module", autouse=True)
def credentials(tmp_path_factory):
    """Give the tests' credentials in the environment, and keep the user's own settings out of it."""
    files = tmp_path_factory.mktemp("aws")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", str(files / "config"))
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(files / "credentials"))
        yield


@pytest.fixture(scope="module")
def bucket(buckets):
    bucket = buckets.make()
    for name, content in FILES.items():
        buckets.put(bucket, f"raw/{name}", content)
    return bucket


@pytest.fixture(scope="module")
def repository(buckets, bucket, tmp_path_factory):
    """A repository of the same files, whose objects are in the bucket."""
    repo = tmp_path_factory.mktemp("repository") / "repo"
    write(repo, {f"raw/{name}": content for name, content in FILES.items()})
    git(repo, "init", "-q", "-b", "main")
    add = ["remote", "add", "-d", "far", f"s3://{bucket}/dvc"]
    dvc_all(repo, ["init"], add, ["remote", "modify", "far", "endpointurl", buckets.endpoint], ["add", "raw"], ["push"])
    commit(repo, "one")
    return repo


@pytest.fixture
def wire(buckets):
    with wire_to(buckets.endpoint) as wire:
        yield wire


@pytest.fixture(params=["s3", "dvc"])
def version(request, bucket, repository, wire, tmp_path):
    """The manifest of a version whose objects are only in the bucket, at the other end of the wire."""
    if request.param == "s3":
        asked = {"source": "s3", "url": f"s3://{bucket}/raw", "endpoint_url": wire.endpoint}
    else:
        git(tmp_path, "clone", "-q", repository, tmp_path / "clone")
        (tmp_path / "clone/.dvc/config.local").write_text(f"['remote \"far\"']\n    endpointurl = {wire.endpoint}\n")
        asked = {"source": "dvc", "repo": str(tmp_path / "clone"), "path": "raw"}
    return resolve(asked, project=tmp_path, cache=tmp_path / "cache", probe=probe_here)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "scratch", Staging(keep_free_gb=0))


def left_over(store):
    return [path for part in ("work", "copiers") for path in (store.root / part).glob("*")]


def test_a_connection_that_breaks_in_the_middle_is_tried_again(store, version, wire):
    wire.cuts = 2
    staged = store.stage(version, fetcher=fetcher_of(version))
    assert tree(staged.view) == FILES
    assert wire.cuts == 0
    assert left_over(store) == []


def test_what_never_comes_whole_is_named_and_the_next_staging_goes_on(store, version, wire):
    wire.cuts = 1000
    with pytest.raises(DataError, match=r"no right copy of 'large\.bin'") as refusal:
        store.stage(version, fetcher=fetcher_of(version))
    assert fetcher_of(version).name in refusal.value.why
    assert store.versions() == []
    assert left_over(store) == []
    wire.cuts = 0
    staged = store.stage(version, fetcher=fetcher_of(version))
    assert tree(staged.view) == FILES
    assert staged.copied_bytes >= len(LARGE)


def test_what_comes_slowly_is_seen_coming_by_who_copies_and_who_waits(store, version, wire):
    wire.silent = True
    seen = threading.Event()
    errors: list[BaseException] = []

    def told(progress):
        if seen.is_set():
            raise KeyboardInterrupt

    def copy():
        try:
            store.stage(version, fetcher=fetcher_of(version), report=told)
        except BaseException as error:  # noqa: BLE001 - it is looked at below
            errors.append(error)

    def look(progress):
        if progress.waiting_for and 0 < progress.bytes < progress.total_bytes and wire.fell_silent.is_set():
            raise StopIteration

    copier = threading.Thread(target=copy)
    copier.start()
    assert wire.fell_silent.wait(60)
    with pytest.raises(StopIteration):
        Store(store.root).stage(version, fetcher=fetcher_of(version), report=look)
    seen.set()
    copier.join(30)  # a server that says nothing holds nobody who was told to end
    assert not copier.is_alive()
    assert [type(error) for error in errors] == [KeyboardInterrupt]
    assert (store.versions(), left_over(store)) == ([], [])


def test_what_an_earlier_boot_has_brought_is_not_fetched_again(store, version, wire):
    staged = store.stage(version, fetcher=fetcher_of(version))
    staged.release()
    facts = staged.version.facts()
    staged.version.marker.unlink()
    staged.version.marker.write_text(json.dumps(replace(facts, boot="before").to_json()))
    (boot,) = (store.root / "objects").iterdir()
    boot.rename(boot.with_name("before"))
    connections = wire.connections
    again = store.stage(version, fetcher=fetcher_of(version))
    assert tree(again.view) == FILES
    assert (again.hit, wire.connections) == (False, connections)
    assert tree(store.root / "objects/before") == {}  # what is right is kept, not copied


@pytest.mark.parametrize("small_disk", ["tmpfs"], indirect=True)
def test_a_disk_that_fills_up_while_objects_come_is_told_as_that(version, small_disk):
    store, others = Store(small_disk.path / "scratch", Staging(keep_free_gb=0)), []

    def fill(progress):
        if not others:
            others.append(small_disk.leave_bytes(2 * MB))

    with pytest.raises(DataError, match="No space left on device while copying"):
        store.stage(version, fetcher=fetcher_of(version), report=fill)
    assert tree(store.root) == {}
