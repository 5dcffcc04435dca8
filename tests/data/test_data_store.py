"""A view holds exactly the manifest's bytes, or staging fails and leaves nothing half-done."""

import errno
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from campaigns import SEED, amount

from orchestrator.data import Manifest, Progress, Staging, Store, resolve, scratch_dir
from orchestrator.data.fetch import Arrival
from orchestrator.data.manifest import Entry
from orchestrator.data.store import objects
from orchestrator.data.store.copy_claims import CopyClaims
from orchestrator.data.store.holder import Holder
from orchestrator.data.store.objects import WRITTEN_NS, Objects
from orchestrator.data.store.scratch import taken
from orchestrator.errors import DataError
from orchestrator.system.processes import boot_id

REPOSITORY = Path(__file__).resolve().parents[2]


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def left_over(root):
    """Return what is unfinished in a store."""
    return [path for part in ("work", "copiers") for path in (root / part).glob("*")]


@pytest.fixture
def data(tmp_path):
    """A folder with names and sizes that break careless code; two files have the same content."""
    folder = tmp_path / "the data"
    files = {
        "plain": b"1",
        "twin": b"1",
        "empty": b"",
        "with space": b"2",
        "new\nline": b"3",
        "日本/é": b"5",
        "deep/er/still": b"6" * 3_000_000,
        "deep/quo'te\"": b"4",
        ".hidden": b"7",
        "-rf": b"8",
        "one chunk": b"9" * 2**20,
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


FILES, BYTES = 11, 3_000_008 + 2**20


def version_of(folder: Path) -> Manifest:
    cache = folder.parent / "cache"
    return resolve({"source": "directory", "path": str(folder)}, project=folder, cache=cache)


@pytest.fixture
def manifest(data):
    return version_of(data)


def store_at(root, *, link=os.link, ask=None, **staging):
    return Store(root, Staging(**{"keep_free_gb": 0, "threads": 4, **staging}), link=link, ask=ask)


@pytest.fixture
def store(tmp_path):
    return store_at(tmp_path / "scratch")


def object_of(store, checksum):
    (found,) = store.root.glob(f"objects/*/md5/{checksum[4:6]}/{checksum[6:]}")
    return found


def test_a_view_holds_exactly_the_files(store, data, manifest):
    staged = store.stage(manifest)
    assert tree(staged.view) == tree(data)
    assert (staged.files, staged.bytes, staged.hit, staged.verified) == (FILES, BYTES, False, "hash")
    assert (staged.copied_files, staged.copied_bytes) == (FILES - 1, BYTES - 1)  # the twins are one object
    assert store.verify(staged.version) == []
    assert store.changed(staged.version) == []
    assert left_over(store.root) == []


def test_a_view_can_be_read_and_not_written(store, manifest):
    view = store.stage(manifest).view
    assert {stat.S_IMODE(path.stat().st_mode) for path in view.rglob("*") if path.is_file()} == {0o444}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (view, *view.rglob("*")) if path.is_dir()} == {0o555}
    assert (view / "plain").samefile(view / "twin")


def test_the_second_time_nothing_is_read(store, data, manifest):
    first = store.stage(manifest)
    shutil.rmtree(data)
    shutil.rmtree(store.root / "objects")
    for again in (store_at(store.root).stage(manifest), store_at(store.root).find(manifest.digest)):
        assert again.hit
        assert again.view == first.view
        assert (again.files, again.bytes, again.copied_files, again.copied_bytes) == (FILES, BYTES, 0, 0)


def test_what_is_not_there_is_not_found(store, manifest):
    assert store.find(manifest.digest) is None


def test_another_version_copies_only_what_is_new(store, data, manifest):
    first = store.stage(manifest)
    (data / "plain").write_bytes(b"changed")
    (data / "deep/er/still").rename(data / "moved")
    staged = store.stage(version_of(data))
    assert (staged.copied_files, staged.copied_bytes) == (1, 7)
    assert tree(staged.view) == tree(data)
    assert store.verify(first.version) == []


def test_progress_ends_at_the_totals(store, manifest):
    seen: list[Progress] = []
    store.stage(manifest, report=seen.append)
    last = seen[-1]
    assert (last.files, last.bytes, last.total_files, last.total_bytes) == (FILES - 1, BYTES - 1, FILES - 1, BYTES - 1)
    assert [p.bytes for p in seen] == sorted(p.bytes for p in seen)


