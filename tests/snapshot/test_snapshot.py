"""What is frozen stays as it was, and freezing leaves the user's repository as it was."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import OrchError, RequestError, StateError
from orchestrator.layout import CodePaths, ExperimentPaths
from orchestrator.snapshot import Snapshot, take, write
from orchestrator.spec import SnapshotOptions

DEFAULT = SnapshotOptions()
NASTY = ["a b.py", 'it\'s "quoted".py', "line\nbreak.py", "naïve-ü.py", "tab\there.py", "-dash.py", "*.py"]


@pytest.fixture(autouse=True)
def git_identity(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    settings = tmp_path / "gitconfig"
    settings.write_text('[user]\nname = T\nemail = t@example.org\n[protocol "file"]\nallow = always\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))


def git(folder: Path, *words: str, fails: bool = False) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stdout.strip()


def put(folder: Path, **files: str) -> None:
    for name, text in files.items():
        put_at(folder / f"{name}.py", text)


def put_at(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def repository(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", "main")
    put(folder, **files)
    if files:
        commit(folder)
    return folder


def commit(folder: Path) -> None:
    git(folder, "add", "--all")
    git(folder, "commit", "-q", "-m", "work")


@pytest.fixture
def project(tmp_path) -> Path:
    return repository(tmp_path / "my 'project'\nof work", model="lr = 1\n", train="import model\n")


def name_of(project: Path, options: SnapshotOptions = DEFAULT, exclude: tuple[Path, ...] = ()) -> Snapshot:
    with take(project, options, exclude=exclude) as pending:
        return pending.snapshot


def freeze(
    project: Path, options: SnapshotOptions = DEFAULT, exclude: tuple[Path, ...] = ()
) -> tuple[Snapshot, CodePaths]:
    with take(project, options, exclude=exclude) as pending:
        code = CodePaths(project.parent / "runs of it" / "code" / pending.snapshot.tree)
        return write(pending, code), code


def frozen_files(code: CodePaths) -> dict[str, str]:
    found = {}
    for path in code.tree.rglob("*"):
        if path.is_symlink():
            found[path.relative_to(code.tree).as_posix()] = f"-> {path.readlink()}"
        elif path.is_file():
            found[path.relative_to(code.tree).as_posix()] = path.read_text()
    return found


def state_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every file below a folder, with its mode, modification time and content."""
    return {
        path.relative_to(folder).as_posix(): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in [folder, *folder.rglob("*")]
    }


# Identity


def test_any_order_of_names_gives_the_hash_that_git_gives(project):
    for name in ("a.py", "a/x.py", "a-b/x.py", "a.b/x.py", "a0.py", "a/a/a.py", "Z/z.py", "é/ü.py", "a b/c"):
        put_at(project / name, name)
    put_at(project / "run.sh", "")
    (project / "run.sh").chmod(0o755)
    (project / "link").symlink_to("a")
    commit(project)
    assert name_of(project).tree == git(project, "rev-parse", "HEAD^{tree}")


def test_a_clean_repository_is_named_by_its_own_tree_hash(project):
    snapshot, code = freeze(project)
    assert snapshot.tree == git(project, "rev-parse", "HEAD^{tree}") == git(project, "write-tree")
    assert (snapshot.commit, snapshot.branch) == (git(project, "rev-parse", "HEAD"), "main")
    assert (snapshot.dirty, snapshot.files, snapshot.bytes, snapshot.message) == (False, 2, 20, "")
    assert not code.diff.exists()


def test_the_hash_is_the_one_that_committing_everything_would_give(project):
    put(project, model="lr = 2\n", new="x\n")
    (project / "train.py").unlink()
    before = name_of(project)
    commit(project)
    assert before.dirty
    assert before.tree == name_of(project).tree == git(project, "rev-parse", "HEAD^{tree}")


def test_sha256_repositories_keep_their_own_hash(tmp_path):
    folder = tmp_path / "p"
    folder.mkdir()
    git(folder, "init", "-q", "--object-format=sha256")
    put(folder, a="1", b="2")
    commit(folder)
    (folder / "b.py").unlink()
    assert len(name_of(folder).tree) == 64
    git(folder, "add", "--all")
    assert name_of(folder).tree == git(folder, "write-tree")


def test_the_name_changes_with_content_and_returns_with_it(project):
    first = name_of(project).tree
    put(project, model="lr = 2\n")
    second = name_of(project).tree
    put(project, model="lr = 1\n")
    assert name_of(project).tree == first != second


