"""The choice of files to freeze: by name, folder, size and, for links, by their target.

Independent of git: callers list the files. Paths are relative to the project, with slashes.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from orchestrator.errors import RequestError
from orchestrator.spec import SnapshotOptions
from orchestrator.system.threads import in_shares
from orchestrator.system.units import size

MB = 1_000_000
_FILES_PER_THREAD = 100

SOURCE_SUFFIXES = frozenset({
    ".py", ".pyi", ".pyx", ".pxd", ".c", ".cc", ".cpp", ".cxx", ".cu", ".cuh", ".h", ".hpp", ".sh",
    ".bash", ".sql", ".j2", ".jinja", ".proto", ".typed", ".yaml", ".yml", ".toml", ".json", ".cfg",
    ".conf", ".ini", ".txt", ".md", ".rst", ".dvc", ".lock",
})  # fmt: skip
"""Untracked files with these suffixes are frozen; tracked ones always are."""

SOURCE_NAMES = frozenset({"Makefile", "Dockerfile", ".gitignore", ".gitattributes", ".gitmodules"})

NEVER = frozenset(
    {
        ".git",
        ".hg",
        ".svn",
        ".tox",
        ".nox",
        ".eggs",
        "__pycache__",
        "node_modules",
        "site-packages",
        ".ipynb_checkpoints",
        ".mypy_cache",
        ".pytest_cache",
        ".ruff_cache",
        ".hypothesis",
        ".cache",
    }
)
"""Folders of which only tracked files are frozen, whatever `include` says; virtual environments are treated alike."""

OUTPUTS = frozenset({"mlruns", "lightning_logs", "wandb", ".hydra"})
"""Folders that tools write: new files in them at every run would give every launch a different snapshot."""

_CREDENTIAL_PATTERNS = (
    ".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", "id_rsa", "id_dsa",
    "id_ecdsa", "id_ed25519", "credentials", "credentials*.json", "client_secret*.json",
    "service[_-]account*.json", "secrets.json", "secrets.toml", "secrets.yaml", "secrets.yml", ".netrc",
    "_netrc", ".pgpass", ".pypirc", ".git-credentials", ".htpasswd", ".boto",
)  # fmt: skip
_CREDENTIALS = re.compile("|".join(map(fnmatch.translate, _CREDENTIAL_PATTERNS)))
_TEMPLATES = frozenset({".env.dist", ".env.example", ".env.sample", ".env.template"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The rules by which files of a project are frozen. Paths are relative to the project, with slashes."""

    project: Path
    excluded: tuple[str, ...]
    options: SnapshotOptions
    known: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, project: Path, options: SnapshotOptions, exclude: Sequence[Path]) -> Self:
        if not project.is_dir():
            raise RequestError(f"the project {str(project)!r} is not a folder", fix="name the folder with conf/")
        return cls(
            project=project.resolve(),
            options=options,
            excluded=tuple(sorted({name for path in exclude for name in _inside(path, project)})),
        )

    def bars(self, path: str) -> bool:
        """Return whether an untracked file is in a folder from which none may be frozen."""
        return self.excludes(path) or self._bars_folder(path.rstrip("/").rpartition("/")[0])

    def excludes(self, path: str) -> bool:
        return any(path == name or path.startswith(f"{name}/") for name in self.excluded)

    def _bars_folder(self, folder: str) -> bool:
        if not folder:
            return False
        if folder not in self.known:
            above, _, name = folder.rpartition("/")
            self.known[folder] = name in NEVER or self._bars_folder(above) or self._is_environment(folder)
        return self.known[folder]

    def _is_environment(self, folder: str) -> bool:
        path = self.project / folder
        return (path / "pyvenv.cfg").exists() or (path / "conda-meta").exists()

    def choose(self, untracked: Iterable[str]) -> tuple[list[str], list[str]]:
        """Split untracked files into those to freeze, and those that the user may miss in the snapshot."""
        seen = [path for path in untracked if not self.bars(path)]
        _refuse_credentials(seen)
        seen = [path for path in seen if OUTPUTS.isdisjoint(path.split("/"))]
        return [path for path in seen if _is_source(path)], [path for path in seen if not _is_source(path)]

    def included(self) -> list[str]:
        """Return the files that `snapshot.include` names, including ignored ones."""
        found = sorted({path for pattern in self.options.include for path in self._expand(pattern)})
        _refuse_credentials(found)
        return found

    def _expand(self, pattern: str) -> list[str]:
        fix = "correct or remove it; patterns are relative to the project, a folder means all files in it"
        if not pattern or Path(pattern).is_absolute() or ".." in Path(pattern).parts:
            raise RequestError(f"snapshot.include: {pattern!r} does not stay inside the project", fix=fix)
        found = [path for match in self.project.glob(pattern) for path in self._files_at(match)]
        if not found:
            raise RequestError(f"snapshot.include: {pattern!r} names no file that may be frozen", fix=fix)
        return found

    def _files_at(self, match: Path) -> Iterator[str]:
        path = match.relative_to(self.project).as_posix()
        if match.is_dir() and not match.is_symlink():
            yield from self.walk("" if path == "." else path)
        elif not self.bars(path):
            yield path

    def walk(self, folder: str) -> Iterator[str]:
        """Yield the files and links below a folder, without entering barred folders."""
        if self.excludes(folder) or self._bars_folder(folder):
            return
        for entry in _scan(self.project / folder):
            path = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self.walk(path)
            elif (entry.is_symlink() or entry.is_file()) and not self.excludes(path):
                yield path

    def sizes(self, paths: Iterable[str]) -> dict[str, int]:
        """Return the size of each file. Raises RequestError if they are over the limits."""
        sizes = dict.fromkeys(paths, 0)

        def measure(some: Sequence[str]) -> None:
            sizes.update((path, _size(f"{self.project}/{path}")) for path in some)

        in_shares(measure, list(sizes), least=_FILES_PER_THREAD)
        self._refuse_large(sizes)
        return sizes

    def _refuse_large(self, sizes: Mapping[str, int]) -> None:
        large = sorted(sizes, key=lambda path: -sizes[path])[:5]
        file_mb, total_mb = self.options.max_file_mb, self.options.max_total_mb
        over = [path for path in large if sizes[path] > file_mb * MB]
        if over:
            raise _too_large(over, sizes, f"over snapshot.max_file_mb={file_mb:g}", "max_file_mb")
        total = sum(sizes.values())
        if total > total_mb * MB:
            why = f"{size(total)} in all, over snapshot.max_total_mb={total_mb:g}; the largest"
            raise _too_large(large, sizes, why, "max_total_mb")

    def refuse_leaving_links(self, links: Iterable[str]) -> None:
        """Raise RequestError for a link through which a job would read the checkout, or other files that may change."""
        leaving = [path for path in links if self._leaves(path)]
        if leaving:
            raise RequestError(
                f"cannot freeze links that leave the project: {listed(leaving)}",
                why="a job would follow them to files that may change under it",
                fix="make them relative links inside the project, put copies in their place, or ignore them",
            )

    def _leaves(self, path: str) -> bool:
        link = self.project / path
        if not link.is_symlink():
            return False  # gone meanwhile
        target = os.readlink(link)  # noqa: PTH115 - a str keeps what Path would normalise
        if target.startswith("/") or _climbs_out(path, target):
            return True
        return not Path(os.path.realpath(link)).is_relative_to(self.project)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise RequestError(f"cannot list {folder}", why=str(error), fix="make it readable, or move it") from error