def test_whoever_is_told_of_progress_can_end_the_staging(store, data, manifest):
    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.stage(manifest, report=stop)
    assert left_over(store.root) == []
    assert tree(store.stage(manifest).view) == tree(data)


def test_an_end_is_acted_on_within_a_file(store):
    endless = Entry(path="x", hash="md5:" + "0" * 32, size=1, sources=("/dev/zero",))

    def stop(progress):
        if progress.bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.stage(Manifest.of([endless], origin={}), report=stop)
    assert left_over(store.root) == []
    assert tree(store.root) == {}


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.write_bytes(b"0" * p.stat().st_size),
        lambda p: p.write_bytes(p.read_bytes()[:-1]),
        lambda p: p.write_bytes(p.read_bytes() + b"x"),
        lambda p: p.unlink(),
        lambda p: (p.unlink(), p.mkdir()),
        lambda p: (p.unlink(), os.mkfifo(p)),
    ],
    ids=["other bytes", "shorter", "longer", "gone", "a folder", "a pipe"],
)
@pytest.mark.parametrize("name", ["plain", "deep/er/still", "one chunk"])
def test_a_source_that_changed_is_named_and_never_seen(store, data, manifest, change, name):
    (data / "twin").write_bytes(b"0")  # so that only one file has these bytes
    manifest = version_of(data)
    change(data / name)
    with pytest.raises(DataError) as refusal:
        store.stage(manifest)
    wanted = next(entry for entry in manifest.entries if entry.path == name)
    assert str(data / name) in refusal.value.why
    assert wanted.hash in refusal.value.what
    assert "launch again" in refusal.value.fix
    assert store.versions() == []
    assert not list(store.root.glob(f"objects/*/md5/{wanted.hash[4:6]}/{wanted.hash[6:]}"))
    assert left_over(store.root) == []


def test_after_the_repair_staging_goes_on_where_it_was(store, data, manifest):
    right = (data / "deep/er/still").read_bytes()
    (data / "deep/er/still").write_bytes(b"wrong")
    with pytest.raises(DataError):
        store.stage(manifest)
    (data / "deep/er/still").write_bytes(right)
    assert tree(store.stage(manifest).view) == tree(data)


@pytest.mark.parametrize("spoil", [lambda p: p.write_bytes(b"wrong"), lambda p: p.write_bytes(b""), Path.unlink])
def test_another_source_is_taken_instead(store, data, tmp_path, spoil, caplog):
    spare = tmp_path / "spare"
    shutil.copytree(data, spare)
    entries = version_of(data).entries
    both = [replace(entry, sources=(*entry.sources, str(spare / entry.path))) for entry in entries]
    manifest = Manifest.of(both, origin={"repair": "mend it"})
    spoil(data / "deep/er/still")
    assert tree(store.stage(manifest).view) == tree(spare)
    assert str(data / "deep/er/still") in caplog.text
    assert "mend it" in caplog.text


def test_a_wrong_size_in_the_manifest_does_not_make_right_bytes_wrong(store, data, manifest):
    wrong = Manifest.of([replace(entry, size=entry.size + 1) for entry in manifest.entries], origin={})
    staged = store.stage(wrong)
    assert tree(staged.view) == tree(data)
    assert store.verify(staged.version) == []
    assert store.changed(staged.version) == []
    assert store.stage(wrong).hit


# --- an origin ------------------------------------------------------------------------------------------


@dataclass
class Remote:
    """An origin that has some files by their hash, some of them wrong."""

    objects: dict[str, bytes]
    name: str = "the remote 'far'"
    asked: int = 0

    def fetch(self, entries, folder, stop):
        self.asked += 1
        for entry in entries:
            if entry.hash in self.objects:
                (folder / "it").write_bytes(self.objects[entry.hash])
                yield Arrival(entry=entry, path=folder / "it")
            else:
                yield Arrival(entry=entry, problem="no such object")


