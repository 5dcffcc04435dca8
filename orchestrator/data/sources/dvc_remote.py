"""Ask DVC's remotes for objects, through DVC's own filesystems: a program of its own.

    python -m orchestrator.data.sources.dvc_remote < request.json > answers.jsonl

The request holds `remotes` (as `known_remotes` describes them), `objects` ([checksum, [remote, key, version] or
[]]...) and `folder`. Each answer is a line, in any order:

    {"index": n, "size": bytes}        the object is there           (no folder: `folder` is "")
    {"index": n, "path": file}         ... and is now this file, with the bytes that its checksum says
    {"index": n, "problem": why}       it cannot be had from any of the remotes
    {"index": n, "problem": why, "full": errno}    ... because the disk of `folder` is full

Nothing is written but the files in `folder`: no DVC repository, cache or index is used. Credentials are those of this
process's environment, and of the clone's own configuration where there is one.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from orchestrator.data.checksum import checksum_of
from orchestrator.data.fetch import FULL
from orchestrator.data.sources.dvc_cache import expected_paths, other_paths
from orchestrator.data.sources.git import checkout, without_password

Remote = Mapping[str, Any]
"""`name`, `url`, `folder` (or null), `kind`, `config`, `dvc_root` (of a clone, or ""): see known_remotes.

With a `rev`, the `url` is a git repository's, and the keys are paths in it.
"""

_AT_ONCE = 32
_OF_ALL = ("NoCredentialsError", "EndpointConnectionError", "ConnectTimeoutError", "ClientConnectorError")
"""Errors that every other object will have, too."""

_LOCAL = re.compile(r"(?!file://)\w[\w+.-]*://")
_SHOWABLE = frozenset(
    {
        "allow_anonymous_login", "auth", "cache_regions", "connect_timeout", "endpointurl", "jobs", "method",
        "port", "profile", "projectname", "read_timeout", "region", "ssl_verify", "timeout", "use_ssl", "user",
        "version_aware", "worktree",
    }
)  # fmt: skip
"""The options that a manifest may hold: none of them is a secret, nor the path of one."""

_FILES = frozenset({"configpath", "credentialpath"})
_PROGRAMS = _FILES | {"bearer_token_command"}
_ALLOW = "if you trust it, dvc remote modify --global {0} {1} VALUE"


def main() -> int:
    request, output = json.load(sys.stdin), sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # whatever DVC has to say is not the answer
        for answer in answers(**request):
            output.write(json.dumps(answer) + "\n")
            output.flush()
    return 0


def answers(
    *, remotes: Sequence[Remote], objects: Sequence[tuple[str, Sequence[str]]], folder: str
) -> Iterator[dict[str, object]]:
    """Yield an answer for each object, as soon as it is known."""
    places = [Place(remote) for remote in remotes]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        asked = {
            pool.submit(_one, places, checksum, at, Path(folder, str(index)) if folder else None): index
            for index, (checksum, at) in enumerate(objects)
        }
        for answer in as_completed(asked):
            yield {"index": asked[answer], **answer.result()}


class Place:
    """One remote; `broken` says why it cannot be used at all."""

    def __init__(self, remote: Remote) -> None:
        self.remote, self.broken = remote, ""
        try:
            self.filesystem, self.path = _opened(remote)
        except Exception as error:  # noqa: BLE001 - DVC's filesystems are plug-ins, and raise what they like
            self.broken = reason(error)
        else:
            self._connect()

    def _connect(self) -> None:
        """Ask for anything once: s3fs makes a client for each thread, in 0.2 s each, if many are the first to ask."""
        try:
            self.filesystem.info(self.path)
        except Exception as error:  # noqa: BLE001 - as above; that it is not there, or not to be listed, proves nothing
            self.failed(error)

    def failed(self, error: Exception) -> str:
        """Return why, and ask no more if that is so for every object."""
        why = reason(error)
        if type(error).__name__ in _OF_ALL:
            self.broken = why
        return why

    def __str__(self) -> str:
        return f"remote {self.remote['name']!r} ({self.remote['url']})"

    def candidates(self, checksum: str, at: Sequence[str]) -> list[str]:
        """Return where the object may be: under its checksum, or under the key and the version that were recorded."""
        if self.remote["kind"] == "objects":
            folders = [self.path.rstrip("/")]
            return expected_paths(folders, checksum) + other_paths(folders, checksum)
        if not at or at[0] != self.remote["name"]:
            return []
        path = self.filesystem.join(self.path, *at[1].split("/")) if at[1] else self.path
        return [self.filesystem.version_path(path, at[2]) if at[2] else path]


def _opened(remote: Remote) -> tuple[Any, str]:
    from dvc.config import Config
    from dvc.fs import get_cloud_fs

    if remote.get("rev"):
        return _opened_in_git(remote["url"], remote["rev"]), "/"
    home = remote["dvc_root"] and Path(remote["dvc_root"], ".dvc")
    config = Config(str(home)) if home and home.is_dir() else Config()
    stored = {"url": remote["url"], **remote["config"]}
    given = {"name": remote["name"]} if remote["name"] in config["remote"] else stored  # with its secrets, if any
    if option := without_programs(config).get(remote["name"]):
        raise OSError(
            f"the repository's .dvc/config names a program ({option}): {_ALLOW.format(remote['name'], option)}"
        )
    kind, options, path = get_cloud_fs(config, **given)
    if options.pop("worktree", False):
        options["version_aware"] = True
    return kind(**options), path


def _opened_in_git(url: str, rev: str) -> Any:
    from dvc.fs import GitFileSystem
    from dvc.scm import SCM

    cache = tempfile.mkdtemp(prefix="orchestrator-git-")
    atexit.register(shutil.rmtree, cache, ignore_errors=True)  # used as long as this program runs
    place = checkout(url, rev, project=Path("/"), cache=Path(cache))
    return GitFileSystem(scm=SCM(str(place.root)), rev=place.commit)


def _one(places: Sequence[Place], checksum: str, at: Sequence[str], target: Path | None) -> dict[str, Any]:
    problems = []
    for place in places:
        found = {"problem": place.broken} if place.broken else _from(place, checksum, at, target)
        if "problem" not in found or "full" in found:
            return found
        problems.append(f"{place}: {found['problem']}" if len(places) > 1 else str(found["problem"]))
    return {"problem": "; ".join(problems)}


def _from(place: Place, checksum: str, at: Sequence[str], target: Path | None) -> dict[str, Any]:
    problem = "it is not there"
    for path in place.candidates(checksum, at):
        try:
            if target is None:
                return {"size": int(place.filesystem.info(path)["size"])}
            place.filesystem.get_file(path, str(target))
        except FileNotFoundError:
            continue
        except Exception as error:  # noqa: BLE001 - as above
            full = {"full": error.errno} if isinstance(error, OSError) and error.errno in FULL else {}
            return {"problem": place.failed(error), **full}
        if (found := checksum_of(target, checksum.partition(":")[0])) == checksum:
            return {"path": str(target)}
        problem = f"{path} has {found}, not {checksum}"
    return {"problem": problem}


def read_object(remote: Remote, checksum: str) -> bytes:
    """Return a small object's bytes as they are there; raises OSError with the reason."""
    place = Place(remote)
    if place.broken:
        raise OSError(place.broken)
    for path in place.candidates(checksum, ()):
        try:
            return bytes(place.filesystem.cat_file(path))
        except FileNotFoundError:
            continue
        except Exception as error:
            raise OSError(reason(error)) from error
    raise OSError("it is not there")


