"""Data versions that DVC tracks: a target in a git repository, at a revision.

DVC itself says what the target was (`dvc_probe`, in a subprocess), once per repository, commit and
target: that can never change, so the answer is kept for ever. Where the bytes lie can change, so
it is looked up each time, and DVC is asked again after its configuration was edited.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from orchestrator.data.answers import Answers
from orchestrator.data.dvc_cache import expected_paths, other_paths
from orchestrator.data.dvc_probe import fingerprint
from orchestrator.data.manifest import Entry, Manifest
from orchestrator.errors import ConfigError, DataError, RequestError
from orchestrator.process import ProgramError, run

Probe = Callable[[Mapping[str, str]], Mapping[str, Any]]
"""From a request to an answer, as dvc_probe defines them."""

_PROBE_VERSION = "1"
_GIT = {"GIT_OPTIONAL_LOCKS": "0", "GIT_LITERAL_PATHSPECS": "1"}
_OBJECT_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REMOTE_GIT = re.compile(r"\w[\w+.-]*://|[\w.-]+@[\w.-]+:")
_STATS_AT_ONCE = 16
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DvcVersion:
    """The keys of a data version with `source: dvc`; `path` is relative to `repo`."""

    path: str
    repo: str = "."
    rev: str = "HEAD"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """A folder in a git working tree at a commit; `prefix` leads from the tree's root to the folder."""

    folder: Path
    root: Path
    prefix: str
    commit: str
    at_head: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """DVC's answer: files with their checksums, and where their objects may lie."""

    files: tuple[tuple[str, str], ...]
    dvc_root: str
    outputs: tuple[str, ...]
    folders: tuple[str, ...]
    unreachable: tuple[str, ...]
    definitions: tuple[str, ...]
    config: Mapping[str, str | None]

    @classmethod
    def from_json(cls, answer: Mapping[str, Any]) -> Self:
        return cls(
            files=tuple((str(path), str(checksum)) for path, checksum in answer["files"]),
            dvc_root=str(answer["dvc_root"]),
            outputs=tuple(answer["outputs"]),
            folders=tuple(answer["folders"]),
            unreachable=tuple(answer["unreachable"]),
            definitions=tuple(answer["definitions"]),
            config=dict(answer["config"]),
        )

    def up_to_date(self) -> bool:
        return all(fingerprint(Path(file)) == known for file, known in self.config.items())


def ask_dvc(request: Mapping[str, str]) -> Mapping[str, Any]:
    """Run the probe in a process of its own; raises DataError if it fails in an unforeseen way."""
    package_root = str(Path(__file__).resolve().parents[2])
    python_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
    env = {"PYTHONPATH": python_path, "DVC_NO_ANALYTICS": "1"}
    argv = [sys.executable, "-P", "-m", "orchestrator.data.dvc_probe"]
    try:
        answer: dict[str, Any] = json.loads(run(argv, env=env, stdin=json.dumps(request).encode()))
    except (ProgramError, ValueError) as error:
        why = str(error).strip().rpartition("\n")[2]
        fix = f"dvc --cd {shlex.quote(request['root'])} doctor"
        raise DataError(f"DVC could not say what {request['target']!r} is", why=why, fix=fix) from error
    return answer


def resolve(version: DvcVersion, *, project: Path, cache: Path, probe: Probe = ask_dvc) -> Manifest:
    """Return the exact files of the target at the revision, and where each can be read.

    Raises RequestError if the repository, revision or path does not exist, or if objects are neither in
    DVC's cache nor in a remote that is a folder of this machine.
    """
    target = _target(version.path)
    checkout = _checkout(version, project)
    tracked = _tracked(version, checkout, target, Answers(cache / "dvc"), probe)
    repair = _repair(checkout, tracked.dvc_root, tracked.outputs)
    origin = {
        "source": "dvc",
        "repo": str(checkout.folder),
        "path": version.path,
        "rev": version.rev,
        "commit": checkout.commit,
        "dirty": checkout.at_head and _differs(checkout.root, tracked.definitions),
        "repair": repair,
    }
    return Manifest.of(_entries(version, tracked, repair), origin=origin)