def test_what_no_path_holds_comes_from_the_origin_in_one_call(store, data, manifest):
    remote = Remote({entry.hash: (data / entry.path).read_bytes() for entry in manifest.entries})
    whole = tree(data)
    (data / "plain").write_bytes(b"0")
    (data / "twin").unlink()
    (data / "deep/er/still").write_bytes(b"0")
    entries = [replace(entry, sources=()) if entry.path == "-rf" else entry for entry in manifest.entries]
    staged = store.stage(Manifest.of(entries, origin={}), fetcher=remote)
    assert tree(staged.view) == whole
    assert (remote.asked, staged.copied_files) == (1, FILES - 1)
    assert left_over(store.root) == []


def test_the_origin_is_left_alone_where_paths_hold_everything(store, manifest):
    remote = Remote({})
    store.stage(manifest, fetcher=remote)
    assert remote.asked == 0


@pytest.mark.parametrize(("content", "why"), [(b"wrong", "has md5:"), (None, "no such object")])
def test_what_the_origin_has_wrong_or_not_at_all_is_refused(store, data, manifest, content, why):
    wanted = next(entry for entry in manifest.entries if entry.path == "deep/er/still")
    (data / "deep/er/still").unlink()
    remote = Remote({} if content is None else {wanted.hash: content})
    with pytest.raises(DataError, match=why) as refusal:
        store.stage(manifest, fetcher=remote)
    assert remote.name in refusal.value.why
    assert str(data / "deep/er/still") in refusal.value.why
    assert store.versions() == []
    assert left_over(store.root) == []


# --- what is damaged ------------------------------------------------------------------------------------


def test_a_damaged_object_in_the_store_is_copied_anew(store, data, manifest):
    staged = store.stage(manifest)
    (entry,) = (entry for entry in manifest.entries if entry.path == "deep/er/still")
    damaged = object_of(store, entry.hash)
    damaged.unlink()
    damaged.write_bytes(b"torn by a crash")
    staged.version.invalidate()
    again = store.stage(manifest)
    assert (again.hit, again.copied_files) == (False, 1)
    assert tree(again.view) == tree(data)


@pytest.mark.parametrize("marker", [None, b"", b"{", b"[]", b'{"format": 0}', b'{"format": 1}'])
def test_a_version_without_its_marker_is_made_anew_and_the_old_one_goes(store, data, manifest, marker):
    first = store.stage(manifest)
    first.version.marker.unlink()
    if marker is not None:
        first.version.marker.write_bytes(marker)
    again = store.stage(manifest)
    assert (again.hit, again.copied_files) == (False, 0)
    assert tree(again.view) == tree(data)
    assert first.view.is_dir()  # somebody holds it
    first.release()
    assert store.stage(manifest).hit
    store.collect()
    assert [version.path for version in store.versions()] == [again.version.path]


def test_what_an_earlier_boot_left_is_read_before_it_is_used(store, data, manifest, caplog):
    staged = store.stage(manifest)
    staged.release()
    facts = json.loads(staged.version.marker.read_text())
    staged.version.marker.write_text(json.dumps({**facts, "boot": "before"}))
    (boot,) = (store.root / "objects").iterdir()
    boot.rename(boot.with_name("before"))
    wanted = {entry.path: entry for entry in manifest.entries}
    torn = object_of(store, wanted["one chunk"].hash)
    torn.chmod(0o600)
    torn.write_bytes(bytes(2**20))
    os.utime(torn, ns=(WRITTEN_NS, WRITTEN_NS))
    (data / "deep/er/still").rename(data.parent / "still")  # only the earlier boot has it now
    again = store.stage(manifest)
    (data.parent / "still").rename(data / "deep/er/still")
    assert not again.hit
    assert tree(again.view) == tree(data)
    assert str(torn) in caplog.text
    assert [version.path for version in store.versions()] == [again.version.path]


def tamper(path, content):
    path.parent.chmod(0o700)
    path.unlink()
    path.write_bytes(content)


def overwrite(path, content):
    path.chmod(0o600)
    path.write_bytes(content)