def test_an_edit_of_the_same_size_in_the_same_instant_is_seen(project):
    for value in range(10):
        put(project, model=f"lr = {value}\n")
        git(project, "add", "--all")
        put(project, model=f"lr = {9 - value}\n")
        with take(project, DEFAULT) as pending:
            pending.fill(target := project.parent / f"filled{value}")
        assert (target / "model.py").read_text() == f"lr = {9 - value}\n"


def test_a_snapshot_survives_its_json(project):
    snapshot = name_of(project)
    assert Snapshot.from_json(json.loads(json.dumps(snapshot.to_json()))) == snapshot


# What is in it


def test_uncommitted_edits_deletions_and_new_source_are_frozen(project):
    put(project, model="lr = 2\n", staged="s\n")
    git(project, "add", "staged.py")
    put_at(project / "conf" / "new.yaml", "a: 1\n")
    (project / "train.py").unlink()
    snapshot, code = freeze(project)
    assert frozen_files(code) == {"model.py": "lr = 2\n", "staged.py": "s\n", "conf/new.yaml": "a: 1\n"}
    assert (snapshot.dirty, snapshot.files) == (True, 3)


def test_the_diff_leads_from_the_commit_to_the_frozen_tree(project, tmp_path):
    (project / "table.bin").write_bytes(bytes(range(256)))
    commit(project)
    put(project, model="lr = 2\n", staged="s\n", new="n\n")
    (project / "table.bin").write_bytes(bytes(reversed(range(256))))
    git(project, "add", "staged.py")
    (project / "train.py").unlink()
    snapshot, code = freeze(project)
    git(tmp_path, "clone", "-q", str(project), "other")
    git(tmp_path / "other", "apply", "--index", str(code.diff))
    assert git(tmp_path / "other", "write-tree") == snapshot.tree


def test_a_diff_too_large_to_keep_is_named_in_the_header_not_cut(project, monkeypatch):
    monkeypatch.setattr("orchestrator.snapshot.DIFF_LIMIT_BYTES", 100)
    put(project, model="lr = 2\n" * 50)
    _, code = freeze(project)
    assert not code.diff.exists()
    assert json.loads(code.header.read_text())["diff"].startswith("left out: ")


def test_names_with_any_character_are_frozen(project):
    for name in NASTY:
        put_at(project / name / name, name)
    git(project, "add", "--", f":(literal){NASTY[0]}", f":(literal){NASTY[2]}")
    odd = os.fsdecode(b"latin-\xe9.py")
    put_at(project / odd, "odd")
    _, code = freeze(project)
    got = frozen_files(code)
    assert {got[f"{name}/{name}"] for name in NASTY} == set(NASTY)
    assert got[odd] == "odd"


def test_untracked_data_is_left_out_and_named(project):
    put_at(project / "weights.pt", "0")
    put_at(project / "table.csv", "0")
    snapshot, code = freeze(project)
    assert set(frozen_files(code)) == {"model.py", "train.py"}
    assert "'table.csv', 'weights.pt'" in snapshot.message
    assert not snapshot.dirty


def test_include_adds_files_of_any_kind_even_ignored_ones(project):
    put_at(project / ".gitignore", "*.csv\n/assets/\n")
    commit(project)
    put_at(project / "table.csv", "1")
    put_at(project / "data" / "deep" / "table.csv", "2")
    put_at(project / "assets" / "deep" / "logo.bin", "3")
    put_at(project / "weights.pt", "4")
    snapshot, code = freeze(project, SnapshotOptions(include=("**/*.csv", "assets", "weights.pt")))
    assert {"table.csv", "data/deep/table.csv", "assets/deep/logo.bin", "weights.pt"} < set(frozen_files(code))
    assert (snapshot.dirty, snapshot.message) == (True, "")


@pytest.mark.parametrize("pattern", ["/etc/*", "../other/*.py", "", "nothing/*.csv", "runs/*.csv", ".git/config"])
def test_an_include_that_names_nothing_or_leaves_the_project_is_refused(project, pattern):
    put_at(project / "runs" / "x.csv", "1")
    with pytest.raises(RequestError, match=r"snapshot\.include") as caught:
        name_of(project, SnapshotOptions(include=(pattern,)), (project / "runs",))
    assert repr(pattern) in str(caught.value)
    assert caught.value.fix