def _target(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts:
        raise ConfigError(
            f"the data version's path {path!r} leads out of its repository",
            fix="write it relative to `repo`, as `dvc list` shows it",
        )
    return "/".join(parts)


# --- git ------------------------------------------------------------------------------------------------


def _git(folder: Path, *arguments: str) -> str:
    return os.fsdecode(run(["git", "-C", str(folder), *arguments], env=_GIT))


def _checkout(version: DvcVersion, project: Path) -> Checkout:
    if _REMOTE_GIT.match(version.repo):
        raise ConfigError(
            f"the data version's repo {version.repo!r} is a URL",
            why="data is read from a clone that the nodes can see",
            fix="clone it once and set `repo` to the clone's folder",
        )
    folder = (project / Path(version.repo).expanduser()).resolve()
    root = _root(folder)
    head, commit = _commits(root, version.rev)
    prefix = "/".join(folder.relative_to(root).parts)
    return Checkout(folder=folder, root=root, prefix=prefix, commit=commit, at_head=commit == head)


def _root(folder: Path) -> Path:
    if not folder.is_dir():
        raise RequestError(f"no folder {folder}", why="it is the data version's `repo`", fix="correct `repo`")
    try:
        return Path(_git(folder, "rev-parse", "--show-toplevel").removesuffix("\n")).resolve()
    except ProgramError as error:
        raise RequestError(
            f"{folder} is not in a git working tree",
            why=error.stderr.strip().partition("\n")[0],
            fix="set the data version's `repo` to a clone, or use `source: directory`",
        ) from error


def _commits(root: Path, rev: str) -> tuple[str, str]:
    """Return HEAD's commit and the revision's."""
    try:
        found = _git(root, "rev-parse", "HEAD^{commit}", f"{rev}^{{commit}}").split()
    except ProgramError:
        found = []
    if rev.startswith("-") or len(found) != 2 or not all(map(_OBJECT_ID.fullmatch, found)):
        raise _unknown_revision(root, rev)
    return found[0], found[1]


def _unknown_revision(root: Path, rev: str) -> RequestError:
    refs = _git(root, "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags", "refs/remotes")
    names = refs.splitlines()
    return RequestError(
        f"{root} has no revision {rev!r}",
        why=f"it has {_some(rev, names)}" if names else "it has no commit yet",
        fix=f"choose one of them, or: git -C {shlex.quote(str(root))} fetch --all --tags",
    )


def _some(word: str, names: Sequence[str]) -> str:
    """Return the names if they are few, else those nearest to the word."""
    shown = list(names)
    if len(names) > _SHOWN:
        shown = difflib.get_close_matches(word, names, n=_SHOWN, cutoff=0.4) or shown[:_SHOWN]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(map(repr, shown)) + more


def _differs(root: Path, definitions: Sequence[str]) -> bool:
    """Return whether the files that define the target have uncommitted changes."""
    try:
        _git(root, "diff", "--quiet", "HEAD", "--", *definitions)
    except ProgramError as error:
        return error.status == 1
    return False


# --- what DVC says --------------------------------------------------------------------------------------


def _tracked(version: DvcVersion, checkout: Checkout, target: str, answers: Answers, probe: Probe) -> Tracked:
    question = (_PROBE_VERSION, str(checkout.root), checkout.prefix, checkout.commit, target)
    if (kept := _parse(answers.read(*question))) and kept.up_to_date():
        return kept
    request = {
        "root": str(checkout.root), "prefix": checkout.prefix, "commit": checkout.commit, "target": target,
    }  # fmt: skip
    answer = probe(request)
    if "refused" in answer:
        raise _refusal(answer, version, checkout)
    answers.write(answer, *question)
    return Tracked.from_json(answer)


def _parse(answer: Any) -> Tracked | None:
    try:
        return Tracked.from_json(answer)
    except (KeyError, TypeError, ValueError):
        return None


def _refusal(answer: Mapping[str, Any], version: DvcVersion, checkout: Checkout) -> RequestError:
    where = f"{checkout.folder} at {version.rev} ({checkout.commit[:10]})"
    match answer["refused"]:
        case "not dvc":
            return RequestError(
                f"{where} is no DVC repository",
                why="it has no folder .dvc there",
                fix="correct `repo` or `rev`, or use `source: directory`",
            )
        case "unknown":
            return _untracked(answer, version, where)
        case "empty":
            return RequestError(
                f"{version.path!r} holds no files in {where}",
                fix="correct `path` or `rev`, or `dvc add` the data again",
            )
        case "no checksum":
            repair = _repair(checkout, answer["dvc_root"], [answer["path"]])
            return RequestError(
                f"{answer['path']!r} has no md5 in {where}",
                why="it was never downloaded, so its content is not pinned",
                fix=f"{repair}, then `dvc commit` and commit to git",
            )
        case "no listing":
            repair = _repair(checkout, answer["dvc_root"], [answer["path"]])
            return _unlisted(answer, where, repair)
    return RequestError(f"DVC cannot read {where}", why=str(answer["detail"]), fix="correct what it names")


def _untracked(answer: Mapping[str, Any], version: DvcVersion, where: str) -> RequestError:
    tracked, broken = answer["tracked"], answer["broken"]
    why = f"DVC tracks {_some(version.path, tracked)}" if tracked else "DVC tracks nothing there"
    if broken:
        why += f"; and these could not be read: {'; '.join(broken[:_SHOWN])}"
    return RequestError(
        f"DVC does not track {version.path!r} in {where}",
        why=why,
        fix="correct `path`, or `dvc add` it and commit",
    )


def _unlisted(answer: Mapping[str, Any], where: str, repair: str) -> RequestError:
    path, damaged = answer["path"], answer["damaged"]
    if damaged:
        return RequestError(
            f"the list of the files of {path!r} in {where} is damaged",
            why=f"another content than its name says: {', '.join(damaged)}",
            fix=f"rm {shlex.join(damaged)} && {repair}",
        )
    return RequestError(
        f"the list of the files of {path!r} in {where} is not on this machine",
        why=_looked_in(answer["folders"], answer["unreachable"]),
        fix=repair,
    )


def _looked_in(folders: Sequence[str], unreachable: Sequence[str]) -> str:
    remotes = f"; not on this machine: the remotes {', '.join(map(repr, unreachable))}" if unreachable else ""
    return f"looked in {', '.join(folders)}{remotes}"


def _repair(checkout: Checkout, dvc_root: str, outputs: Sequence[str]) -> str:
    """Return the command that brings the outputs' objects into DVC's cache."""
    revisions = [] if checkout.at_head else ["--all-commits"]
    targets = outputs if len(outputs) <= _SHOWN else []
    return shlex.join(["dvc", "--cd", dvc_root, "fetch", *revisions, *targets])


# --- where the bytes are --------------------------------------------------------------------------------


def _entries(version: DvcVersion, tracked: Tracked, repair: str) -> list[Entry]:
    checksums = sorted({checksum for _, checksum in tracked.files})
    found = dict(zip(checksums, _find_all(checksums, tracked.folders), strict=True))
    missing = [(path, checksum) for path, checksum in tracked.files if found[checksum] is None]
    if missing:
        shown = ", ".join(f"{path!r} ({checksum})" for path, checksum in missing[:3])
        count = f"{len(missing)} of the {len(tracked.files)} files of {version.path!r} at {version.rev}"
        raise RequestError(
            f"{count} are not on this machine: {shown}{', ...' if len(missing) > 3 else ''}",
            why=_looked_in(tracked.folders, tracked.unreachable),
            fix=repair,
        )
    return [
        Entry(path=path, hash=checksum, size=at[0], sources=at[1])
        for path, checksum in tracked.files
        if (at := found[checksum])
    ]


def _find_all(checksums: Sequence[str], folders: Sequence[str]) -> list[tuple[int, tuple[str, ...]] | None]:
    """Find every object; in threads, because a network filesystem answers slowly but many at once."""
    step = max(1, -(-len(checksums) // _STATS_AT_ONCE))
    slices = [checksums[at : at + step] for at in range(0, len(checksums), step)]
    with ThreadPoolExecutor(_STATS_AT_ONCE) as pool:
        found = pool.map(lambda some: [_find(checksum, folders) for checksum in some], slices)
        return [each for some in found for each in some]


def _find(checksum: str, folders: Sequence[str]) -> tuple[int, tuple[str, ...]] | None:
    """Return an object's size and all paths where it may be, or None if it is nowhere."""
    expected = expected_paths(folders, checksum)
    for path in expected:
        if (size := _size(path)) is not None:
            return size, tuple(expected)
    for path in other_paths(folders, checksum):
        if (size := _size(path)) is not None:
            return size, (path,)
    return None


def _size(path: str) -> int | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path for each of 200,000 objects costs more than the call
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None