CHANGES = [
    (lambda view: tamper(view / "plain", b"0"), "'plain' has"),
    (lambda view: overwrite(view / "plain", b"0"), "' has"),
    (lambda view: tamper(view / "deep/er/still", b"6"), "'deep/er/still' has"),
    (lambda view: (view.chmod(0o700), (view / "empty").unlink()), "'empty'"),
    (lambda view: (view.chmod(0o700), (view / "extra").write_bytes(b"")), "'extra' does not belong"),
    (lambda view: (view.chmod(0o700), (view / "folder").symlink_to("/etc")), "'folder' does not belong"),
    (lambda view: (tamper(view / "plain", b""), (view / "plain").unlink(), (view / "plain").symlink_to("twin")),
     "'plain' is not a regular file"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "problem"), CHANGES)
@pytest.mark.parametrize("look", [Store.verify, Store.changed])
def test_a_view_that_was_changed_is_found_out_and_used_no_more(store, data, manifest, change, problem, look):
    staged = store.stage(manifest)
    change(staged.view)
    assert any(problem in found for found in look(store, staged.version))
    again = store.stage(manifest)
    assert not again.hit
    assert tree(again.view) == tree(data)
    assert look(store, again.version) == []


@pytest.mark.parametrize("listing", [None, b"", b"{", b"[1, 2]\n", b"null\n", b'["plain", "md5:0", 1]\n'])
@pytest.mark.parametrize("look", [Store.verify, Store.changed])
def test_a_listing_that_was_changed_is_found_out_too(store, data, manifest, listing, look):
    staged = store.stage(manifest)
    staged.version.listing.unlink()
    if listing is not None:
        staged.version.listing.write_bytes(listing)
    assert look(store, staged.version)
    again = store.stage(manifest)
    assert (again.hit, tree(again.view)) == (False, tree(data))


def test_verify_always_reads_what_sizes_and_times_cannot_show(store, data, manifest):
    staged = store.stage(manifest)
    overwrite(staged.view / "one chunk", b"8" * 2**20)
    os.utime(staged.view / "one chunk", ns=(WRITTEN_NS, WRITTEN_NS))
    assert store.changed(staged.version) == []
    careful = store_at(store.root, verify="always")
    again = careful.stage(manifest)
    assert (again.hit, again.copied_files) == (False, 1)
    assert tree(again.view) == tree(data)
    third = careful.stage(manifest)
    assert (third.hit, third.verified, third.view) == (True, "hash", again.view)


def test_the_clock_may_jump_while_a_version_is_there(store, manifest):
    staged = store.stage(manifest)
    for path in staged.version.leases.iterdir():
        os.utime(path, (0, 2**33))
    assert store.changed(staged.version) == []
    assert store.stage(manifest).hit
    assert store.collect(all_idle=True) == []


# --- disks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_where_links_are_impossible_files_are_copied(tmp_path, data, manifest, number):
    def no_link(source, target):
        raise OSError(number, os.strerror(number))

    store = store_at(tmp_path / "scratch", link=no_link)
    staged = store.stage(manifest)
    assert tree(staged.view) == tree(data)
    assert staged.primitive == "copy"
    assert not (staged.view / "plain").samefile(staged.view / "twin")
    assert stat.S_IMODE((staged.view / "plain").stat().st_mode) == 0o444
    assert store.changed(staged.version) == []
    staged.release()
    assert store.collect(all_idle=True) == [staged.version]
    assert tree(store.root) == {}


def test_names_that_scratch_takes_for_one_are_refused_and_neither_is_seen(tmp_path, data):
    (data / "Plain").write_bytes(b"another")

    def link_where_case_does_not_count(source, target):
        if Path(target).name.lower() in {path.name.lower() for path in Path(target).parent.iterdir()}:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.link(source, target)

    store = store_at(tmp_path / "scratch", link=link_where_case_does_not_count)
    with pytest.raises(DataError, match="scratch cannot have a file 'plain': File exists") as refusal:
        store.stage(version_of(data))
    assert "upper and lower case" in refusal.value.why
    assert (store.versions(), left_over(store.root)) == ([], [])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_leaves_nothing_half_done(tmp_path, data, manifest, number):
    def full(source, target):
        if Path(target).name == "still":
            raise OSError(number, os.strerror(number))
        os.link(source, target)

    with pytest.raises(DataError, match=r"not enough space on scratch .*scratch"):
        store_at(tmp_path / "scratch", link=full).stage(manifest)
    assert left_over(tmp_path / "scratch") == []
    assert not list((tmp_path / "scratch").glob("versions/*"))
    assert tree(store_at(tmp_path / "scratch").stage(manifest).view) == tree(data)