def test_environments_caches_and_excluded_folders_are_never_frozen(project):
    for folder in ("env", "node_modules", "pkg/__pycache__", "runs/x", "mlruns/0", "deep/env2"):
        put_at(project / folder / "inner" / "a.py", "1")
        put_at(project / folder / "meta.yaml", "1")
    put_at(project / "env" / "pyvenv.cfg", "")
    (project / "deep" / "env2" / "conda-meta").mkdir()
    options = SnapshotOptions(include=("**/*.py",))
    _, code = freeze(project, options, (project / "runs",))
    assert set(frozen_files(code)) == {"model.py", "train.py", "mlruns/0/inner/a.py"}
    assert name_of(project, DEFAULT, (project / "runs",)).dirty is False


def test_tracked_files_of_an_excluded_folder_stay_out(project):
    put_at(project / "ru ns*" / "kept.yaml", "1")
    put_at(project / "ru nsx" / "other.yaml", "1")
    commit(project)
    put_at(project / "ru ns*" / "kept.yaml", "2")
    snapshot, code = freeze(project, exclude=(project / "ru ns*",))
    assert set(frozen_files(code)) == {"model.py", "train.py", "ru nsx/other.yaml"}
    assert not snapshot.dirty


def test_an_excluded_folder_may_be_a_link_to_elsewhere(project, tmp_path):
    (tmp_path / "scratch").mkdir()
    (project / "runs.d").symlink_to(tmp_path / "scratch")
    commit(project)
    assert name_of(project, exclude=(project / "runs.d",)).files == 2


def test_the_project_itself_cannot_be_excluded(project):
    with pytest.raises(RequestError, match="is the project itself"):
        name_of(project, exclude=(project,))


def test_executable_bits_and_inner_links_are_kept_and_nothing_is_writable(project):
    put_at(project / "run.sh", "#!/bin/sh\n")
    (project / "run.sh").chmod(0o755)
    put_at(project / "pkg" / "deep" / "a.py", "1")
    (project / "pkg" / "link.py").symlink_to("../model.py")
    (project / "latest").symlink_to("pkg/deep")
    commit(project)
    _, code = freeze(project)
    assert code.tree.joinpath("run.sh").stat().st_mode & 0o777 == 0o555
    assert code.tree.joinpath("model.py").stat().st_mode & 0o777 == 0o444
    assert (code.tree / "pkg" / "link.py").readlink() == Path("../model.py")
    assert (code.tree / "latest" / "a.py").read_text() == "1"
    shutil.rmtree(code.path)


@pytest.mark.parametrize(
    "target",
    ["{outside}", "../outside.txt", "pkg/../../outside.txt", "{project}/model.py", "../{name}/model.py"],
)
@pytest.mark.parametrize("tracked", [True, False])
def test_links_that_leave_the_project_are_refused(project, target, tracked):
    outside = project.parent / "outside.txt"
    outside.write_text("live")
    (project / "pkg").mkdir()
    (project / "link.py").symlink_to(target.format(outside=outside, project=project, name=project.name))
    if tracked:
        commit(project)
    with pytest.raises(RequestError, match=r"'link\.py'") as caught:
        name_of(project)
    assert caught.value.fix


def test_a_link_through_another_link_out_of_the_project_is_refused(project, tmp_path):
    (project / "data").symlink_to(tmp_path)
    put_at(project / ".gitignore", "data\n")
    (project / "settings.yaml").symlink_to("data/settings.yaml")
    with pytest.raises(RequestError, match=r"'settings\.yaml'"):
        name_of(project)


def test_a_file_that_became_a_folder_a_folder_a_file_and_a_folder_a_link(project):
    put_at(project / "pkg" / "a.py", "1")
    put_at(project / "lib" / "b.py", "1")
    commit(project)
    (project / "model.py").unlink()
    put_at(project / "model.py" / "inner.py", "2")
    shutil.rmtree(project / "pkg")
    shutil.rmtree(project / "lib")
    put_at(project / "lib", "no suffix")
    (project / "pkg").symlink_to("model.py")
    _, code = freeze(project, SnapshotOptions(include=("lib", "pkg")))
    expected = {
        "model.py/inner.py": "2",
        "lib": "no suffix",
        "pkg": "-> model.py",
        "train.py": "import model\n",
    }
    assert frozen_files(code) == expected