def reason(error: Exception) -> str:
    """Return what went wrong, in one line, with what is missing where that is known."""
    kind, text = type(error).__name__, " ".join(str(error).split())
    if kind in ("RemoteMissingDepsError", "ImportError", "ModuleNotFoundError"):
        return f"its plug-in is not installed: {text}"
    if "Credentials" in kind or "credentials" in text.lower():
        return f"no credentials: {text}"
    if isinstance(error, PermissionError):
        return f"access denied: {text}"
    return text if isinstance(error, OSError) and text else f"{kind}: {text}"


# --- what a configuration says --------------------------------------------------------------------------


def known_remotes(config: Any, dvc_root: str) -> list[dict[str, object]]:
    """Describe the remotes of a DVC configuration, the default one first, without their secrets.

    `folder` is set if it is one of this machine. The `kind` is `objects`, by checksum; or `files`, under their own
    names, in a remote that keeps their versions.
    """
    first = config["core"].get("remote")
    names = sorted(config["remote"], key=lambda name: (name != first, name))
    return [{**_described(config, name), "dvc_root": dvc_root} for name in names]


def _described(config: Any, name: str) -> dict[str, object]:
    from dvc.fs import get_cloud_fs, get_fs_config

    options = config["remote"][name]
    if str(options["url"]).startswith("remote://"):  # may need a filesystem that is not installed
        options = get_fs_config(config, name=name)
    url = str(options["url"])
    folder = None if _LOCAL.match(url) else str(get_cloud_fs(config, name=name)[2])
    versions = options.get("worktree") or options.get("version_aware")
    return {
        "name": name,
        "url": without_password(url),
        "folder": folder,
        "kind": "files" if versions else "objects",
        "config": without_secrets(options),
    }


def without_programs(config: Any) -> dict[str, str]:
    """Take out of a DVC configuration what names a program, and return those options by the remote's name.

    Only the user's own files, global or system, may do so. A file of AWS's settings counts if it names one.
    """
    own = config.load_config_to_level("repo").get("remote", {})
    found = {}
    for name, options in config["remote"].items():
        for option in _PROGRAMS & options.keys():
            value = str(options[option])
            if value != str(own.get(name, {}).get(option)) and (option not in _FILES or _runs_one(Path(value))):
                found[name] = option
                del options[option]
    return found


def _runs_one(file: Path) -> bool:
    try:
        return b"credential_process" in file.expanduser().read_bytes().lower()
    except OSError:
        return False


def without_secrets(options: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in options.items() if name in _SHOWABLE}


if __name__ == "__main__":
    sys.exit(main())