def _inside(path: Path, project: Path) -> Iterator[str]:
    """Yield the paths of a folder inside the project, relative to it: as given, and with links resolved."""
    lexical, root = Path(os.path.abspath(path)), Path(os.path.abspath(project))  # noqa: PTH100 - keeps links
    for inner, outer in ((lexical, root), (path.resolve(), project.resolve())):
        if inner == outer:
            raise RequestError(
                f"{path} is the project itself",
                why="its results would be among its code",
                fix="choose a separate folder for runs, such as runs/",
            )
        if inner.is_relative_to(outer):
            yield inner.relative_to(outer).as_posix()


def _climbs_out(link: str, target: str) -> bool:
    """Return whether a relative target passes above the project, even if it comes back."""
    depth = link.count("/")
    for part in target.split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return True
    return False


def _is_source(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name in SOURCE_NAMES or os.path.splitext(name)[1].lower() in SOURCE_SUFFIXES  # noqa: PTH122 - a Path costs more


def is_credential(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    return _CREDENTIALS.fullmatch(name) is not None and name not in _TEMPLATES


def _refuse_credentials(paths: Iterable[str]) -> None:
    """Raise RequestError for files that look like secrets, even if their suffix already leaves them out."""
    found = [path for path in paths if is_credential(path)]
    if found:
        raise RequestError(
            f"cannot freeze files that look like credentials: {listed(found)}",
            why="a snapshot is a copy that others may be able to read",
            fix="move them out of the project, or, in a git repository, name them in .gitignore",
        )


def _too_large(paths: Sequence[str], sizes: Mapping[str, int], why: str, limit: str) -> RequestError:
    listed = ", ".join(f"{path!r} ({size(sizes[path])})" for path in paths)
    return RequestError(
        "the project is too large to be frozen",
        why=f"{why}: {listed}",
        fix=f"in a git repository name data in .gitignore; else move it away, or raise snapshot.{limit}",
    )


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0  # not checked out, or deleted meanwhile


def listed(paths: Sequence[str], most: int = 5) -> str:
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(map(repr, paths[:most])) + more
