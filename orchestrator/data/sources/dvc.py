"""Data versions that DVC tracks: a target in a git repository, at a revision.

DVC itself says what the target was (`dvc_probe`, in a subprocess), once per repository, commit and
target: that can never change, so the answer is kept forever. Where the bytes lie can change, so
it is looked up each time, and DVC is asked again after its configuration was edited. What no folder of this machine
holds must be in a remote; that is asked once as well, for the sizes.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from orchestrator.data.manifest import Entry, Manifest
from orchestrator.data.sources.dvc_cache import expected_paths, other_paths
from orchestrator.data.sources.dvc_fetcher import Ask, DvcFetcher, ask_remotes
from orchestrator.data.sources.dvc_probe import fingerprint
from orchestrator.data.sources.git import Checkout, checkout, differs, dvc_repositories, some_of
from orchestrator.errors import ConfigError, DataError, RequestError, nearest
from orchestrator.system.cache import Answers
from orchestrator.system.extras import require
from orchestrator.system.processes import ProgramError, ask, with_our_package
from orchestrator.system.threads import map_in_threads

Probe = Callable[[Mapping[str, str]], Mapping[str, Any]]
"""From a request to an answer, as dvc_probe defines them."""

_PROBE_VERSION = "2"
_STATS_AT_ONCE = 16
_SHOWN = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DvcVersion:
    """The keys of a data version with `source: dvc`; `path` is relative to `repo`.

    `remote` is the only remote to use; None stands for all, the default one first.
    """

    path: str
    repo: str = "."
    rev: str = "HEAD"
    remote: str | None = None


class File(NamedTuple):
    """One file: a plain tuple, because there may be 200,000. `at` is an Entry's `remote`."""

    path: str
    checksum: str
    size: int | None
    at: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """DVC's answer: files with their checksums, and where their objects may lie."""

    files: tuple[File, ...]
    dvc_root: str
    outputs: tuple[str, ...]
    definitions: tuple[str, ...]
    folders: tuple[str, ...]
    remotes: tuple[Mapping[str, object], ...]
    imports: tuple[Mapping[str, Any], ...]
    config: Mapping[str, str | None]

    @classmethod
    def from_json(cls, answer: Mapping[str, Any]) -> Self:
        return cls(
            files=tuple(File(path, checksum, size, tuple(at)) for path, checksum, size, at in answer["files"]),
            dvc_root=str(answer["dvc_root"]),
            outputs=tuple(answer["outputs"]),
            definitions=tuple(answer["definitions"]),
            folders=tuple(answer["folders"]),
            remotes=tuple(map(dict, answer["remotes"])),
            imports=tuple(map(dict, answer["imports"])),
            config=dict(answer["config"]),
        )

    def up_to_date(self) -> bool:
        return all(fingerprint(Path(file)) == known for file, known in self.config.items())

    @property
    def elsewhere(self) -> list[Mapping[str, object]]:
        """The remotes that are not a folder of this machine."""
        return [remote for remote in self.remotes if remote["folder"] is None]


def ask_dvc(request: Mapping[str, str]) -> Mapping[str, object]:
    """Run the probe in a process of its own; raises DataError if it fails in an unforeseen way."""
    require("dvc", "`source: dvc`")
    env = with_our_package() | {"DVC_NO_ANALYTICS": "1"}
    try:
        answer: dict[str, object] = ask(["-m", "orchestrator.data.sources.dvc_probe"], dict(request), env=env)
    except ProgramError as error:
        fix = f"dvc --cd {shlex.quote(request['root'])} doctor"
        raise DataError(f"DVC could not say what {request['target']!r} is", why=error.reason, fix=fix) from error
    return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Resolver:
    """What resolving needs besides the version, for the version itself and for what it imports."""

    project: Path
    cache: Path
    probe: Probe

    def tracked(self, version: DvcVersion, place: Checkout, target: str) -> Tracked:
        """Return DVC's answer, with the files that only the repositories imported from can list."""
        found = self._asked(version, place, target)
        for each in found.imports:
            if not each["listed"]:
                source = self.imported(each)
                files = tuple(row._replace(path="/".join(filter(None, (each["at"], row.path)))) for row in source.files)
                found = _joined(found, source, files)
        return found

    def imported(self, each: Mapping[str, Any]) -> Tracked:
        version = DvcVersion(path=each["path"], repo=each["url"], rev=each["rev"])
        place = checkout(version.repo, version.rev, project=self.project, cache=self.cache)
        return self.tracked(version, place, _target(version.path))

    def _asked(self, version: DvcVersion, place: Checkout, target: str) -> Tracked:
        answers = Answers(self.cache / "dvc")
        question = (_PROBE_VERSION, str(place.root), place.prefix, place.commit, target)
        if (kept := _parse(answers.read(*question))) and kept.up_to_date():
            return kept
        request = {
            "root": str(place.root),
            "prefix": place.prefix,
            "commit": place.commit,
            "target": target,
            "clone": "yes" if place.clone else "",
        }
        answer = self.probe(request)
        if "refused" in answer:
            raise _refusal(answer, version, place)
        answers.write(answer, *question)
        return Tracked.from_json(answer)


