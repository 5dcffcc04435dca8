"""Ask DVC which files a target had at a commit: a program of its own, and the only importer of dvc.

    python -m orchestrator.data.dvc_probe < request.json > answer.json

The request holds `root` (of the git working tree), `prefix` (the folder in it that `target` is relative
to, or ""), `commit` and `target` ("" for everything tracked). The answer is either

    {"files": [[path, checksum]...], "dvc_root": folder, "outputs": [paths in it], "folders": [...],
     "unreachable": [...], "definitions": [...], "config": {file: sha256 or null}}

or {"refused": kind, ...details}.

What is tracked is read from the commit, where the objects lie from today's configuration. Nothing is
written to the repository, its cache or DVC's own caches, and no remote but a local folder is asked.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.data.dvc_cache import expected_paths, other_paths

Key = tuple[str, ...]

_URL = re.compile(r"(?!file://)\w[\w+.-]*://")


class NoAnswerError(Exception):
    """The question has no answer; `details` say why, for the message."""

    def __init__(self, kind: str, **details: Any) -> None:
        super().__init__(kind)
        self.details = {"refused": kind, **details}


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where objects may lie: folders of this machine, names of remotes that are none, and what said so."""

    dvc_root: str
    folders: list[str]
    unreachable: list[str]
    config: dict[str, str | None]


def main() -> int:
    request = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):  # whatever DVC has to say is not the answer
        try:
            answer = probe(**request)
        except NoAnswerError as refusal:
            answer = refusal.details
    json.dump(answer, sys.stdout)
    return 0


def probe(*, root: str, prefix: str, commit: str, target: str) -> dict[str, Any]:
    from dvc.exceptions import DvcException  # noqa: PLC0415 - half a second, only here

    try:
        return _probe(root, prefix, commit, target)
    except DvcException as error:
        raise NoAnswerError("dvc", detail=str(error)) from error


def _probe(root: str, prefix: str, commit: str, target: str) -> dict[str, Any]:
    repo = _open(root, prefix, commit)
    home = _parts(repo.root_dir)
    wanted = (*_parts(prefix), *_parts(target))[len(home) :]
    places = _places(Path(root, *home))
    outs, broken = _outputs(repo)
    chosen = [out for out in outs if _overlap(out.index_key[1], wanted)]
    files = [pair for out in chosen for pair in _files(out, wanted, places)]
    if not files:
        base = _parts(prefix)[len(home) :]
        empty = any(out.index_key[1][: len(wanted)] == wanted for out in chosen)
        tracked = _tracked(outs, chosen, places, base)
        raise NoAnswerError("empty" if empty else "unknown", tracked=tracked, broken=broken)
    return {
        "files": files,
        "dvc_root": places.dvc_root,
        "outputs": sorted("/".join(out.index_key[1]) for out in chosen),
        "folders": places.folders,
        "unreachable": places.unreachable,
        "definitions": sorted({name for out in chosen for name in _definitions(out)}),
        "config": places.config,
    }  # fmt: skip


def _open(root: str, prefix: str, commit: str) -> Any:
    """Open the repository as of a commit; DVC then takes no lock and makes no temporary folder."""
    from dvc.exceptions import NotDvcRepoError  # noqa: PLC0415
    from dvc.fs import GitFileSystem  # noqa: PLC0415
    from dvc.repo import Repo  # noqa: PLC0415
    from dvc.scm import SCM  # noqa: PLC0415

    scm = SCM(root)
    try:
        return Repo(root_dir=f"/{prefix}", fs=GitFileSystem(scm=scm, rev=commit), scm=scm)
    except NotDvcRepoError as error:
        raise NoAnswerError("not dvc") from error


def _parts(path: str) -> Key:
    return tuple(part for part in PurePosixPath(path).parts if part != "/")


def _outputs(repo: Any) -> tuple[list[Any], list[str]]:
    """Return what DVC tracks, and the definitions that it could not read."""
    from dvc.repo.index import Index  # noqa: PLC0415

    broken: list[str] = []
    index = Index.from_repo(repo, onerror=lambda _, error: broken.append(str(error)))
    return [out for out in index.outs if out.use_cache and out.is_in_repo], broken