def test_settings_of_the_user_change_neither_bytes_nor_diff(project):
    git(project, "config", "core.autocrlf", "false")
    (project / "dos.py").write_bytes(b"a\r\nb\r\n")
    git(project, "config", "core.safecrlf", "true")
    git(project, "config", "status.showUntrackedFiles", "no")
    git(project, "config", "diff.noprefix", "true")
    _, code = freeze(project)
    assert (code.tree / "dos.py").read_bytes() == b"a\r\nb\r\n"
    assert b"+++ b/dos.py" in code.diff.read_bytes()


# Limits and credentials


def test_files_over_the_limit_are_refused_largest_first_and_before_they_are_read(project):
    for name, size in (("big.json", 2), ("bigger.json", 3), ("small.json", 0)):
        with (project / name).open("wb") as stream:
            stream.truncate(size * 1_000_000 + 10)
    with pytest.raises(RequestError) as caught:
        name_of(project, SnapshotOptions(max_file_mb=1))
    text = str(caught.value)
    assert text.index("'bigger.json' (3 MB)") < text.index("'big.json' (2 MB)")
    assert "snapshot.max_file_mb" in caught.value.fix
    assert "small.json" not in text


def test_the_total_is_limited_too_and_tracked_files_count(project):
    for number in range(4):
        put_at(project / f"f{number}.json", "0" * 400_000)
    commit(project)
    with pytest.raises(RequestError, match="max_total_mb"):
        name_of(project, SnapshotOptions(max_total_mb=1))
    assert name_of(project, SnapshotOptions(max_total_mb=2)).files == 6


SECRETS = [
    ".env",
    ".env.local",
    "server.pem",
    "a.key",
    "id_rsa",
    "id_ed25519",
    "credentials.json",
    ".netrc",
    "credentials-prod.json",
    ".aws/credentials",
    "CREDENTIALS.JSON",
    "secrets.yaml",
    ".pypirc",
]


@pytest.mark.parametrize("name", SECRETS)
def test_what_looks_like_credentials_is_refused_when_untracked_or_included(project, name):
    put_at(project / "sub" / name, "secret")
    with pytest.raises(RequestError, match="credentials") as caught:
        name_of(project)
    assert repr(f"sub/{name}") in str(caught.value)
    assert ".gitignore" in caught.value.fix
    put_at(project / ".gitignore", "sub/\n")
    assert name_of(project).files == 3
    with pytest.raises(RequestError, match="credentials"):
        name_of(project, SnapshotOptions(include=("sub",)))


def test_tracked_credentials_are_frozen_and_named(project):
    put_at(project / "tests" / "server.key", "for a test server")
    put_at(project / ".env.example", "KEY=\n")
    commit(project)
    assert "'tests/server.key'" in name_of(project).message
    assert ".env.example" not in name_of(project).message


# The user's repository


def test_freezing_changes_nothing_in_the_repository_and_waits_for_no_lock(project):
    put(project, staged="s\n")
    git(project, "add", "staged.py")
    put(project, model="lr = 2\n", new="n\n")
    os.utime(project / "train.py", (1, 1))
    marker = project.parent / "hook ran"
    for hook in ("post-index-change", "pre-commit", "post-checkout", "fsmonitor"):
        path = project / ".git" / "hooks" / hook
        put_at(path, f'#!/bin/sh\ntouch "{marker}"\n')
        path.chmod(0o755)
    git(project, "config", "core.splitIndex", "true")
    git(project, "config", "core.fsmonitor", ".git/hooks/fsmonitor")
    (project / ".git" / "index.lock").touch()
    marker.unlink(missing_ok=True)
    before = state_of(project)
    snapshot, _ = freeze(project)
    assert state_of(project) == before
    assert snapshot.files == 4
    assert not marker.exists()


def test_variables_that_git_sets_for_hooks_do_not_lead_elsewhere(project, tmp_path, monkeypatch):
    other = repository(tmp_path / "other", other="1")
    put(project, model="lr = 2\n")
    expected, before = name_of(project), state_of(other)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(other / ".git" / "objects"))
    assert name_of(project) == expected
    assert freeze(project)[1].tree.joinpath("model.py").read_text() == "lr = 2\n"
    assert state_of(other) == before


def test_edits_and_the_end_of_the_checkout_leave_the_snapshot_as_it_was(project):
    put(project, model="lr = 2\n")
    _, code = freeze(project)
    before = state_of(code.path)
    put(project, model="raise SystemExit\n")
    (project / "train.py").unlink()
    commit(project)
    shutil.rmtree(project)
    assert state_of(code.path) == before
    assert frozen_files(code) == {"model.py": "lr = 2\n", "train.py": "import model\n"}