def resolve(
    version: DvcVersion, *, project: Path, cache: Path, probe: Probe = ask_dvc, ask: Ask = ask_remotes
) -> Manifest:
    """Return the exact files of the target at the revision, and where each can be read.

    Raises RequestError if the repository, revision, path or remote does not exist, or if objects are neither in
    DVC's cache nor in a remote.
    """
    target = _target(version.path)
    place = checkout(version.repo, version.rev, project=project, cache=cache)
    resolver = _Resolver(project=project, cache=cache, probe=probe)
    tracked = _only(version.remote, resolver.tracked(version, place, target))
    repair = _repair(version, place, tracked.dvc_root, tracked.outputs)
    tracked = _with_imports(tracked, resolver)
    question = (_PROBE_VERSION, str(place.root), place.prefix, place.commit, target, str(version.remote))
    sizes = _Sizes(version=version, question=question, answers=Answers(cache / "dvc-sizes"), repair=repair, ask=ask)
    origin = {
        "source": "dvc",
        "repo": place.name,
        "path": version.path,
        "rev": version.rev,
        "commit": place.commit,
        "dirty": differs(place, tracked.definitions),
        "repair": repair,
        **({"remotes": tracked.elsewhere} if tracked.elsewhere else {}),
    }
    return Manifest.of(_entries(tracked, sizes), origin=origin)