def test_what_does_not_fit_is_refused_before_the_first_byte(store, manifest):
    huge = Manifest.of([replace(entry, size=2**60) for entry in manifest.entries], origin={})
    with pytest.raises(DataError, match="11,529,215 TB are to be copied") as refusal:
        store.stage(huge)
    assert str(store.root) in refusal.value.what
    assert tree(store.root) == {}


def test_some_of_the_disk_stays_free(tmp_path, manifest):
    with pytest.raises(DataError, match="100,000 TB stay free"):
        store_at(tmp_path / "scratch", keep_free_gb=1e8).stage(manifest)


def test_scratch_that_cannot_be_written_is_named(tmp_path, manifest):
    (tmp_path / "scratch").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"scratch .* cannot be used"):
        Store(tmp_path / "scratch").stage(manifest)


# --- eviction -------------------------------------------------------------------------------------------


def versions_of(tmp_path, count, size=1_000_000):
    """Return manifests of as many folders, with one file that they share and one of their own."""
    found = []
    for number in range(count):
        folder = tmp_path / f"data {number}"
        folder.mkdir()
        (folder / "shared").write_bytes(b"shared" * 1000)
        (folder / "own").write_bytes(bytes([number]) * size)
        found.append(version_of(folder))
    return found


def test_the_version_that_was_used_longest_ago_makes_room(tmp_path):
    first, second, third = versions_of(tmp_path, 3)
    store = store_at(tmp_path / "scratch", max_gb=0.0025)
    for manifest, seconds in ((first, 200), (second, 100)):
        staged = store.stage(manifest)
        staged.release()
        os.utime(staged.version.leases, (seconds, seconds))  # when it was last used
    store.stage(third)
    assert store.find(first.digest)
    assert store.find(second.digest) is None
    assert len(list(store.root.glob("objects/*/*/*/*"))) == 3  # the second's own file went with it


def test_room_for_one_version_is_made_with_few_walks_however_many_go(tmp_path, monkeypatch):
    *old, new = versions_of(tmp_path, 9)
    for manifest in old:
        store_at(tmp_path / "scratch", max_gb=1).stage(manifest).release()
    (big := tmp_path / "big").mkdir()
    (big / "own").write_bytes(b"big" * 2_500_000)
    walks = []
    walk = Objects.bytes
    monkeypatch.setattr(Objects, "bytes", lambda self: walks.append(self) or walk(self))
    store = store_at(tmp_path / "scratch", max_gb=0.008)
    store.stage(version_of(big))
    assert all(store.find(manifest.digest) is None for manifest in old[:-1])
    assert len(walks) <= 4
    with pytest.raises(DataError, match="max_gb"):
        store.stage(new)


def test_a_version_that_somebody_holds_stays_and_is_named(tmp_path):
    first, second, third = versions_of(tmp_path, 3)
    store = store_at(tmp_path / "scratch", max_gb=0.0025)
    held = store.stage(first), store.stage(second)
    with pytest.raises(DataError, match="max_gb") as refusal:
        store.stage(third)
    assert f"process {os.getpid()} on" in refusal.value.why
    assert [store.changed(staged.version) for staged in held] == [[], []]


@pytest.mark.parametrize("times", [1, 3])
def test_a_version_may_be_removed_while_another_is_staged_from_its_objects(tmp_path, times):
    first, second = versions_of(tmp_path, 2)
    root = tmp_path / "scratch"
    staged = store_at(root).stage(first)
    staged.release()

    left = [None] * times

    def link(source, target):
        if Path(target).name == "shared" and left:  # the last moment: it was there, and now it is not
            left.pop()
            store_at(root).collect(all_idle=True)
            shutil.rmtree(root / "objects", ignore_errors=True)
        os.link(source, target)

    store = store_at(root, link=link)
    assert tree(store.stage(second).view) == tree(tmp_path / "data 1")
    assert store_at(root).find(first.digest) is None


