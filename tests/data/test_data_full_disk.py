"""On a disk that is full a version arrives whole or not at all: by bytes, by inodes, by quota; on real small disks."""

import errno
import os
from pathlib import Path

import pytest
from small_disk import MB

from orchestrator.data import Manifest, Staging, Store, resolve
from orchestrator.errors import DataError


def made(folder: Path, files: dict[str, bytes]) -> Manifest:
    """Make a folder of files, and a version of it."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return resolve({"source": "directory", "path": str(folder)}, project=folder, cache=folder.parent / "cache")


def large(tmp_path, number, *, mb=5):
    """Return a version of some files of together so many megabytes."""
    return made(tmp_path / f"large {number}", {f"{n}.bin": bytes([number, n]) * (MB // 2) for n in range(mb)})


def many(tmp_path, number, *, files=25):
    """Return a version of so many small files in five folders."""
    return made(tmp_path / f"many {number}", {f"folder {n % 5}/{n}": b"%d %d" % (number, n) for n in range(files)})


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def store(small_disk):
    return Store(small_disk.path / "scratch", Staging(keep_free_gb=0, threads=4))


def idle(store, manifest):
    """Stage a version that nobody holds."""
    store.stage(manifest).release()
    return manifest


def is_right(staged, manifest):
    return tree(staged.view) == {entry.path: Path(entry.sources[0]).read_bytes() for entry in manifest.entries}


def left_over(store):
    return [path for path in store.root.rglob("*") if path.is_file()]


# --- bytes ----------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_its_bytes_before_the_first(store, tmp_path):
    told: list[object] = []
    with pytest.raises(DataError, match=r"not enough space on scratch .*: 20.1 MB are to be copied, 1.* MB are free"):
        store.stage(large(tmp_path, 1, mb=20), report=told.append)
    assert (told, left_over(store)) == ([], [])


def test_what_fits_by_its_bytes_and_not_in_blocks_is_refused_too(store, small_disk, tmp_path):
    small_disk.leave_bytes(30_000)
    with pytest.raises(DataError, match=r"102 kB are to be copied, .* kB are free"):
        store.stage(many(tmp_path, 1))  # 25 files of a few bytes


def test_versions_that_nobody_holds_make_room_the_oldest_first_and_others_stay(store, tmp_path):
    first, second, held = (idle(store, large(tmp_path, number, mb=4)) for number in range(3))
    store.find(held.digest)
    third = large(tmp_path, 3)
    assert is_right(store.stage(third), third)
    assert [version.digest for version in store.versions()] == [third.digest, held.digest, second.digest]
    with pytest.raises(DataError, match="not enough space on scratch") as refusal:
        store.stage(large(tmp_path, 4, mb=9))
    assert f"held are {held.digest[:12]} by process {os.getpid()}" in refusal.value.why
    assert is_right(store.find(held.digest), held)
    assert store.find(first.digest) is None


def test_a_disk_that_others_fill_meanwhile_ends_the_staging_and_nothing_stays(store, small_disk, tmp_path):
    manifest, others = large(tmp_path, 1), []

    def fill(progress):
        if not others:
            others.append(small_disk.leave_bytes(2 * MB))

    with pytest.raises(DataError, match=r"No space left on device while copying; .* and \d+ inodes are free"):
        store.stage(manifest, report=fill)
    assert left_over(store) == []
    assert small_disk.free_bytes > 1.9 * MB
    small_disk.give_back()
    assert is_right(store.stage(manifest), manifest)


def test_a_disk_that_others_fill_meanwhile_is_given_what_nobody_holds(store, small_disk, tmp_path):
    old, manifest, others = idle(store, large(tmp_path, 1)), large(tmp_path, 2), []

    def fill(progress):
        if not others:
            others.append(small_disk.leave_bytes(2 * MB))

    staged = store.stage(manifest, report=fill)
    assert is_right(staged, manifest)
    assert store.find(old.digest) is None


@pytest.mark.parametrize("idle_version", [True, False])
def test_a_quota_that_is_used_up_is_a_full_disk(tmp_path, monkeypatch, idle_version):
    """No filesystem here has quotas, so the kernel's answer is put in its place."""
    store = Store(tmp_path / "scratch", Staging(keep_free_gb=0, threads=4))
    old, manifest, write = large(tmp_path, 1), large(tmp_path, 2), os.write
    if idle_version:
        idle(store, old)

    def limited(descriptor, content):
        if idle_version == bool(store.versions()):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", limited)
    if idle_version:
        assert is_right(store.stage(manifest), manifest)
        assert [version.digest for version in store.versions()] == [manifest.digest]
    else:
        with pytest.raises(DataError, match=r"not enough space on scratch .*: Disk quota exceeded while copying"):
            store.stage(manifest)
        assert left_over(store) == []


# --- inodes ---------------------------------------------------------------------------------------------


def test_what_has_more_files_than_there_are_inodes_is_refused_before_the_first(store, tmp_path):
    told: list[object] = []
    with pytest.raises(DataError, match=r"\d+ files and folders are to be made, \d+ inodes are free"):
        store.stage(many(tmp_path, 1, files=120), report=told.append)
    assert (told, left_over(store)) == ([], [])


def test_with_no_inode_free_a_version_that_nobody_holds_makes_room(store, small_disk, tmp_path):
    old, manifest = idle(store, many(tmp_path, 1)), many(tmp_path, 2, files=5)
    small_disk.leave_inodes(0)
    assert small_disk.free_inodes == 0
    staged = store.stage(manifest)
    assert is_right(staged, manifest)
    assert store.find(old.digest) is None


def test_with_no_inode_free_a_hit_has_the_oldest_other_version_go(store, small_disk, tmp_path):
    old, manifest = idle(store, many(tmp_path, 1, files=5)), idle(store, many(tmp_path, 2, files=5))
    small_disk.leave_inodes(0)
    staged = store.find(manifest.digest)
    assert is_right(staged, manifest)
    assert [version.digest for version in store.versions()] == [manifest.digest]
    assert old.digest != manifest.digest


def test_with_no_inode_free_and_nothing_to_remove_it_is_told(store, small_disk, tmp_path):
    manifest = many(tmp_path, 1, files=5)
    held = store.stage(manifest)
    small_disk.leave_inodes(0)
    for act in (lambda: store.stage(many(tmp_path, 2, files=5)), lambda: store.find(manifest.digest)):
        with pytest.raises(DataError, match=r"No space left on device while copying; .* and 0 inodes are free") as told:
            act()
        assert f"held are {manifest.digest[:12]} by process" in told.value.why
    assert is_right(held, manifest)
    assert store.changed(held.version) == []


def test_with_no_inode_and_no_byte_free_what_nobody_holds_can_be_removed(store, small_disk, tmp_path):
    old = idle(store, many(tmp_path, 1))
    small_disk.leave_inodes(1)
    small_disk.leave_bytes(0)
    assert (small_disk.free_inodes, small_disk.free_bytes) == (0, 0)
    assert [version.digest for version in store.collect(all_idle=True)] == [old.digest]
    assert (store.versions(), left_over(store)) == ([], [])