def _target(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts:
        raise ConfigError(
            f"the data version's path {path!r} leads out of its repository",
            fix="write it relative to `repo`, as `dvc list` shows it",
        )
    return "/".join(parts)


# --- what DVC says --------------------------------------------------------------------------------------


def _parse(answer: Any) -> Tracked | None:
    try:
        return Tracked.from_json(answer)
    except (KeyError, TypeError, ValueError):
        return None


def _refusal(answer: Mapping[str, Any], version: DvcVersion, place: Checkout) -> RequestError:
    where = f"{place.name} at {version.rev} ({place.commit[:10]})"
    match answer["refused"]:
        case "not dvc":
            return RequestError(
                f"{where} is not a DVC repository",
                why=_no_repository(version, place),
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
            repair = _repair(version, place, answer["dvc_root"], [answer["path"]])
            return RequestError(
                f"{answer['path']!r} has no md5 in {where}",
                why="it was never downloaded, so its content is not pinned",
                fix=f"{repair}, then `dvc commit` and commit to git",
            )
        case "no listing":
            repair = _repair(version, place, answer["dvc_root"], [answer["path"]])
            return _unlisted(answer, where, repair)
    return RequestError(f"DVC cannot read {where}", why=str(answer["detail"]), fix="correct what it names")


def _untracked(answer: Mapping[str, Any], version: DvcVersion, where: str) -> RequestError:
    tracked, broken = answer["tracked"], answer["broken"]
    why = f"DVC tracks {some_of(tracked, version.path)}" if tracked else "DVC tracks nothing there"
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
        f"the list of the files of {path!r} in {where} cannot be had",
        why=_looked_in(answer["folders"], answer["problems"]),
        fix=repair,
    )


def _no_repository(version: DvcVersion, place: Checkout) -> str:
    known = dvc_repositories(place)
    inside = f"; there are DVC repositories in {some_of(known, version.path)}" if known else ""
    return f"neither {version.path!r} nor a folder above it holds .dvc{inside}"


def _looked_in(folders: Sequence[str], problems: Sequence[str]) -> str:
    return "; ".join([f"looked in {', '.join(folders)}" if folders else "it has no cache", *problems])


def _repair(version: DvcVersion, place: Checkout, dvc_root: str, outputs: Sequence[str]) -> str:
    """Return the command that brings the outputs' objects into DVC's cache, or shows why they cannot be had."""
    if not place.clone:
        target = "/".join(filter(None, (place.prefix, version.path)))
        return shlex.join(["dvc", "get", "--rev", place.commit, place.name, target])
    revisions = [] if place.at_head else ["--all-commits"]
    targets = outputs if len(outputs) <= _SHOWN else []
    return shlex.join(["dvc", "--cd", dvc_root, "fetch", *revisions, *targets])


# --- where the bytes are --------------------------------------------------------------------------------


def _only(remote: str | None, tracked: Tracked) -> Tracked:
    """Leave out all remotes but the one that was asked for."""
    if remote is None:
        return tracked
    names = [str(each["name"]) for each in tracked.remotes]
    if remote not in names:
        raise RequestError(
            f"there is no remote {remote!r}{nearest(remote, names)}",
            why=f"DVC knows {some_of(names, remote)}" if names else "DVC knows none",
            fix="correct the data version's `remote`, or leave it out",
        )
    others = {each["folder"] for each in tracked.remotes if each["name"] != remote}
    return replace(
        tracked,
        folders=tuple(folder for folder in tracked.folders if folder not in others),
        remotes=tuple(each for each in tracked.remotes if each["name"] == remote),
    )


def _joined(tracked: Tracked, source: Tracked, files: tuple[File, ...] = ()) -> Tracked:
    """Add the places of a repository that is imported from, and files that it has listed."""
    return replace(
        tracked,
        files=tracked.files + files,
        folders=tuple(dict.fromkeys(tracked.folders + source.folders)),
        remotes=tracked.remotes + tuple(each for each in source.remotes if each not in tracked.remotes),
    )


def _with_imports(tracked: Tracked, resolver: _Resolver) -> Tracked:
    """Add the places of what is imported, if objects are missing without them."""
    listed = [each for each in tracked.imports if each["listed"]]
    if not listed or all(_find(tracked).values()):
        return tracked
    for each in listed:
        with contextlib.suppress(RequestError, DataError):  # what only git tracks there is no version of DVC's
            tracked = _joined(tracked, resolver.imported(each))
    return tracked


def _entries(tracked: Tracked, sizes: _Sizes) -> list[Entry]:
    """Return the files with all that can be read of them."""
    found = _find(tracked)
    missing = [file for file in tracked.files if found[file.checksum] is None]
    known = sizes.of(missing, tracked) if missing else {}
    entries = []
    for path, checksum, _, at in tracked.files:
        size, sources = found[checksum] or (known[checksum], ())
        entries.append(Entry(path=path, hash=checksum, size=size, sources=sources, remote=at))
    return entries


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """The sizes of objects that only remotes have: asked once, for bytes with a checksum never change."""

    version: DvcVersion
    question: tuple[str, ...]
    answers: Answers
    repair: str
    ask: Ask

    def of(self, missing: Sequence[File], tracked: Tracked) -> dict[str, int]:
        sizes: dict[str, int] = dict(self.answers.read(*self.question) or {})
        unknown = list({file.checksum: file for file in missing if file.checksum not in sizes}.values())
        if not unknown:
            return sizes
        problems = {}
        objects = [(file.checksum, file.at) for file in unknown]
        for index, answer in self.ask(tracked.elsewhere, objects, None, threading.Event()):
            if "size" in answer:
                sizes[unknown[index].checksum] = answer["size"]
            else:
                problems[unknown[index].checksum] = str(answer["problem"])
        if problems:
            raise self._missing(tracked, problems)
        self.answers.write(sizes, *self.question)
        return sizes

    def _missing(self, tracked: Tracked, problems: Mapping[str, str]) -> RequestError:
        missing = [file for file in tracked.files if file.checksum in problems]
        shown = ", ".join(f"{file.path!r} ({file.checksum})" for file in missing[:3])
        count = f"{len(missing)} of the {len(tracked.files)} files of {self.version.path!r} at {self.version.rev}"
        where = "on this machine or in a remote" if tracked.elsewhere else "on this machine"
        in_remotes = [f"{DvcFetcher(remotes=tracked.elsewhere).name}: {problems[missing[0].checksum]}"]
        return RequestError(
            f"{count} are not {where}: {shown}{', ...' if len(missing) > 3 else ''}",
            why=_looked_in(tracked.folders, in_remotes if tracked.elsewhere else []),
            fix=self.repair,
        )


def _find(tracked: Tracked) -> dict[str, tuple[int, tuple[str, ...]] | None]:
    """Find every object; in threads, because a network filesystem answers slowly but many at once."""
    checksums = sorted({file.checksum for file in tracked.files})
    if not tracked.folders:
        return dict.fromkeys(checksums)
    find = partial(_find_one, tracked.folders)
    return dict(zip(checksums, map_in_threads(find, checksums, threads=_STATS_AT_ONCE), strict=True))


def _find_one(folders: Sequence[str], checksum: str) -> tuple[int, tuple[str, ...]] | None:
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
