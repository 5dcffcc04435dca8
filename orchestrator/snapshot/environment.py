"""The fingerprint of the Python environment: the Python version, and the distributions with their versions.

It lists the `*.dist-info` names in the site folders, which takes milliseconds, so that a worker can afford
it. PYTHONPATH is ignored: a job has the snapshot on it and its launcher does not, and both must get the
same fingerprint. The content of files is not checked. Code installed in editable mode has no meaningful
version: `editable_roots` finds it, and it is frozen with the project.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

_METADATA = (".dist-info", ".egg-info")
_SEPARATORS = re.compile(r"[-_.]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The Python environment that a job's code runs in. `prefix` is its folder: information only, not compared."""

    python: str
    platform: str
    prefix: str
    distributions: Mapping[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of everything but the prefix."""
        text = json.dumps([self.python, self.platform, dict(self.distributions)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(
            python=str(value["python"]),
            platform=str(value["platform"]),
            prefix=str(value["prefix"]),
            distributions={str(name): str(version) for name, version in value["distributions"].items()},
        )

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "distributions": dict(self.distributions)}


def current() -> Environment:
    """Return the fingerprint of this process's environment."""
    return Environment(
        python=platform.python_version(),
        platform=sysconfig.get_platform(),
        prefix=sys.prefix,
        distributions=distributions(site_folders()),
    )


def differences(frozen: Environment, now: Environment) -> list[str]:
    """Return one line for each difference, such as `torch 2.13.0 -> 2.14.1`."""
    lines = [
        f"{label} {old} -> {new}"
        for label, old, new in (
            ("python", frozen.python, now.python),
            ("platform", frozen.platform, now.platform),
        )
        if old != new
    ]
    names = sorted({*frozen.distributions, *now.distributions})
    return lines + [line for name in names if (line := _difference(name, frozen, now))]


def _difference(name: str, frozen: Environment, now: Environment) -> str:
    old, new = frozen.distributions.get(name), now.distributions.get(name)
    if old == new:
        return ""
    if new is None:
        return f"{name} is missing (was {old})"
    return f"{name} {old} -> {new}" if old is not None else f"{name} {new} is new"


def site_folders() -> list[Path]:
    """Return the folders that pip installs into and this Python imports from, including the user's own."""
    names = [*site.getsitepackages(), *(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))]
    if site.ENABLE_USER_SITE:
        names.append(site.getusersitepackages())
    return [Path(name) for name in dict.fromkeys(map(os.path.realpath, names))]  # lib64 links to lib


def distributions(folders: list[Path]) -> dict[str, str]:
    """Return the normalised names (PEP 503) and versions of installed distributions; the first folder wins."""
    found: dict[str, str] = {}
    for folder in folders:
        here: dict[str, str] = {}
        for entry in _metadata(folder):
            name, version = _name_and_version(entry)
            here[name] = max(version, here.get(name, ""))  # an interrupted upgrade leaves two
        found = {**here, **found}
    return dict(sorted(found.items()))


def editable_roots() -> list[Path]:
    """Return the source folders of the distributions that are installed in editable mode."""
    return editable_roots_in(site_folders())


def editable_roots_in(folders: list[Path]) -> list[Path]:
    found = {root for folder in folders for root in _editable_in(folder) if root.is_dir()}
    return sorted(found)


def _editable_in(folder: Path) -> Iterator[Path]:
    for entry in _listing(folder):
        if entry.endswith(".dist-info"):
            yield from _pep_660_root(folder / entry / "direct_url.json")
        elif entry.endswith(".egg-link"):  # setup.py develop: the first line is the folder
            yield Path((folder / entry).read_text().splitlines()[0]).resolve()


def _pep_660_root(record: Path) -> Iterator[Path]:
    """Yield the folder that a `direct_url.json` (PEP 610) names, if it was installed in editable mode."""
    try:
        value = json.loads(record.read_bytes())
        editable = value.get("dir_info", {}).get("editable", False)
        url = urlsplit(value["url"])
    except (OSError, ValueError, KeyError, AttributeError):
        return  # usually there is none; a damaged one is ignored
    if editable and url.scheme == "file":
        yield Path(unquote(url.path)).resolve()


def _listing(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _metadata(folder: Path) -> Iterator[str]:
    """Yield the names of metadata folders; pip leaves `~name` behind when it dies half-way."""
    return (name for name in _listing(folder) if name.endswith(_METADATA) and not name.startswith("~"))


def _name_and_version(entry: str) -> tuple[str, str]:
    """Split `Foo_bar-1.0.dist-info`, `foo-1.0-py3.11.egg-info`, or the bare `foo.egg-info` of Debian."""
    stem = entry.rpartition(".")[0]
    if entry.endswith(".egg-info"):
        name, _, rest = stem.partition("-")
        version = rest.partition("-py")[0]
    else:
        name, _, version = stem.rpartition("-")
    return _SEPARATORS.sub("-", name or version).lower(), version if name else ""
