"""A view holds exactly the manifest's bytes, or staging fails and leaves nothing half-done."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.data import Manifest, Progress, Store, resolve, scratch_dir
from orchestrator.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[1]


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def left_over(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(".tmp-")]


@pytest.fixture
def data(tmp_path):
    """A folder with names and sizes that break careless code; two files have the same content."""
    folder = tmp_path / "the data"
    files = {
        "plain": b"1", "twin": b"1", "empty": b"", "with space": b"2", "new\nline": b"3", "日本/é": b"5",
        "deep/er/still": b"6" * 3_000_000, "deep/quo'te\"": b"4", ".hidden": b"7", "-rf": b"8",
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def version_of(folder: Path) -> Manifest:
    cache = folder.parent / "cache"
    return resolve({"source": "directory", "path": str(folder)}, project=folder, cache=cache)


@pytest.fixture
def manifest(data):
    return version_of(data)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "scratch")


def test_a_view_holds_exactly_the_files(store, data, manifest):
    staged = store.stage(manifest)
    assert tree(staged.view) == tree(data)
    assert (staged.files, staged.bytes, staged.hit) == (10, 3_000_008, False)
    assert (staged.copied_files, staged.copied_bytes) == (9, 3_000_007)  # the twins are one object
    assert store.verify(manifest) == []
    assert left_over(store.root) == []


def test_the_files_of_a_view_cannot_be_written_and_share_their_bytes(store, manifest):
    view = store.stage(manifest).view
    assert {stat.S_IMODE(path.stat().st_mode) for path in view.rglob("*") if path.is_file()} == {0o444}
    assert (view / "plain").samefile(view / "twin")


def test_the_second_time_nothing_is_read(store, data, manifest):
    first = store.stage(manifest)
    shutil.rmtree(data)
    shutil.rmtree(store.root / "objects")
    again = Store(store.root).stage(manifest)
    assert again.hit
    assert again.view == first.view
    assert (again.files, again.bytes, again.copied_files, again.copied_bytes) == (10, 3_000_008, 0, 0)


def test_another_version_copies_only_what_is_new(store, data, manifest):
    store.stage(manifest)
    (data / "plain").write_bytes(b"changed")
    (data / "deep/er/still").rename(data / "moved")
    staged = store.stage(version_of(data))
    assert (staged.copied_files, staged.copied_bytes) == (1, 7)
    assert tree(staged.view) == tree(data)
    assert store.verify(manifest) == []


def test_progress_ends_at_the_totals(store, manifest):
    seen: list[Progress] = []
    store.stage(manifest, report=seen.append)
    assert seen[-1] == Progress(files=9, bytes=3_000_007, total_files=9, total_bytes=3_000_007)
    assert [p.files for p in seen] == sorted(p.files for p in seen)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.write_bytes(b"0" * p.stat().st_size),
        lambda p: p.write_bytes(p.read_bytes()[:-1]),
        lambda p: p.write_bytes(p.read_bytes() + b"x"),
        lambda p: p.unlink(),
        lambda p: (p.unlink(), p.mkdir()),
    ],
    ids=["other bytes", "shorter", "longer", "gone", "a folder"],
)
@pytest.mark.parametrize("name", ["plain", "deep/er/still"])
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
    assert not store.view(manifest.digest).exists()
    assert not (store.root / "objects/md5" / wanted.hash[4:6] / wanted.hash[6:]).exists()
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
    manifest = Manifest.of(both, origin={})
    spoil(data / "deep/er/still")
    assert tree(store.stage(manifest).view) == tree(spare)
    assert str(data / "deep/er/still") in caplog.text


def test_a_wrong_size_in_the_manifest_does_not_make_right_bytes_wrong(store, data, manifest):
    wrong = Manifest.of([replace(entry, size=entry.size + 1) for entry in manifest.entries], origin={})
    assert tree(store.stage(wrong).view) == tree(data)
    assert store.verify(wrong) == []
    assert store.stage(wrong).hit


def test_a_damaged_object_in_the_store_is_copied_anew(store, data, manifest):
    store.stage(manifest)
    (entry,) = (entry for entry in manifest.entries if entry.path == "deep/er/still")
    damaged = store.root / "objects/md5" / entry.hash[4:6] / entry.hash[6:]
    damaged.unlink()
    damaged.write_bytes(b"torn by a crash")
    shutil.rmtree(store.root / "views")
    staged = store.stage(manifest)
    assert staged.copied_files == 1
    assert tree(staged.view) == tree(data)


@pytest.mark.parametrize("marker", [None, b"", b"{", b"[]", b'{"version": 0}'])
def test_a_view_without_its_marker_is_looked_at_again(store, data, manifest, marker):
    path = store.stage(manifest).view.with_suffix(".json")
    path.unlink()
    if marker is not None:
        path.write_bytes(marker)
    again = store.stage(manifest)
    assert (again.hit, again.copied_files) == (False, 0)
    assert tree(again.view) == tree(data)
    assert store.stage(manifest).hit


def test_a_view_that_something_cleaned_up_is_replaced(store, data, manifest):
    view = store.stage(manifest).view
    view.with_suffix(".json").unlink()
    (view / "plain").unlink()
    (view / "deep/er/still").unlink()
    assert tree(store.stage(manifest).view) == tree(data)
    assert left_over(store.root) == []


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_where_links_are_impossible_files_are_copied(tmp_path, data, manifest, number):
    def no_link(source, target):
        raise OSError(number, os.strerror(number))

    store = Store(tmp_path / "scratch", link=no_link)
    view = store.stage(manifest).view
    assert tree(view) == tree(data)
    assert not (view / "plain").samefile(view / "twin")
    assert stat.S_IMODE((view / "plain").stat().st_mode) == 0o444


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("where", ["objects", "views"])
def test_a_disk_that_fills_up_leaves_nothing_half_done(tmp_path, data, manifest, number, where):
    def full(source, target):
        if target.relative_to(tmp_path / "scratch").parts[0] == where:
            raise OSError(number, os.strerror(number))
        os.link(source, target)

    with pytest.raises(DataError, match=r"no room on scratch .*scratch"):
        Store(tmp_path / "scratch", link=full).stage(manifest)
    assert left_over(tmp_path) == []
    assert not list((tmp_path / "scratch").glob("views/*"))
    assert tree(Store(tmp_path / "scratch").stage(manifest).view) == tree(data)


def test_what_does_not_fit_is_refused_before_the_first_byte(store, manifest):
    huge = Manifest.of([replace(entry, size=2**60) for entry in manifest.entries], origin={})
    with pytest.raises(DataError, match=r"1\.04e\+10 GB are to be copied") as refusal:
        store.stage(huge)
    assert str(store.root) in refusal.value.fix
    assert tree(store.root) == {}


def test_scratch_that_cannot_be_written_is_named(tmp_path, manifest):
    (tmp_path / "scratch").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"scratch .* cannot be used"):
        Store(tmp_path / "scratch").stage(manifest)


def tamper(path, content):
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda view: tamper(view / "plain", b"0"), "'plain': has md5:"),
        (lambda view: tamper(view / "deep/er/still", b"6"), "'deep/er/still': has md5:"),
        (lambda view: (view / "empty").unlink(), "'empty': No such file"),
        (lambda view: (view / "extra").write_bytes(b""), "'extra': does not belong"),
        (lambda view: (view / "folder").symlink_to("/etc"), "'folder': does not belong"),
        (lambda view: ((view / "plain").unlink(), (view / "plain").symlink_to("twin")), "not a regular file"),
    ],
)
def test_verify_finds_what_was_changed(store, manifest, change, problem):
    change(store.stage(manifest).view)
    (found,) = store.verify(manifest)
    assert problem in found


def test_verify_of_what_was_never_staged_misses_every_file(store, manifest):
    assert len(store.verify(manifest)) == 10


ROUNDS = 10
STAGER = """
import sys
from pathlib import Path
from orchestrator.data import Manifest, Store
manifest = Manifest.read(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    print("ready", flush=True)
    sys.stdin.readline()
    assert Store(Path(sys.argv[2], str(number))).stage(manifest).view.is_dir()
"""


def test_processes_that_stage_at_the_same_time_all_get_the_view(data, tmp_path):
    for number in range(150):
        (data / f"small {number}").write_bytes(b"%d" % number)
    manifest = version_of(data)
    manifest.write(tmp_path / "m.json")
    argv = [sys.executable, "-c", STAGER, str(tmp_path / "m.json"), str(tmp_path / "node"), str(ROUNDS)]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    stagers = [
        subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) for _ in range(5)
    ]
    for _ in range(ROUNDS):
        assert {stager.stdout.readline() for stager in stagers} == {b"ready\n"}
        for stager in stagers:
            stager.stdin.write(b"go\n")
    for stager in stagers:
        stager.communicate()
    assert [stager.returncode for stager in stagers] == [0] * 5
    for number in range(ROUNDS):
        store = Store(tmp_path / "node" / str(number))
        assert store.verify(manifest) == []
        assert tree(store.view(manifest.digest)) == tree(data)
        assert left_over(store.root) == []


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
        (lambda p: p.symlink_to("nothing"), "File exists"),
        (lambda p: p.write_text(""), "File exists"),
        (lambda p: (p.mkdir(), p.chmod(0o770)), "others may write"),
        (lambda p: (p.mkdir(), p.chmod(0o1777)), "others may write"),
    ],
)
def test_a_scratch_folder_that_cannot_be_trusted_is_refused(bases, make, why):
    folder = bases["site"] / f"orchestrator-{os.getuid()}"
    make(folder)
    with pytest.raises(DataError, match=why) as refusal:
        scratch_dir(str(bases["site"]), {})
    assert str(folder) in str(refusal.value)


def test_a_scratch_folder_of_somebody_else_is_refused(bases):
    with pytest.raises(DataError, match=f"belongs to the user with uid {os.getuid()}"):
        scratch_dir(str(bases["site"]), {}, uid=os.getuid() + 1)