def test_a_removal_that_looked_before_a_copy_began_leaves_it_what_is_unfinished(store, data, manifest, monkeypatch):
    copy, removals = objects._copy, [None] * 3

    def remove_and_copy(*arguments):
        if removals:
            removals.pop()
            with monkeypatch.context() as earlier:
                earlier.setattr(CopyClaims, "others", lambda *_: [])
                store_at(store.root).collect(all_idle=True)
        return copy(*arguments)

    monkeypatch.setattr(objects, "_copy", remove_and_copy)
    assert tree(store.stage(manifest).view) == tree(data)


def test_what_is_unfinished_and_nobodys_goes_with_the_rest(store, manifest):
    store.stage(manifest).release()
    place = Path(Objects(store.root / "objects", boot_id()).place(manifest.entries[0].hash))
    left = place.with_name(f".{Holder.current().nonce}.{place.name}")
    left.write_bytes(b"half")
    store.collect(all_idle=True)
    assert not left.exists()


def test_objects_that_vanish_again_and_again_end_in_an_error(tmp_path, manifest):
    def vanish(source, target):
        raise FileNotFoundError(source)

    with pytest.raises(DataError, match="vanish as fast"):
        store_at(tmp_path / "scratch", link=vanish).stage(manifest)


HOLDER = """
import sys
from pathlib import Path
from orchestrator.data import Manifest, Staging, Store
staged = Store(Path(sys.argv[1]), Staging(keep_free_gb=0)).stage(Manifest.read(Path(sys.argv[2])))
print(staged.view, flush=True)
sys.stdin.readline()
"""


def child(text, *words, **more):
    argv = [sys.executable, "-c", text, *map(str, words)]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **more)


@pytest.mark.parametrize("end", ["kill", "close"])
def test_a_lease_ends_with_its_process(store, manifest, tmp_path, end):
    manifest.write(tmp_path / "m.json")
    with child(HOLDER, store.root, tmp_path / "m.json") as process:
        assert process.stdout.readline()
        assert store.collect(all_idle=True) == []
        assert process.kill() is None if end == "kill" else process.stdin.close() is None
        process.wait()
    (gone,) = store.collect(all_idle=True)
    assert gone.digest == manifest.digest
    assert tree(store.root) == {}


def lease_of(staged, **changes):
    """Give a lease to another process, and return that."""
    (lease,) = staged.version.leases.iterdir()
    holder = replace(Holder.parse(lease.name), **changes)
    lease.rename(lease.with_name(holder.name))
    return holder


@pytest.mark.parametrize(
    ("changes", "alive"),
    [
        ({}, True),
        ({"started": "1"}, False),
        ({"boot": "before"}, False),
        ({"namespace": "another"}, None),
        ({"host": "elsewhere"}, None),
        ({"host": "elsewhere", "job": "it's, gone"}, False),
        ({"host": "elsewhere", "job": "runs"}, True),
        ({"host": "elsewhere", "job": "unknown"}, None),
    ],
)
def test_a_lease_counts_until_its_holder_is_known_to_be_dead(tmp_path, manifest, changes, alive):
    ask = {"it's, gone": False, "runs": True, "unknown": None}.get
    store = store_at(tmp_path / "scratch", ask=ask)
    staged = store.stage(manifest)
    holder = lease_of(staged, **changes)
    assert Holder.parse(holder.name) == holder
    assert holder.alive(ask) is alive
    assert bool(store.collect(all_idle=True)) == (alive is False)


@pytest.mark.parametrize("dies", ["before", "after"])
def test_a_removal_cut_short_is_finished_by_the_next(store, data, manifest, dies):
    staged = store.stage(manifest)
    staged.release()
    staged.version.leases.rmdir()  # as far as a killed remover came
    if dies == "after":
        holder = replace(Holder.current(), started="1")
        (store.root / "work" / holder.name).mkdir(parents=True)
        staged.version.path.rename(store.root / "work" / holder.name / staged.version.path.name)
    assert store.find(manifest.digest) is None
    assert tree(store.stage(manifest).view) == tree(data)
    store.collect()
    assert len(store.versions()) == 1
    assert left_over(store.root) == []


# --- once per node --------------------------------------------------------------------------------------

STAGER = """
import sys
from pathlib import Path
from orchestrator.data import Manifest, Staging, Store
manifest = Manifest.read(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    print("ready", flush=True)
    sys.stdin.readline()
    staged = Store(Path(sys.argv[2], str(number)), Staging(keep_free_gb=0)).stage(manifest)
    print("hit" if staged.hit else "copied", flush=True)
"""


