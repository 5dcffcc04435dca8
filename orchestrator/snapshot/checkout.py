"""Freeze a project in a git repository: the files that `git add --all` would record.

Submodules, and clones inside the project, are frozen as they are, with their uncommitted edits: their files
replace the link to them, so that one tree hash names everything.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.snapshot.frozen import Pending, Snapshot
from orchestrator.snapshot.repository import (
    Repository,
    Status,
    copy_index,
    find_repository,
    read_entries,
    read_present,
    read_status,
    redirect,
    update_index,
)
from orchestrator.snapshot.selection import Selection, is_credential, listed
from orchestrator.snapshot.tree import GITLINK, LINK, Entry, tree_hash
from orchestrator.system.threads import in_shares

_FILES_PER_GIT = 100  # at least: starting git takes as long as writing this many files


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The files of one repository: the project's own, a submodule, or a clone inside the project.

    `at` is its folder below the project, `""` or `"path/"`; `left` are its untracked files that are left out.
    """

    repo: Repository
    at: str
    status: Status
    entries: tuple[Entry, ...]
    dirty: bool
    left: tuple[str, ...]


def read_parts(repo: Repository, selection: Selection, scratch: Path) -> Iterator[Part]:
    """Yield the part of the project's repository, and then of each repository inside it."""
    included = selection.included()
    waiting, seen = [("", repo)], set[Path]()
    while waiting:
        at, repo = waiting.pop(0)
        if repo.objects in seen:
            continue  # a worktree of a repository that is already included
        seen.add(repo.objects)
        part = _read(repo, at, selection, _owned(included, at, selection.project))
        yield part
        for path in _repositories_inside(part, selection):
            inner = find_repository(selection.project / path, scratch, foreign=True)
            if inner is not None and not inner.prefix:
                waiting.append((path, inner))


def _owned(paths: Iterable[str], at: str, project: Path) -> list[str]:
    """Return the paths that belong to the repository at `at` and to no repository inside it, relative to it."""
    inner = (path.removeprefix(at) for path in paths if path.startswith(at))
    return [path for path in inner if not _in_repository(project / at, path)]


def _in_repository(top: Path, path: str) -> bool:
    folders = path.split("/")[:-1]
    return any((top / "/".join(folders[: n + 1]) / ".git").exists() for n in range(len(folders)))


def _read(repo: Repository, at: str, selection: Selection, included: Sequence[str]) -> Part:
    """Check the files to freeze, then add them to the temporary index, and return the part."""
    status = read_status(repo, _pathspec(selection, at))
    wanted, left = selection.choose(f"{at}{path}" for path in status.untracked if not path.endswith("/"))
    added = [path.removeprefix(at) for path in wanted]
    present = [path for path in status.present if not (repo.folder / path).is_dir()]
    selection.sizes(f"{at}{path}" for path in {*present, *added, *included})
    fresh = set(included).difference(entry.path for entry in read_entries(repo)) if included else set()
    update_index(repo, gone=status.gone, present=[*status.present, *added, *included])
    return Part(
        repo=repo,
        at=at,
        status=status,
        entries=_without_excluded(repo, at, selection),
        dirty=bool(status.present or status.gone or added or fresh),
        left=tuple(path for path in left if path.removeprefix(at) not in fresh),
    )


def _without_excluded(repo: Repository, at: str, selection: Selection) -> tuple[Entry, ...]:
    """Remove tracked files in excluded folders from the temporary index, and return the other entries."""
    entries = read_entries(repo)
    excluded = {entry.path for entry in entries if selection.excludes(f"{at}{entry.path}")}
    if excluded:
        update_index(repo, gone=excluded, present=[])
    return tuple(entry for entry in entries if entry.path not in excluded)


def _pathspec(selection: Selection, at: str) -> list[str]:
    """Return pathspecs for all but the excluded folders, so that git does not even list these."""
    here = [name.removeprefix(at) for name in selection.excluded if name.startswith(at)]
    return ["--", ".", *(f":(exclude,literal){name}" for name in here)]


def _repositories_inside(part: Part, selection: Selection) -> Iterator[str]:
    """Yield the folders of checked-out submodules, and of repositories that git reports as untracked."""
    links = [f"{entry.path}/" for entry in part.entries if entry.mode == GITLINK]
    for path in links:
        if (part.repo.folder / path / ".git").exists():
            yield f"{part.at}{path}"
    for path in part.status.untracked:
        inner = f"{part.at}{path}"
        if path.endswith("/") and not selection.bars(inner) and not selection.excludes(inner.rstrip("/")):
            yield inner


