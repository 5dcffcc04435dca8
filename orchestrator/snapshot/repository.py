"""One git repository, only read: git writes to a copy of the index and to a temporary object folder.

No hook runs, and no lock of the user's is waited for. A filter such as git-lfs runs as in `git add`; in a clone or a
submodule inside the project, only filters from the user's own configuration run, not those of the clone's.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import RequestError, StateError
from orchestrator.snapshot.tree import Entry, digest
from orchestrator.system.git import git as run_git
from orchestrator.system.git import guards, trust
from orchestrator.system.processes import ProgramError


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """The folder to freeze in one repository, and the environment in which git only reads that repository.

    `prefix` is the folder's path below the repository's top, `""` or `"path/"`; `settings` are passed to each git call.
    """

    folder: Path
    prefix: str
    algorithm: str
    objects: Path
    env: Mapping[str, str]
    settings: Sequence[str] = ()

    @property
    def no_object(self) -> str:
        return "0" * len(digest(self.algorithm, b"").hex())

    def git(self, *words: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> bytes:
        try:
            return run_git(self.folder, *words, settings=self.settings, stdin=stdin, env=env or self.env)
        except ProgramError as error:
            if any(os.strerror(number) in error.stderr for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO)):
                raise StateError(
                    f"git {words[0]} cannot write its temporary files for {self.folder}",
                    why=error.reason,
                    fix="free some space in the folder for runs (--runs, $ORCH_RUNS) and in $TMPDIR",
                ) from error
            raise RequestError(
                f"git {words[0]} failed in {self.folder}",
                why=error.stderr.strip(),
                fix="see what `git add --dry-run --all` says there",
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The output of `git status`, parsed; an untracked repository ends in a slash. Paths are relative to its folder."""

    commit: str | None
    branch: str | None
    present: tuple[str, ...]
    gone: tuple[str, ...]
    unmerged: tuple[str, ...]
    untracked: tuple[str, ...]


def find_repository(folder: Path, scratch: Path, *, foreign: bool = False) -> Repository | None:
    """Return the repository that contains a folder; None if there is none, or git is not installed.

    `foreign`: it is not the project's own, and no program that its configuration names is run.
    """
    if shutil.which("git") is None:
        return None
    try:
        settings = guards(folder) if foreign else ()
        answer = run_git(
            folder,
            "rev-parse",
            "--show-object-format",
            "--show-prefix",
            "--next",
            "--git-path",
            "index",
            "--next",
            "--git-path",
            "objects",
            settings=settings,
        )
    except ProgramError as error:
        if "not a git repository (or any" in error.stderr:
            return None
        raise _unusable(folder, error) from error
    about, index, objects = os.fsdecode(answer).removesuffix("\n").split("\n--next\n")  # echoed by rev-parse
    algorithm, _, prefix = about.partition("\n")
    real = (folder / objects).resolve()
    return Repository(
        folder=folder,
        prefix=prefix,
        algorithm=algorithm,
        objects=real,
        env=redirect(copy_index(folder / index, scratch), scratch, [real]),
        settings=settings,
    )


def _unusable(folder: Path, error: ProgramError) -> RequestError:
    fix = trust(error.stderr) or "repair it; `git status` there says the same"
    return RequestError(f"git cannot use the repository at {folder}", why=error.stderr.strip(), fix=fix)


def copy_index(index: Path, scratch: Path) -> Path:
    """Copy an index and its time, by which git decides which entries are too recent to be trusted."""
    copy = scratch / f"index-{len(list(scratch.glob('index-*')))}"
    try:
        shutil.copy2(index, copy)
    except FileNotFoundError:
        copy.unlink(missing_ok=True)  # nothing was ever added; to git a missing index is an empty one
    return copy


def redirect(index: Path, scratch: Path, objects: Iterable[Path]) -> dict[str, str]:
    """Return the environment in which git writes to `scratch` and also reads `objects`."""
    (scratch / "objects").mkdir(exist_ok=True)
    return {
        "GIT_INDEX_FILE": str(index),
        "GIT_OBJECT_DIRECTORY": str(scratch / "objects"),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": ":".join(map(_quoted, objects)),
    }


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def read_status(repo: Repository, pathspec: Sequence[str]) -> Status:
    """Ask git for the differences from the commit, with paths relative to the repository's folder."""
    answer = repo.git(
        "status",
        "--porcelain=v2",
        "-z",
        "--branch",
        "--no-ahead-behind",
        "--untracked-files=all",
        "--no-renames",
        "--ignore-submodules=dirty",
        *pathspec,
    )
    return _parse_status(os.fsdecode(answer), repo.prefix)


def _parse_status(answer: str, prefix: str) -> Status:
    """Parse `git status --porcelain=v2 -z` without renames; see git-status(1)."""
    found: dict[str, list[str]] = {kind: [] for kind in ("present", "gone", "unmerged", "untracked")}
    heads: dict[str, str] = {}
    for record in answer.split("\0")[:-1]:
        kind, _, rest = record.partition(" ")
        if kind == "#":
            key, _, value = rest.partition(" ")
            heads[key] = value
        elif kind == "?":
            found["untracked"].append(rest.removeprefix(prefix))
        else:
            # the mode in the working tree is the third of the modes, or the fourth of an unmerged path
            fields = rest.split(" ", 7 if kind == "1" else 9)
            path, mode = fields[-1].removeprefix(prefix), fields[4 if kind == "1" else 5]
            found["gone" if mode == "000000" else "present"].append(path)
            found["unmerged"] += [path] if kind == "u" else []
    commit, branch = heads.get("branch.oid"), heads.get("branch.head")
    return Status(
        commit=None if commit == "(initial)" else commit,
        branch=None if branch == "(detached)" else branch,
        **{kind: tuple(paths) for kind, paths in found.items()},
    )


def update_index(repo: Repository, *, gone: Iterable[str], present: Iterable[str]) -> None:
    """Update the temporary index from the working tree for these paths, hashing their content.

    Git may not see the user's objects here: it would touch the time of each object that it need not write.
    """
    env = {**repo.env, "GIT_ALTERNATE_OBJECT_DIRECTORIES": ""}
    removals = "".join(f"0 {repo.no_object}\t{repo.prefix}{path}\0" for path in gone)
    if removals:
        repo.git("update-index", "-z", "--index-info", stdin=os.fsencode(removals), env=env)
    paths = "".join(f"{path}\0" for path in dict.fromkeys(present))
    if paths:
        words = ("-z", "--add", "--remove", "--replace", "--stdin")
        repo.git("update-index", *words, stdin=os.fsencode(paths), env=env)


def read_entries(repo: Repository) -> list[Entry]:
    """Return the entries of the temporary index below the repository's folder."""
    answer = os.fsdecode(repo.git("ls-files", "-s", "-z", "--", "."))
    return [_entry(record) for record in answer.split("\0")[:-1]]


def read_present(repo: Repository, env: Mapping[str, str]) -> list[str]:
    """Return the paths of an index below the repository's folder, without those that a sparse checkout leaves out."""
    answer = os.fsdecode(repo.git("ls-files", "-t", "-z", "--", ".", env=env))
    tagged = (record.split(" ", 1) for record in answer.split("\0")[:-1])
    return [path for tag, path in tagged if tag != "S"]


def _entry(record: str) -> Entry:
    about, _, path = record.partition("\t")
    mode, name, _ = about.split(" ")
    return Entry(mode, name, path)
