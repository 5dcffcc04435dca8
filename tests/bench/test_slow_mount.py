"""The benchmarks' slow mount is the folder behind it, only slower, and counts what it was asked."""

import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest

from bench.slow_mount import LATENCY_SECONDS, slow_mount, unavailable


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "behind it's").mkdir()
    return tmp_path / "behind it's"


@pytest.fixture
def mount(folder, tmp_path):
    if (reason := unavailable()) is not None:
        pytest.skip(f"no slow mount here: {reason}")
    with slow_mount(folder, tmp_path / "slow mount") as mount:
        yield mount
    assert not os.path.ismount(tmp_path / "slow mount")
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in lines if str(tmp_path / "slow mount") in line]


@pytest.mark.parametrize("name", ["plain", "a b", 'it\'s "quoted"', "line\nbreak", "naïve-ü", "*"])
def test_what_is_written_through_it_lies_in_the_folder(mount, folder, name):
    path, real = mount.path / "deep" / name, folder / "deep" / name
    path.parent.mkdir()
    path.write_text("one")
    with path.open("a") as file:
        file.write(" two")
    assert real.read_text() == path.read_text() == "one two"
    path.chmod(0o540)
    os.utime(path, ns=(1_000_000_000_000_000_001, 1_000_000_000_000_000_007))
    assert (real.stat().st_mode & 0o777, real.stat().st_mtime_ns) == (0o540, 1_000_000_000_000_000_007)
    assert path.stat().st_ino == real.stat().st_ino  # git's index holds on both sides
    (mount.path / "link").symlink_to(f"deep/{name}")
    os.link(path, mount.path / "again")
    assert (folder / "link").read_text() == "one two"
    assert real.stat().st_nlink == 2
    os.truncate(path, 3)
    path.rename(mount.path / "moved")
    assert sorted(os.listdir(mount.path)) == sorted(os.listdir(folder)) == ["again", "deep", "link", "moved"]
    assert (folder / "moved").read_text() == "one"
    (mount.path / "moved").unlink()
    path.parent.rmdir()
    assert sorted(os.listdir(folder)) == ["again", "link"]


def test_large_files_pass_whole(mount, folder):
    content = os.urandom(3_000_001)
    (folder / "large").write_bytes(content)
    shutil.copy2(mount.path / "large", mount.path / "copy")
    assert (folder / "copy").read_bytes() == content
    assert (folder / "copy").stat().st_mtime_ns == (folder / "large").stat().st_mtime_ns


def test_touching_sets_the_present_time_and_nothing_else_changes_it(mount, folder):
    (folder / "file").touch()
    os.utime(folder / "file", (1, 1))
    subprocess.run(["touch", "-a", mount.path / "file"], check=True)
    assert (folder / "file").stat().st_mtime == 1
    assert (folder / "file").stat().st_atime > 1


def test_every_question_waits_and_is_counted_and_bytes_do_not(mount):
    began, before = time.perf_counter(), mount.counts()
    for number in range(20):
        assert not (mount.path / f"missing {number}").exists()
    assert time.perf_counter() - began >= 20 * LATENCY_SECONDS
    assert mount.counts() - before == {"getattr": 20}
    with (mount.path / "file").open("wb", buffering=0) as file:
        before = mount.counts()
        for _ in range(20):
            file.write(b"some bytes")
    assert mount.counts() == before


def test_reads_wait_too_where_that_is_asked_for_and_callers_wait_together(folder, tmp_path):
    if (reason := unavailable()) is not None:
        pytest.skip(f"no slow mount here: {reason}")
    names = [f"file {number}" for number in range(50)]
    for name in names:
        (folder / name).write_text(name)
    with slow_mount(folder, tmp_path / "at", reads=True) as mount, ThreadPoolExecutor(50) as pool:
        assert list(pool.map(lambda name: (mount.path / name).read_text(), names)) == names
        assert (mount.counts()["open"], mount.counts()["read"]) == (50, 50)


def test_errors_are_those_of_the_folder(mount):
    with pytest.raises(FileNotFoundError):
        (mount.path / "missing").read_text()
    (mount.path / "file").touch()
    with pytest.raises(NotADirectoryError):
        (mount.path / "file" / "below").read_text()
    with pytest.raises(FileExistsError):
        (mount.path / "file").mkdir()


def test_it_is_unmounted_when_its_user_fails(folder, tmp_path):
    if (reason := unavailable()) is not None:
        pytest.skip(f"no slow mount here: {reason}")
    at, mounted = tmp_path / "at", []
    with suppress(ZeroDivisionError), slow_mount(folder, at):
        mounted.append(os.path.ismount(at))
        raise ZeroDivisionError
    assert [*mounted, os.path.ismount(at)] == [True, False]
