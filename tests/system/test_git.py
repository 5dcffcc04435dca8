"""A repository that data is read from, or that lies inside the project, names no program that runs."""

import os
import subprocess
from pathlib import Path

import pytest

from orchestrator.data.sources.git import checkout, differs, dvc_repositories
from orchestrator.errors import RequestError
from orchestrator.snapshot import take
from orchestrator.spec import SnapshotOptions
from orchestrator.system.git import git, guards


@pytest.fixture(autouse=True)
def own_settings(monkeypatch, tmp_path):
    """Give the user settings of their own, among them a filter; return the file."""
    own = tmp_path / "own settings"
    own.write_text("[user]\n name = T\n email = t@example.org\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(own))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return own


def plain(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "project" / "it's a clone"
    folder.mkdir(parents=True)
    plain(folder, "init", "-q", "-b", "main")
    (folder / ".gitattributes").write_text("* filter=own diff=own\n")
    (folder / "a.txt").write_text("one\n")
    plain(folder, "add", "-A")
    plain(folder, "commit", "-q", "-m", "one")
    (folder / "a.txt").write_text("two\n")
    return folder


@pytest.fixture
def ran(repository, tmp_path):
    """Make the repository's configuration name programs at each place that git knows; return who has run."""
    marks = tmp_path / "ran"
    marks.mkdir()

    def program(name: str) -> str:
        return f"touch '{marks}/{name}'; cat"

    hook = tmp_path / "hooks" / "post-index-change"
    hook.parent.mkdir()
    hook.write_text(f"#!/bin/sh\n{program('hook')}\n")
    hook.chmod(0o755)
    named = {
        "core.fsmonitor": program("fsmonitor"),
        "core.hooksPath": str(hook.parent),
        "core.pager": program("pager"),
        "core.sshCommand": program("ssh"),
        "core.editor": program("editor"),
        "core.askPass": program("askpass"),
        "filter.own.clean": program("clean"),
        "filter.own.smudge": program("smudge"),
        "filter.own.required": "true",
        "diff.external": program("diff"),
        "diff.own.textconv": program("textconv"),
        "diff.own.command": program("own"),
        "credential.helper": "!" + program("helper"),
        "gpg.program": program("gpg"),
        "log.showSignature": "true",
        "remote.origin.url": str(repository),
        "remote.origin.promisor": "true",
        "remote.origin.uploadpack": program("uploadpack"),
        "pager.diff": program("pagers"),
    }
    for key, value in named.items():
        plain(repository, "config", key, value)
    plain(repository, "config", "core.repositoryFormatVersion", "1")
    plain(repository, "config", "extensions.partialClone", "origin")
    return lambda: sorted(path.name for path in marks.iterdir())


def test_without_guards_they_run(repository, ran):
    subprocess.run(["git", "diff"], cwd=repository, check=False, capture_output=True)
    assert {"fsmonitor", "own"} <= set(ran())


def test_reading_a_data_version_runs_none_of_them(repository, ran):
    place = checkout(str(repository), "HEAD", project=repository.parent, cache=repository.parent / "cache")
    assert differs(place, ["a.txt"])
    assert dvc_repositories(place) == []
    with pytest.raises(RequestError, match="no revision"):
        checkout(str(repository), "0" * 40, project=repository.parent, cache=repository.parent / "cache")
    assert ran() == []


def test_freezing_a_clone_inside_the_project_runs_none_of_them(repository, ran, tmp_path):
    project = repository.parent
    plain(project, "init", "-q")
    (project / "model.py").write_text("x = 1\n")
    with take(project, SnapshotOptions()) as pending:
        assert f"{repository.name}/a.txt" in pending.paths
        pending.fill(tmp_path / "frozen")
        pending.diff()
    assert (tmp_path / "frozen" / repository.name / "a.txt").read_text() == "two\n"
    assert ran() == []


def test_the_users_own_program_runs_in_its_place(repository, ran, own_settings, tmp_path):
    own = 'clean = "tr t T"\n smudge = "tr T t"\n'
    own_settings.write_text(f'{own_settings.read_text()}[filter "own"]\n {own}[credential]\n helper = mine\n')
    plain(repository, "config", "credential.https://example.org.helper", f"!touch {tmp_path}/ran/specific")
    settings = guards(repository)
    assert git(repository, "hash-object", "a.txt", settings=settings) == git(
        repository, "hash-object", "--stdin", "--no-filters", stdin=b"Two\n", settings=settings
    )
    assert git(repository, "config", "filter.own.smudge", settings=settings) == b"tr T t\n"
    helpers = tmp_path / "bin"
    helpers.mkdir()
    (helpers / "git-credential-mine").write_text("#!/bin/sh\necho username=me\necho password=own\n")
    (helpers / "git-credential-mine").chmod(0o755)
    question = b"protocol=https\nhost=example.org\n\n"
    path = f"{helpers}:{os.environ['PATH']}"
    said = git(repository, "credential", "fill", settings=settings, stdin=question, env={"PATH": path})
    assert b"password=own" in said
    assert ran() == []


def test_a_key_that_git_cannot_overrule_is_refused(repository):
    plain(repository, "config", "filter.a=b.clean", "touch it")
    with pytest.raises(RequestError, match="a=b"):
        guards(repository)


def test_what_git_says_to_its_hooks_leads_nowhere_else(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other"))
    assert git(repository, "rev-parse", "--show-toplevel") == f"{repository}\n".encode()
