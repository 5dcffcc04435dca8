"""Ask DVC which files a target had at a commit: a program of its own.

    python -m orchestrator.data.sources.dvc_probe < request.json > answer.json

The request holds `root` (the top of the git working tree, or a bare repository), `prefix` (the folder in it that
`target` is relative to, or ""), `commit`, `target` ("" for everything tracked) and `clone` ("" if `root` is bare).
The answer is either {"refused": kind, ...details} or

    files         [path, checksum, size or null, [remote, key, version] or []]...
    dvc_root      the folder with .dvc, "" without a working tree
    outputs       what holds the files: paths in it
    definitions   the files that say so: paths in the repository
    folders       of this machine, where objects may lie: the cache first
    remotes       as dvc_remote describes them
    imports       {at, url, rev, path, listed}...: what other repositories have; without `listed` also which files
    config        {file: sha256 or null}: what the folders and remotes were read from

What is tracked is read from the commit, where the objects lie from today's configuration; without a working tree, from
the commit's. Nothing is written to the repository, its cache or DVC's own caches. A remote that is not a folder is only
asked for the list of a directory's files, where no folder has it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.data.sources.dvc_cache import expected_paths, other_paths
from orchestrator.data.sources.dvc_remote import known_remotes, read_object, without_programs, without_secrets
from orchestrator.data.sources.git import is_url, without_password

Key = tuple[str, ...]


class NoAnswerError(Exception):
    """The question has no answer; `details` say why, for the message."""

    def __init__(self, kind: str, **details: object) -> None:
        super().__init__(kind)
        self.details = {"refused": kind, **details}


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where objects may lie, and what said so."""

    dvc_root: str
    folders: list[str]
    remotes: list[dict[str, object]]
    config: dict[str, str | None]

    @property
    def default_remote(self) -> str:
        return str(self.remotes[0]["name"]) if self.remotes else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One file: its path in the repository of DVC, its checksum, its size if known, and where a remote keeps it."""

    key: Key
    checksum: str
    size: int | None = None
    at: tuple[str, ...] = ()


def main() -> int:
    request = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):  # whatever DVC has to say is not the answer
        answer = probe(**request)
    json.dump(answer, sys.stdout)
    return 0


def probe(*, root: str, prefix: str, commit: str, target: str, clone: str) -> dict[str, object]:
    """Return the answer to a request."""
    from dvc.exceptions import DvcException

    try:
        return _probe(root, prefix, commit, target, clone)
    except NoAnswerError as refusal:
        return refusal.details
    except DvcException as error:
        return {"refused": "dvc", "detail": str(error)}


def _probe(root: str, prefix: str, commit: str, target: str, clone: str) -> dict[str, object]:
    full = (*_parts(prefix), *_parts(target))
    repo, home = _open(root, full, commit)
    places = _places(Path(root, *home) if clone else None, repo)
    outs, broken = _outputs(repo)
    wanted = full[len(home) :]
    chosen = [out for out in outs if _overlap(out.index_key[1], wanted)]
    imports = [found for out in chosen if (found := _import(out, wanted, places))]
    unlisted = [out for out in chosen if _is_unlisted(out, places)]
    files = [row for out in chosen if out not in unlisted for row in _files(out, wanted, places)]
    if not files and not unlisted:
        empty = any(out.index_key[1][: len(wanted)] == wanted for out in chosen)
        tracked = _tracked(outs, chosen, places, home, _parts(prefix))
        raise NoAnswerError("empty" if empty else "unknown", tracked=tracked, broken=broken)
    return {
        "files": files,
        "dvc_root": places.dvc_root,
        "outputs": sorted("/".join(out.index_key[1]) for out in chosen),
        "definitions": sorted({name for out in chosen for name in _definitions(out)}),
        "folders": places.folders,
        "remotes": places.remotes + [remote for out in chosen if (remote := _imported_from(out, places))],
        "imports": imports,
        "config": places.config,
    }


def _open(root: str, full: Key, commit: str) -> tuple[object, Key]:
    """Open the innermost repository around a path as of a commit, and say where it lies.

    DVC then takes no lock and makes no temporary folder.
    """
    from dvc.fs import GitFileSystem
    from dvc.repo import Repo
    from dvc.scm import SCM

    scm = SCM(root)
    files = GitFileSystem(scm=scm, rev=commit)
    for length in range(len(full), -1, -1):
        home = "/" + "/".join(full[:length])
        if files.isdir(f"{home.rstrip('/')}/.dvc"):
            repo = Repo(root_dir=home, fs=files, scm=scm)
            without_programs(repo.config)
            return repo, full[:length]
    raise NoAnswerError("not dvc")


def _parts(path: str) -> Key:
    return tuple(part for part in PurePosixPath(path).parts if part != "/")


def _outputs(repo: object) -> tuple[list[Any], list[str]]:
    """Return what DVC tracks, and the definitions that it could not read."""
    from dvc.repo.index import Index

    broken: list[str] = []
    index = Index.from_repo(repo, onerror=lambda _, error: broken.append(str(error)))
    return [out for out in index.outs if out.use_cache and out.is_in_repo], broken


def _overlap(one: Key, other: Key) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _files(out: Any, wanted: Key, places: Places) -> Iterator[tuple[str, str, int | None, tuple[str, ...]]]:
    """Yield the files of an output at or below the wanted path, as seen from there."""
    for file in _listing(out, places):
        if file.key[: len(wanted)] == wanted:
            yield "/".join(file.key[len(wanted) :] or file.key[-1:]), file.checksum, file.size, file.at


def _listing(out: Any, places: Places) -> Iterator[Found]:
    key, remote = out.index_key[1], _imported_from(out, places)
    if out.files:  # the listing is in the definition itself (cloud-versioned outputs)
        for row in out.files:
            yield _versioned(key + _parts(row["relpath"]), row, out, places)
    elif not out.hash_info or out.hash_info.name not in ("md5", "md5-dos2unix"):
        raise NoAnswerError("no checksum", path="/".join(key), dvc_root=places.dvc_root)
    elif not out.hash_info.isdir:
        row = {"md5": out.hash_info.value, **out.meta.to_dict()}
        found = _versioned(key, row, out, places)
        yield replace(found, checksum=f"{out.hash_info.name}:{out.hash_info.value}", at=_at(remote, out) or found.at)
    else:
        name = out.hash_info.name
        for row in _directory(f"{name}:{out.hash_info.value}", "/".join(key), places):
            at = _at(remote, out, row["relpath"])
            yield Found(key=key + _parts(row["relpath"]), checksum=f"{name}:{row['md5']}", at=at)


def _versioned(key: Key, row: dict[str, Any], out: Any, places: Places) -> Found:
    """Return a file that a remote may keep under its own name, at a version of its own."""
    if not row.get("md5"):
        raise NoAnswerError("no checksum", path="/".join(key), dvc_root=places.dvc_root)
    remote, version = row.get("remote") or out.remote or places.default_remote, row.get("version_id")
    at = (str(remote), "/".join(key), str(version)) if version else ()
    return Found(key=key, checksum=f"md5:{row['md5']}", size=row.get("size"), at=at)


def _directory(checksum: str, path: str, places: Places) -> list[dict[str, str]]:
    """Read the object that lists a directory, from the first place where it is undamaged."""
    damaged, problems = [], []
    for place, read in _readers(checksum, places):
        try:
            content = read()
        except OSError as error:
            problems.append(f"{place}: {error}")
            continue
        if hashlib.md5(content, usedforsecurity=False).hexdigest() == checksum.partition(":")[2][:-4]:
            return list(json.loads(content))
        damaged.append(place)
    raise NoAnswerError(
        "no listing",
        path=path,
        dvc_root=places.dvc_root,
        damaged=damaged,
        folders=places.folders,
        problems=problems,
    )


def _readers(checksum: str, places: Places) -> Iterator[tuple[str, Callable[[], bytes]]]:
    for file in map(Path, expected_paths(places.folders, checksum) + other_paths(places.folders, checksum)):
        if file.is_file():
            yield str(file), file.read_bytes
    for remote in places.remotes:
        if remote["folder"] is None and remote["kind"] == "objects":
            yield f"remote {remote['name']!r} ({remote['url']})", partial(read_object, remote, checksum)


def _tracked(outs: list[Any], chosen: list[Any], places: Places, home: Key, base: Key) -> list[str]:
    """Return what could have been meant, as seen from the folder that targets are relative to."""
    keys = {(*home, *out.index_key[1]) for out in outs}
    for out in chosen:  # none is unlisted: those would have been an answer
        keys.update((*home, *file.key) for file in _listing(out, places))
    below = [key[len(base) :] for key in keys if key[: len(base)] == base]
    return sorted("/".join(key) for key in below if key)


# --- imports --------------------------------------------------------------------------------------------


def _import(out: Any, wanted: Key, places: Places) -> dict[str, object] | None:
    """Return what an imported output is in the repository that it comes from."""
    if not out.stage.is_repo_import:
        return None
    source, key = out.stage.deps[0], out.index_key[1]
    rest = wanted[len(key) :]
    return {
        "at": "/".join(key[len(wanted) :]),
        "url": _url_of(str(source.def_repo["url"]), places),
        "rev": _revision(source.def_repo),
        "path": "/".join((*_parts(source.def_path), *rest)),
        "listed": not _is_unlisted(out, places),
    }


def _is_unlisted(out: Any, places: Places) -> bool:
    """Return whether only the repository that an output is imported from can say which files it has."""
    if not out.stage.is_repo_import or not out.hash_info or not out.hash_info.isdir or out.files:
        return False
    try:
        _directory(f"{out.hash_info.name}:{out.hash_info.value}", "", places)
    except NoAnswerError:
        return True
    return False


def _imported_from(out: Any, places: Places) -> dict[str, object] | None:
    """Describe where an output was imported from as a remote that keeps files."""
    if not out.stage.is_import or out.stage.is_db_import:
        return None
    source, options, rev = out.stage.deps[0], {}, ""
    if out.stage.is_repo_import:  # what git tracks there; what DVC tracks there has a checksum
        url, rev = _url_of(source.def_repo["url"], places), _revision(source.def_repo)
    elif "://" in source.def_path:
        url, options = str(source.fs.unstrip_protocol(source.fs_path)), without_secrets(source.fs.config)
    else:
        url = _url_of(source.def_path, places, *_parts(out.stage.wdir)[len(_parts(out.repo.root_dir)) :])
    shown = without_password(url)
    return {
        "name": f"import of {shown}",
        "url": shown,
        "folder": None,
        "kind": "files",
        "config": options,
        "dvc_root": "",
        "rev": rev,
    }


def _url_of(url: str, places: Places, *below: str) -> str:
    """Return a URL as it is, and a path as an absolute one."""
    return url if is_url(url) else str(Path(places.dvc_root or "/", *below, url).resolve())


def _revision(repo: dict[str, object]) -> str:
    return str(repo.get("rev_lock") or repo.get("rev") or "HEAD")


def _at(remote: dict[str, object] | None, out: Any, path: str = "") -> tuple[str, ...]:
    """Return where the URL has a file, and at which version if the definition says one."""
    if remote is None:
        return ()
    source = out.stage.deps[0]
    if out.stage.is_repo_import:
        return (str(remote["name"]), "/".join((*_parts(source.def_path), *_parts(path))), "")
    versions = {row["relpath"]: row.get("version_id") for row in source.files or ()}
    version = versions.get(path) if path else source.meta.version_id
    return (str(remote["name"]), path, str(version or ""))


def _definitions(out: Any) -> list[str]:
    """Return the files that define an output, relative to the git root."""
    path = out.stage.path.lstrip("/")
    lock = [str(PurePosixPath(path).with_name("dvc.lock"))] if path.endswith("dvc.yaml") else []
    return [path, *lock]


def _places(dvc_root: Path | None, repo: Any) -> Places:
    """Read where objects lie: from a clone's configuration, else from the one that was committed."""
    from dvc.config import Config

    config = Config(str(dvc_root / ".dvc")) if dvc_root else Config(repo.fs.join(repo.root_dir, ".dvc"), fs=repo.fs)
    without_programs(config)  # of a remote that is asked, `read_object` says so
    cache = config["cache"].get("dir") or (dvc_root and dvc_root / ".dvc" / "cache")
    remotes = known_remotes(config, str(dvc_root or ""))
    files = config.files if dvc_root else {name: file for name, file in config.files.items() if name != "repo"}
    return Places(
        dvc_root=str(dvc_root or ""),
        folders=[str(folder) for folder in (cache, *(remote["folder"] for remote in remotes)) if folder],
        remotes=remotes,
        config=_fingerprints(files.values()),
    )


def _fingerprints(files: Iterable[str]) -> dict[str, str | None]:
    return {str(file): fingerprint(Path(file)) for file in files}


def fingerprint(file: Path) -> str | None:
    """Return the SHA-256 of a configuration file, or None if there is none to read."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main())
