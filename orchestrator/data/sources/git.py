"""A git repository that data versions are read from: a working tree, a bare repository, or a URL.

A working tree and a bare repository are only looked at. A URL is mirrored below our cache folder, and the mirror is
brought up to date unless the revision is a commit that it has.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from orchestrator.errors import RequestError
from orchestrator.system.files import draft_of, make_private, take_by_rename
from orchestrator.system.git import git, guards, trust
from orchestrator.system.processes import ProgramError

_GIT = {"GIT_OPTIONAL_LOCKS": "0", "GIT_LITERAL_PATHSPECS": "1", "GIT_TERMINAL_PROMPT": "0"}
_OBJECT_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_URL = re.compile(r"\w[\w+.-]*://|[\w.-]+@[\w.-]+:")
_CONFIG = re.compile(r"(^|/)\.dvc/config$")
_SHOWN = 8
_ALL_REFS = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """A folder of a git repository at a commit.

    `name` is how the user calls it; `root` is the working tree's top, or the bare repository; `prefix` leads from the
    top to the folder. `clone` says that there is a working tree.
    """

    name: str
    root: Path
    prefix: str
    commit: str
    at_head: bool
    clone: bool


def checkout(repo: str, rev: str, *, project: Path, cache: Path) -> Checkout:
    """Return the repository's folder at a revision; `repo` is a path below `project`, an absolute one, or a URL.

    Raises RequestError if one of them does not exist, or a URL does not answer.
    """
    if is_url(repo):
        name, folder = without_password(repo), _mirror(repo, rev, cache / "git")
        root, clone = folder, False
    else:
        folder = (project / Path(repo).expanduser()).resolve()
        name, (root, clone) = str(folder), _root(folder)
    head, commit = _commits(root, rev, name, clone=clone)
    prefix = "/".join(folder.relative_to(root).parts)
    return Checkout(name=name, root=root, prefix=prefix, commit=commit, at_head=commit == head, clone=clone)


def differs(place: Checkout, files: Sequence[str]) -> bool:
    """Return whether the files have uncommitted changes."""
    if not (place.clone and place.at_head):
        return False
    try:
        _git(place.root, "diff", "--quiet", "--no-ext-diff", "--no-textconv", "HEAD", "--", *files)
    except ProgramError as error:
        return error.status == 1
    return False


def is_url(repo: str) -> bool:
    return _URL.match(repo) is not None


def without_password(url: str) -> str:
    """Return a URL as it may be shown and written down."""
    parts = urlsplit(url) if "://" in url else None
    if parts is None or "@" not in parts.netloc:
        return url
    user, _, host = parts.netloc.rpartition("@")
    named = f"{user.partition(':')[0]}@{host}" if parts.scheme == "ssh" else host
    return urlunsplit(parts._replace(netloc=named))


def dvc_repositories(place: Checkout) -> list[str]:
    """Return the folders that hold a DVC repository at the commit, as seen from the top; `.` is the top itself."""
    files = _git(place.root, "ls-tree", "-r", "-z", "--name-only", place.commit).split("\0")
    return [file.removesuffix(".dvc/config").rstrip("/") or "." for file in files if _CONFIG.search(file)]


def some_of(names: Sequence[str], word: str) -> str:
    """Return the names if they are few, else those nearest to the word."""
    shown = list(names)
    if len(names) > _SHOWN:
        shown = difflib.get_close_matches(word, names, n=_SHOWN, cutoff=0.4) or shown[:_SHOWN]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(map(repr, shown)) + more


def _git(folder: Path, *arguments: str) -> str:
    ssh = os.environ.get("GIT_SSH_COMMAND", "ssh -o BatchMode=yes")  # nobody is there to answer a question
    env = {**_GIT, "GIT_SSH_COMMAND": ssh}
    return os.fsdecode(git(folder, *arguments, settings=guards(folder), env=env))


def _root(folder: Path) -> tuple[Path, bool]:
    """Return the top of the working tree, or the bare repository itself, and which it is."""
    if not folder.is_dir():
        raise RequestError(f"no folder {folder}", why="it is the data version's `repo`", fix="correct `repo`")
    try:
        if _git(folder, "rev-parse", "--is-bare-repository").strip() == "true":
            return Path(_git(folder, "rev-parse", "--absolute-git-dir").removesuffix("\n")).resolve(), False
        return Path(_git(folder, "rev-parse", "--show-toplevel").removesuffix("\n")).resolve(), True
    except ProgramError as error:
        raise RequestError(
            f"{folder} is not in a git working tree",
            why=error.stderr.strip().partition("\n")[0],
            fix=trust(error.stderr) or "set the data version's `repo` to a clone or a URL, or use `source: directory`",
        ) from error


def _commits(root: Path, rev: str, name: str, *, clone: bool) -> tuple[str, str]:
    """Return HEAD's commit and the revision's."""
    try:
        found = _git(root, "rev-parse", "HEAD^{commit}", f"{rev}^{{commit}}").split()
    except ProgramError:
        found = []
    if rev.startswith("-") or len(found) != 2 or not all(map(_OBJECT_ID.fullmatch, found)):
        raise _unknown_revision(root, rev, name, clone=clone)
    return found[0], found[1]


def _unknown_revision(root: Path, rev: str, name: str, *, clone: bool) -> RequestError:
    refs = _git(root, "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags", "refs/remotes")
    names = refs.splitlines()
    fetch = f", or: git -C {shlex.quote(str(root))} fetch --all --tags" if clone else ""
    return RequestError(
        f"{name} has no revision {rev!r}",
        why=f"it has {some_of(names, rev)}" if names else "it has no commit yet",
        fix=f"choose one of them{fetch}" if names else "make a first commit in it",
    )


# --- mirrors of URLs ------------------------------------------------------------------------------------


def _mirror(url: str, rev: str, cache: Path) -> Path:
    """Return a bare repository that has the revision, if the URL has it."""
    mirror = cache / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.git"
    try:
        if not mirror.is_dir():
            _clone(url, mirror)
        elif not _has_commit(mirror, rev):
            _update(url, mirror)
    except ProgramError as error:
        shown = without_password(url)
        why = error.stderr.strip().replace(url, shown)
        fix = trust(error.stderr) or f"see what it says: git ls-remote {shlex.quote(shown)}"
        raise RequestError(f"the data version's repo {shown} cannot be read", why=why, fix=fix) from error
    return mirror.resolve()


def _clone(url: str, mirror: Path) -> None:
    make_private(mirror.parent)
    with draft_of(mirror) as draft:
        _git(mirror.parent, "clone", "--quiet", "--bare", "--", url, str(draft))
        _git(draft, "remote", "remove", "origin")  # a URL may hold a password: it is kept by the caller alone
        take_by_rename(draft, mirror, mine=mirror.is_dir)  # another launch may have been faster


def _update(url: str, mirror: Path) -> None:
    arguments = ("fetch", "--quiet", "--prune", "--no-auto-gc", "--no-write-fetch-head", "--", url, *_ALL_REFS)
    try:
        _git(mirror, *arguments)
    except ProgramError:  # another launch may just have done the same, and held the lock of a reference
        _git(mirror, *arguments)


def _has_commit(mirror: Path, rev: str) -> bool:
    if not _OBJECT_ID.fullmatch(rev):
        return False
    try:
        _git(mirror, "cat-file", "-e", f"{rev}^{{commit}}")
    except ProgramError:
        return False
    return True