def pending(parts: Sequence[Part], selection: Selection, scratch: Path) -> Pending:
    """Return the snapshot of all parts, named by one tree hash, after checking links and total size."""
    top = parts[0]
    entries = _whole(parts)
    selection.refuse_leaving_links(entry.path for entry in entries if entry.mode == LINK)
    sizes = selection.sizes(entry.path for entry in entries if entry.mode != GITLINK)
    snapshot = Snapshot(
        tree=tree_hash(entries, top.repo.algorithm),
        commit=top.status.commit,
        branch=top.status.branch,
        dirty=_dirty(parts),
        files=len(sizes),
        bytes=sum(sizes.values()),
        message="; ".join(_notes(parts, entries)),
    )

    def fill(tree: Path) -> None:
        env, whole = _graft(parts, entries, scratch), tree.with_name("checkout")
        _check_out(top.repo, whole, env)
        (whole / top.repo.prefix).rename(tree)
        shutil.rmtree(whole, ignore_errors=True)

    def diff() -> bytes:
        return b"".join(_diff(part, selection) for part in parts)

    paths = frozenset(entry.path for entry in entries)
    return Pending(snapshot=snapshot, fill=fill, diff=diff, root=selection.project, paths=paths)


def _check_out(repo: Repository, whole: Path, env: Mapping[str, str]) -> None:
    """Write the index's files to a new folder, as `checkout-index --all` does, with several processes.

    The folders are created first, because processes that create the same one fail.
    """
    paths = read_present(repo, env)
    (whole / repo.prefix).mkdir(parents=True)
    for folder in _folders(paths):
        (whole / repo.prefix / folder).mkdir()

    def write(some: Sequence[str]) -> None:
        names = os.fsencode("".join(f"{path}\0" for path in some))
        repo.git("checkout-index", "--quiet", "-z", "--stdin", f"--prefix={whole}/", stdin=names, env=env)

    in_shares(write, paths, least=_FILES_PER_GIT)


def _folders(paths: Iterable[str]) -> list[str]:
    """Return all folders above files, each after its parent."""
    found = set[str]()
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return sorted(found)


def _dirty(parts: Sequence[Part]) -> bool:
    """Return whether any part differs from its commit, or is a repository that no commit records."""
    linked = {f"{part.at}{entry.path}/" for part in parts for entry in part.entries if entry.mode == GITLINK}
    return any(part.dirty or (part.at and part.at not in linked) for part in parts)


def _whole(parts: Sequence[Part]) -> list[Entry]:
    """Return the entries of all parts, relative to the project, with inner repositories in place of their links."""
    inner = {part.at.rstrip("/") for part in parts if part.at}
    moved = [entry._replace(path=f"{part.at}{entry.path}") for part in parts for entry in part.entries]
    return [entry for entry in moved if entry.path not in inner]


def _graft(parts: Sequence[Part], entries: Sequence[Entry], scratch: Path) -> Mapping[str, str]:
    """Return an environment whose index contains all parts, for one checkout of everything."""
    top, inner = parts[0], parts[1:]
    if not inner:
        return top.repo.env
    index = copy_index(Path(top.repo.env["GIT_INDEX_FILE"]), scratch)
    env = redirect(index, scratch, [part.repo.objects for part in parts])
    removed = [Entry("0", top.repo.no_object, part.at.rstrip("/")) for part in inner]
    own = {entry.path for entry in top.entries}
    lines = [*removed, *(entry for entry in entries if entry.path not in own)]
    text = "".join(f"{entry.mode} {entry.object}\t{top.repo.prefix}{entry.path}\0" for entry in lines)
    top.repo.git("update-index", "-z", "--index-info", stdin=os.fsencode(text), env=env)
    return env


def _notes(parts: Sequence[Part], entries: Sequence[Entry]) -> Iterator[str]:
    """Yield notes on this snapshot that the user should read before a thousand runs use it."""
    unmerged = [f"{part.at}{path}" for part in parts for path in part.status.unmerged]
    if unmerged:
        yield f"frozen as it is in the middle of a merge: {listed(unmerged)}"
    absent = [entry.path for entry in entries if entry.mode == GITLINK]
    if absent:
        yield f"submodule not checked out, so not frozen: {listed(absent)}"
    left = [path for part in parts for path in part.left]
    if left:
        yield f"untracked, so not frozen unless snapshot.include names it: {listed(left, 3)}"
    untracked = {f"{part.at}{path}" for part in parts for path in part.status.untracked}
    secret = [entry.path for entry in entries if entry.path not in untracked and is_credential(entry.path)]
    if secret:
        yield f"looks like credentials, frozen because git tracks it: {listed(secret, 3)}"


def _diff(part: Part, selection: Selection) -> bytes:
    """Return the differences from the commit as a patch; empty without a commit, since the tree has everything."""
    if part.status.commit is None or not part.dirty:
        return b""
    return part.repo.git(
        "diff",
        "--cached",
        "--binary",
        "--no-ext-diff",
        "--no-textconv",
        "--no-color",
        "--no-renames",
        "--submodule=short",
        f"--src-prefix=a/{part.at}",
        f"--dst-prefix=b/{part.at}",
        "HEAD",
        *_pathspec(selection, part.at),
    )