def test_an_edit_between_naming_and_writing_does_not_get_in(project):
    put(project, model="lr = 2\n", new="n\n")
    with take(project, DEFAULT) as pending:
        put(project, model="raise SystemExit\n")
        (project / "new.py").unlink()
        code = CodePaths(project.parent / "code" / pending.snapshot.tree)
        write(pending, code)
    assert frozen_files(code) == {"model.py": "lr = 2\n", "new.py": "n\n", "train.py": "import model\n"}


# Shapes of repositories


def test_a_repository_without_commits(tmp_path):
    project = repository(tmp_path / "p")
    put(project, a="1", b="2")
    git(project, "add", "a.py")
    snapshot, code = freeze(project)
    assert (snapshot.commit, snapshot.branch, snapshot.dirty) == (None, "main", True)
    assert frozen_files(code) == {"a.py": "1", "b.py": "2"}
    git(project, "add", "--all")
    assert snapshot.tree == git(project, "write-tree")


def test_a_detached_head_has_no_branch(project):
    git(project, "checkout", "-q", "--detach")
    assert name_of(project).branch is None


def test_only_the_sub_folder_is_frozen_when_the_project_is_one(tmp_path):
    top = repository(tmp_path / "top", outer="1")
    project = top / "sub 'x'\n" / "inner"
    put(project, model="1", gone="1")
    commit(top)
    clean = name_of(project)
    assert clean.tree == git(top, "rev-parse", "HEAD:sub 'x'\n/inner")
    put(top, outer="2")
    assert name_of(project) == clean
    put(project, model="2", new="3")
    (project / "gone.py").unlink()
    snapshot, code = freeze(project)
    assert snapshot.dirty
    assert frozen_files(code) == {"model.py": "2", "new.py": "3"}
    assert {path.name for path in code.path.iterdir()} == {"tree", "snapshot.json", "uncommitted.diff"}
    (project / "link.py").symlink_to("../../outer.py")
    with pytest.raises(RequestError, match=r"'link\.py'"):
        name_of(project)


def test_a_worktree_is_frozen_as_it_is_and_not_twice(project):
    worktree = project / "trees" / "other"
    git(project, "worktree", "add", "-q", "-b", "other", str(worktree))
    put(worktree, model="lr = 3\n")
    assert (name_of(project).files, name_of(project).dirty) == (2, False)
    snapshot, code = freeze(worktree)
    assert (snapshot.branch, snapshot.dirty) == ("other", True)
    assert frozen_files(code)["model.py"] == "lr = 3\n"


@pytest.fixture
def with_submodule(project, tmp_path) -> Path:
    inner = repository(tmp_path / "inner", deep="1")
    lib = repository(tmp_path / "lib", lib="1", gone="1")
    git(lib, "submodule", "add", "-q", str(inner), "in ner")
    commit(lib)
    git(project, "submodule", "add", "-q", str(lib), "libs/my lib")
    git(project, "submodule", "update", "-q", "--init", "--recursive")
    commit(project)
    return project


def test_submodules_are_frozen_at_their_checkout_with_their_edits(with_submodule):
    lib = with_submodule / "libs" / "my lib"
    clean, code = freeze(with_submodule)
    assert not clean.dirty
    assert frozen_files(code)["libs/my lib/in ner/deep.py"] == "1"
    put(lib, lib="2", new="3")
    (lib / "gone.py").unlink()
    put(lib / "in ner", deep="4")
    before = state_of(with_submodule)
    snapshot, code = freeze(with_submodule)
    got = {name: text for name, text in frozen_files(code).items() if name.endswith(".py")}
    assert got == {
        "model.py": "lr = 1\n",
        "train.py": "import model\n",
        "libs/my lib/lib.py": "2",
        "libs/my lib/new.py": "3",
        "libs/my lib/in ner/deep.py": "4",
    }
    assert snapshot.dirty
    assert snapshot.tree != clean.tree
    assert b"b/libs/my lib/in ner/deep.py" in code.diff.read_bytes()
    assert state_of(with_submodule) == before