def _overlap(one: Key, other: Key) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _files(out: Any, wanted: Key, places: Places) -> Iterator[tuple[str, str]]:
    """Yield the files of an output at or below the wanted path, as seen from there."""
    for key, checksum in _listing(out, places):
        if key[: len(wanted)] == wanted:
            yield "/".join(key[len(wanted) :] or key[-1:]), checksum


def _listing(out: Any, places: Places) -> Iterator[tuple[Key, str]]:
    key = out.index_key[1]
    if out.files:  # the listing is in the definition itself (cloud-versioned outputs)
        yield from ((key + _parts(row["relpath"]), f"md5:{row.get('md5')}") for row in out.files)
    elif not out.hash_info or out.hash_info.name not in ("md5", "md5-dos2unix"):
        raise NoAnswerError("no checksum", path="/".join(key), dvc_root=places.dvc_root)
    elif not out.hash_info.isdir:
        yield key, f"{out.hash_info.name}:{out.hash_info.value}"
    else:
        name = out.hash_info.name
        for row in _directory(f"{name}:{out.hash_info.value}", "/".join(key), places):
            yield key + _parts(row["relpath"]), f"{name}:{row['md5']}"


def _directory(checksum: str, path: str, places: Places) -> list[dict[str, str]]:
    """Read the object that lists a directory, from the first place where it is undamaged."""
    tried = expected_paths(places.folders, checksum) + other_paths(places.folders, checksum)
    damaged = []
    for candidate in map(Path, tried):
        if not candidate.is_file():
            continue
        content = candidate.read_bytes()
        if hashlib.md5(content, usedforsecurity=False).hexdigest() == checksum.partition(":")[2][:-4]:
            return list(json.loads(content))
        damaged.append(str(candidate))
    raise NoAnswerError(
        "no listing",
        path=path,
        dvc_root=places.dvc_root,
        damaged=damaged,
        folders=places.folders,
        unreachable=places.unreachable,
    )


def _tracked(outs: list[Any], chosen: list[Any], places: Places, base: Key) -> list[str]:
    """Return what could have been meant, as seen from the folder that targets are relative to."""
    keys = {out.index_key[1] for out in outs}
    for out in chosen:
        keys.update(key for key, _ in _listing(out, places))
    below = [key[len(base) :] for key in keys if key[: len(base)] == base]
    return sorted("/".join(key) for key in below if key)


def _definitions(out: Any) -> list[str]:
    """Return the files that define an output, relative to the git root."""
    path = out.stage.path.lstrip("/")
    lock = [str(PurePosixPath(path).with_name("dvc.lock"))] if path.endswith("dvc.yaml") else []
    return [path, *lock]


def _places(dvc_root: Path) -> Places:
    from dvc.config import Config  # noqa: PLC0415

    config = Config(str(dvc_root / ".dvc"))
    folders = [str(config["cache"].get("dir") or dvc_root / ".dvc" / "cache")]
    unreachable: list[str] = []
    first = config["core"].get("remote")
    for name in sorted(config["remote"], key=lambda name: (name != first, name)):
        folder = _remote_folder(config, name)
        (folders if folder else unreachable).append(folder or name)
    return Places(
        dvc_root=str(dvc_root),
        folders=folders,
        unreachable=unreachable,
        config=_fingerprints(config.files.values()),
    )


def _remote_folder(config: Any, name: str) -> str | None:
    """Return a remote's folder on this machine; None if it is anything else."""
    from dvc.fs import get_cloud_fs, get_fs_config  # noqa: PLC0415

    url = str(config["remote"][name]["url"])
    if url.startswith("remote://"):  # may need a filesystem that is not installed
        url = str(get_fs_config(config, name=name)["url"])
    return None if _URL.match(url) else str(get_cloud_fs(config, name=name)[2])


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