@pytest.mark.parametrize(("stagers", "rounds"), [(8, 5), (32, 1)])
def test_of_processes_that_stage_at_the_same_time_one_copies(data, tmp_path, stagers, rounds):
    for number in range(150):
        (data / f"small {number}").write_bytes(b"%d" % number)
    manifest = version_of(data)
    manifest.write(tmp_path / "m.json")
    words = (tmp_path / "m.json", tmp_path / "node", rounds)
    with ExitStack() as stack:
        processes = [stack.enter_context(child(STAGER, *words, bufsize=0)) for _ in range(stagers)]
        for number in range(rounds):
            assert {process.stdout.readline() for process in processes} == {b"ready\n"}
            for process in processes:
                process.stdin.write(b"go\n")
            told = sorted(process.stdout.readline() for process in processes)
            assert told == [b"copied\n", *[b"hit\n"] * (stagers - 1)]
            store = store_at(tmp_path / "node" / str(number))
            (version,) = store.versions()
            assert store.verify(version) == []
            assert tree(version.view) == tree(data)
            assert left_over(store.root) == []


SLOW = """
import os, sys, time
from pathlib import Path
from orchestrator.data import Manifest, Staging, Store
def slow(source, target):
    print("linking", flush=True)
    sys.stdin.readline()
    os.link(source, target)
staged = Store(Path(sys.argv[1]), Staging(keep_free_gb=0), link=slow, job="4_2").stage(Manifest.read(Path(sys.argv[2])))
"""


def test_who_waits_says_for_whom_and_goes_on_when_that_dies(store, data, manifest, tmp_path, caplog):
    caplog.set_level("INFO")
    manifest.write(tmp_path / "m.json")
    seen: list[Progress] = []
    with child(SLOW, store.root, tmp_path / "m.json", bufsize=0) as copier:
        assert copier.stdout.readline() == b"linking\n"

        def kill(progress):
            seen.append(progress)
            copier.kill()

        staged = store.stage(manifest, report=kill)
    assert tree(staged.view) == tree(data)
    assert (staged.hit, staged.waited_seconds > 0) == (False, True)
    assert seen[0].waiting_for == f"process {copier.pid} on {socket.gethostname()} (job 4_2)"
    assert f"waiting 0 s for process {copier.pid}" in caplog.text
    assert "has died: taking over" in caplog.text
    assert left_over(store.root) == []


def test_a_copier_that_stands_still_is_not_waited_for_for_ever(store, data, manifest, monkeypatch, tmp_path):
    monkeypatch.setattr("orchestrator.data.store.copy_claims.STALLED_SECONDS", 0.1)
    manifest.write(tmp_path / "m.json")
    with child(SLOW, store.root, tmp_path / "m.json", bufsize=0) as copier:
        assert copier.stdout.readline() == b"linking\n"
        staged = store.stage(manifest)
        assert (staged.hit, tree(staged.view)) == (False, tree(data))
        copier.stdin.write(b"go on\n" * 100)  # it wakes up: its work was in vain, and does no harm
        copier.stdin.close()
        copier.stdout.read()
        assert copier.wait() == 0
    store.collect()
    for version in store.versions():
        assert store.verify(version) == []
    assert left_over(store.root) == []


@pytest.mark.campaign("chaos", sample=True)
@pytest.mark.parametrize("seed", range(SEED, SEED + amount(1, 4)))
def test_killed_copiers_and_removers_never_leave_a_wrong_byte(tmp_path, seed):
    """Two versions that share objects; every view is read after every kill, by the program (see there)."""
    for number, manifest in enumerate(versions_of(tmp_path, 2, size=3_000_000)):
        manifest.write(tmp_path / f"{number}.json")
    root = tmp_path / "scratch"
    argv = [sys.executable, REPOSITORY / "tests/support/stager_chaos.py", tmp_path, root, str(seed), str(KILLS)]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    told = subprocess.run(argv, env=env, check=False, capture_output=True, text=True)
    problems, _, of_copiers = told.stdout.rstrip("\n").rpartition("\n")
    assert (problems, told.stderr, told.returncode) == ("", "", 0), f"seed {seed}"
    assert int(of_copiers) >= KILLS / 2, f"seed {seed}"
    store = store_at(root)
    for number in range(2):
        staged = store.stage(Manifest.read(tmp_path / f"{number}.json"))
        assert tree(staged.view) == tree(tmp_path / f"data {number}"), f"seed {seed}"
        staged.release()
    store.collect(all_idle=True)
    assert tree(root) == {}
    assert left_over(root) == []