def test_a_submodule_at_another_commit_is_other_code(with_submodule):
    lib = with_submodule / "libs" / "my lib"
    clean = name_of(with_submodule)
    put(lib, lib="2")
    edited = name_of(with_submodule)
    commit(lib)
    moved, code = freeze(with_submodule)
    assert clean.tree != edited.tree == moved.tree
    assert moved.dirty
    assert f"Subproject commit {git(lib, 'rev-parse', 'HEAD')}".encode() in code.diff.read_bytes()


def test_a_submodule_can_be_the_project(with_submodule):
    snapshot, code = freeze(with_submodule / "libs" / "my lib" / "in ner")
    assert snapshot.tree == git(with_submodule / "libs" / "my lib" / "in ner", "rev-parse", "HEAD^{tree}")
    assert frozen_files(code) == {"deep.py": "1"}


def test_a_sub_folder_with_a_submodule_in_it(with_submodule):
    snapshot, code = freeze(with_submodule / "libs")
    assert frozen_files(code)["my lib/in ner/deep.py"] == "1"
    assert "model.py" not in frozen_files(code)
    assert not snapshot.dirty


def test_include_reaches_into_submodules(with_submodule):
    put_at(with_submodule / "libs" / "my lib" / "in ner" / "w.bin", "5")
    put_at(with_submodule / "libs" / "my lib" / "w.bin", "6")
    _, code = freeze(with_submodule, SnapshotOptions(include=("libs/**/*.bin",)))
    assert frozen_files(code)["libs/my lib/in ner/w.bin"] == "5"
    assert frozen_files(code)["libs/my lib/w.bin"] == "6"


def test_a_submodule_that_is_not_checked_out_is_named(with_submodule, tmp_path):
    git(tmp_path, "clone", "-q", str(with_submodule), "fresh")
    snapshot = name_of(tmp_path / "fresh")
    assert "submodule not checked out, so not frozen: 'libs/my lib'" in snapshot.message
    assert snapshot.tree == git(tmp_path / "fresh", "rev-parse", "HEAD^{tree}")


def test_a_clone_inside_the_project_is_frozen_too(project, tmp_path):
    repository(tmp_path / "dep", dep="1")
    git(project, "clone", "-q", str(tmp_path / "dep"), "third party")
    put(project / "third party", dep="2", new="3")
    snapshot, code = freeze(project)
    assert frozen_files(code)["third party/dep.py"] == "2"
    assert frozen_files(code)["third party/new.py"] == "3"
    assert snapshot.dirty


def test_a_merge_in_progress_is_frozen_as_it_lies_there_and_named(project):
    put(project, both="base\n", edited="base\n")
    commit(project)
    git(project, "checkout", "-q", "-b", "side")
    put(project, both="side\n", edited="side\n")
    commit(project)
    git(project, "checkout", "-q", "main")
    put(project, both="main\n")
    (project / "edited.py").unlink()
    commit(project)
    git(project, "merge", "side", fails=True)
    (project / "edited.py").unlink()
    before = state_of(project / ".git")
    snapshot, code = freeze(project)
    assert "in the middle of a merge: 'both.py', 'edited.py'" in snapshot.message
    assert "<<<<<<<" in frozen_files(code)["both.py"]
    assert "edited.py" not in frozen_files(code)
    assert state_of(project / ".git") == before


def test_a_repository_that_git_distrusts_is_refused_with_gits_own_fix(project, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(RequestError, match="dubious ownership") as caught:
        name_of(project)
    assert caught.value.fix.endswith(f"--add safe.directory {shlex.quote(str(project))}")


def test_a_broken_repository_is_refused(project):
    (project / ".git" / "HEAD").write_text("nonsense")
    (project / ".git").rename(project / "gone")
    (project / ".git").write_text("gitdir: /nowhere\n")
    with pytest.raises(RequestError, match="git cannot use the repository"):
        name_of(project)


def test_no_folder_no_snapshot(tmp_path):
    with pytest.raises(RequestError, match="is not a folder"):
        name_of(tmp_path / "missing")


# Without git


@pytest.fixture
def plain(tmp_path) -> Path:
    folder = tmp_path / "plain 'p'"
    put(folder, model="1", train="2")
    for name in NASTY:
        put_at(folder / "deep" / name, name)
    put_at(folder / "weights.pt", "0")
    put_at(folder / "run.sh", "#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link.py").symlink_to("model.py")
    put_at(folder / "env" / "pyvenv.cfg", "")
    put_at(folder / "env" / "lib" / "a.py", "")
    return folder


def test_without_a_repository_the_same_files_are_copied_and_it_is_said(plain):
    snapshot, code = freeze(plain)
    got = frozen_files(code)
    assert set(got) == {"model.py", "train.py", "run.sh", "link.py", *(f"deep/{name}" for name in NASTY)}
    assert got["link.py"] == "-> model.py"
    assert (code.tree / "run.sh").stat().st_mode & 0o777 == 0o555
    assert (code.tree / "model.py").stat().st_mode & 0o777 == 0o444
    assert snapshot.tree.startswith("plain-")
    assert (snapshot.commit, snapshot.branch, snapshot.files) == (None, None, len(got))
    assert snapshot.message.startswith("there is no git repository")
    assert Snapshot.from_json(json.loads(code.header.read_text())) == snapshot


def test_without_git_itself_a_repository_is_copied(project, monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    snapshot, code = freeze(project)
    assert snapshot.message.startswith("git is not installed")
    assert frozen_files(code) == {"model.py": "lr = 1\n", "train.py": "import model\n"}


def test_a_folder_that_the_repository_around_it_ignores_is_copied(project):
    put_at(project / ".gitignore", "/scratch/\n")
    put(project / "scratch" / "exp", model="1")
    snapshot, code = freeze(project / "scratch" / "exp")
    assert snapshot.tree.startswith("plain-")
    assert frozen_files(code) == {"model.py": "1"}


@pytest.mark.parametrize("change", ["content", "mode", "name", "link", "added"])
def test_the_plain_name_changes_with_anything_that_is_frozen(plain, change):
    before = name_of(plain).tree
    assert name_of(plain).tree == before
    if change == "content":
        put(plain, model="9")
    elif change == "mode":
        (plain / "model.py").chmod(0o755)
    elif change == "name":
        (plain / "train.py").rename(plain / "trainer.py")
    elif change == "link":
        (plain / "link.py").unlink()
        (plain / "link.py").symlink_to("train.py")
    else:
        put(plain, extra="")
    assert name_of(plain).tree != before


def test_the_plain_copy_knows_the_same_rules(plain):
    assert name_of(plain, SnapshotOptions(include=("*.pt",))).files == name_of(plain).files + 1
    with pytest.raises(RequestError, match="max_file_mb"):
        name_of(plain, SnapshotOptions(max_file_mb=1e-9))
    assert name_of(plain, exclude=(plain / "deep",)).files == 4
    put_at(plain / "credentials.json", "{}")
    with pytest.raises(RequestError, match=r"'credentials\.json'"):
        name_of(plain)
    (plain / "credentials.json").unlink()
    (plain / "out.py").symlink_to("/etc/hostname")
    with pytest.raises(RequestError, match=r"'out\.py'"):
        name_of(plain)


def test_a_plain_project_that_changes_meanwhile_is_refused_and_leaves_nothing(plain):
    with take(plain, DEFAULT) as pending:
        put(plain, model="9")
        code = CodePaths(plain.parent / "code" / pending.snapshot.tree)
        with pytest.raises(RequestError, match="changed while"):
            write(pending, code)
    assert list(code.path.parent.iterdir()) == []


def test_an_empty_folder_is_an_empty_snapshot(tmp_path):
    (tmp_path / "p").mkdir()
    snapshot, code = freeze(tmp_path / "p")
    assert snapshot.files == 0
    assert code.tree.is_dir()


# Writing


def test_a_tree_that_is_there_is_not_written_again(project):
    first, code = freeze(project)
    before = state_of(code.path.parent)
    second, _ = freeze(project)
    assert first == second
    assert state_of(code.path.parent) == before


def test_a_relative_destination_is_meant_from_here(project, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    before = state_of(project)
    with take(Path(project.name), DEFAULT) as pending:
        write(pending, CodePaths(Path("here") / "x"))
    assert set(frozen_files(CodePaths(tmp_path / "here" / "x"))) == {"model.py", "train.py"}
    assert state_of(project) == before


def test_filters_run_as_in_git_add_and_checkout(project):
    git(project, "config", "filter.rot.clean", "tr a-z b-za")
    git(project, "config", "filter.rot.smudge", "tr b-za a-z")
    put_at(project / ".gitattributes", "*.txt filter=rot\n")
    put_at(project / "w.txt", "abc")
    commit(project)
    clean, code = freeze(project)
    assert (code.tree / "w.txt").read_text() == "abc"
    assert (clean.dirty, clean.tree) == (False, git(project, "rev-parse", "HEAD^{tree}"))
    put_at(project / "w.txt", "xyz")
    edited, code = freeze(project)
    assert (code.tree / "w.txt").read_text() == "xyz"
    git(project, "add", "--all")
    assert edited.tree == git(project, "write-tree")


def test_partial_and_sparse_clones_are_frozen_without_asking_the_network(project, tmp_path):
    put_at(project / "deep" / "a.py", "1")
    put_at(project / "other" / "b.py", "1")
    commit(project)
    git(project, "config", "uploadpack.allowFilter", "true")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--filter=blob:none", f"file://{project}", str(clone))
    git(clone, "sparse-checkout", "set", "--sparse-index", "deep")
    git(clone, "config", "remote.origin.url", "file:///nowhere")
    assert name_of(clone).tree == git(clone, "rev-parse", "HEAD^{tree}")
    put(clone, model="lr = 2\n")
    put_at(clone / "deep" / "new.py", "2")
    snapshot, code = freeze(clone)
    expected = {"model.py": "lr = 2\n", "train.py": "import model\n", "deep/a.py": "1", "deep/new.py": "2"}
    assert frozen_files(code) == expected
    assert snapshot.dirty


def test_many_files_are_written_by_several_processes_and_all_are_there(project):
    texts = {f"{'nested/' * (i % 4)}{i % 7}/{NASTY[i % 7]}.{i}.py": f"number = {i}\n" for i in range(1_000)}
    for path, text in texts.items():
        put_at(project / path, text)
    (project / "0" / "link.py").symlink_to("../model.py")
    commit(project)
    (project / "model.py").chmod(0o755)
    _, code = freeze(project)
    files = {path: text for path, text in frozen_files(code).items() if path in texts}
    assert files == texts
    assert (code.tree / "0" / "link.py").readlink() == Path("../model.py")
    modes = {path.stat().st_mode & 0o777 for path in code.tree.rglob("*.py") if not path.is_symlink()}
    assert modes == {0o444, 0o555}


def test_an_incomplete_folder_is_reported_not_used(project):
    code = CodePaths(project.parent / "code" / name_of(project).tree)
    put_at(code.tree / "model.py", "half")
    with take(project, DEFAULT) as pending, pytest.raises(StateError, match="incomplete") as caught:
        write(pending, code)
    assert "delete it" in caught.value.fix
    assert list(code.path.parent.iterdir()) == [code.path]


def test_a_place_that_cannot_be_written_is_reported(project):
    put_at(project.parent / "blocked", "a file, not a folder")
    with take(project, DEFAULT) as pending, pytest.raises(OrchError, match="cannot write") as caught:
        write(pending, CodePaths(project.parent / "blocked" / "code" / "x"))
    assert caught.value.fix


WRITER = """
import sys
from pathlib import Path
from orchestrator.layout import CodePaths, ExperimentPaths
from orchestrator.snapshot import take, write
from orchestrator.spec import SnapshotOptions
with take(Path(sys.argv[1]), SnapshotOptions()) as pending:
    sys.stdout.write("ready\\n"); sys.stdout.flush(); sys.stdin.readline()
    write(pending, CodePaths(Path(sys.argv[2]) / pending.snapshot.tree))
"""


def test_processes_that_write_the_same_tree_at_once_end_with_one_complete_folder(project):
    for number in range(60):
        put_at(project / "many" / f"m{number}.py", str(number))
    target = project.parent / "code"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(project), str(target)],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    code = CodePaths(target / name_of(project).tree)
    assert list(target.iterdir()) == [code.path]
    assert len(frozen_files(code)) == 62
    assert json.loads(code.header.read_text())["tree"] == code.path.name


@pytest.mark.parametrize("tracked", [True, False])
def test_the_folders_of_a_snapshot_are_known_before_it_is_written(tracked, project, tmp_path):
    put_at(project / "src" / "it's" / "nets.py", "x = 1\n")
    (project / "empty").mkdir()
    if not tracked:
        shutil.rmtree(project / ".git")
    with take(project, DEFAULT) as pending:
        assert pending.folders == {"src"}
        paths, tree = ExperimentPaths(tmp_path / "x"), pending.snapshot.tree
        before = paths.python_path(tree, unwritten={tree: pending.folders})
        write(pending, paths.code(tree))
        assert paths.python_path(tree) == before
        assert [Path(path).name for path in before] == ["tree", "src"]