KILLS = amount(40, 500)
"""At least half of them meet a copier at work."""


# --- scratch --------------------------------------------------------------------------------------------


@pytest.fixture
def bases(tmp_path):
    folders = {name: tmp_path / f"{name} of 'node'" for name in ("site", "slurm", "tmp")}
    for folder in folders.values():
        folder.mkdir()
    return folders


def test_scratch_is_where_the_site_slurm_or_the_system_says_in_this_order(bases):
    environ = {"SLURM_TMPDIR": str(bases["slurm"]), "TMPDIR": str(bases["tmp"])}
    mine = f"orchestrator-{os.getuid()}"
    assert scratch_dir(str(bases["site"]), environ) == bases["site"] / mine
    assert scratch_dir(None, environ) == bases["slurm"] / mine
    assert scratch_dir(None, {"TMPDIR": str(bases["tmp"])}) == bases["tmp"] / mine
    assert stat.S_IMODE((bases["site"] / mine).stat().st_mode) == 0o700
    assert scratch_dir(None, environ) == bases["slurm"] / mine


def test_variables_in_the_configured_path_are_those_of_the_node(bases):
    found = scratch_dir("$BASE", {"BASE": str(bases["site"])})
    assert found.parent == bases["site"]


def test_a_tmpdir_of_another_machine_is_passed_over(bases, caplog):
    environ = {"SLURM_TMPDIR": "/no/such/folder", "TMPDIR": str(bases["tmp"])}
    assert scratch_dir(None, environ).parent == bases["tmp"]
    assert "/no/such/folder" in caplog.text


@pytest.mark.parametrize("configured", ["/no/such/folder", "relative", "$UNSET/x", "/etc/hostname", ""])
def test_a_configured_scratch_that_is_no_folder_is_refused(configured):
    with pytest.raises(DataError, match="not an absolute path of an existing folder"):
        scratch_dir(configured, {})


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda p: p.symlink_to(p.parent), "symbolic link"),
        (lambda p: p.symlink_to("nothing"), "symbolic link"),
        (lambda p: p.write_text(""), "not a folder"),
        (lambda p: (p.mkdir(), p.chmod(0o770)), "others may write"),
        (lambda p: (p.mkdir(), p.chmod(0o1777)), "others may write"),
    ],
)
def test_instead_of_a_scratch_folder_that_cannot_be_trusted_another_is_used_by_all_runs(bases, caplog, make, why):
    folder = bases["site"] / f"orchestrator-{os.getuid()}"
    make(folder)
    found = scratch_dir(str(bases["site"]), {})
    assert found.name.startswith(f"{folder.name}-")
    assert (stat.S_IMODE(found.stat().st_mode), found.stat().st_uid) == (0o700, os.getuid())
    assert scratch_dir(str(bases["site"]), {}) == found
    assert why in caplog.text
    assert why in taken(str(bases["site"]), {})


def test_scratch_trusts_nobody_elses_folder_of_another_name_either(bases):
    base = bases["site"]
    (base / f"orchestrator-{os.getuid()}").symlink_to("nothing")
    (base / f"orchestrator-{os.getuid()}-aaaaaaaa").symlink_to(bases["tmp"])
    (base / f"orchestrator-{os.getuid()}-bbbbbbbb").mkdir()
    (base / f"orchestrator-{os.getuid()}-bbbbbbbb").chmod(0o777)
    found = scratch_dir(str(base), {})
    assert not found.name.endswith(("aaaaaaaa", "bbbbbbbb"))
    assert list(bases["tmp"].iterdir()) == []


def test_nothing_is_said_of_scratch_that_is_ours_or_not_there_yet(bases):
    assert taken(str(bases["site"]), {}) == ""
    scratch_dir(str(bases["site"]), {})
    assert taken(str(bases["site"]), {}) == ""
