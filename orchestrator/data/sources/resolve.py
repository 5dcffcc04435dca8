"""From what an experiment names to a manifest, and from a manifest to what has its bytes: the one door to all kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.data.fetch import Fetcher
from orchestrator.data.manifest import Manifest
from orchestrator.data.sources import directory as directory_source
from orchestrator.data.sources import dvc as dvc_source
from orchestrator.data.sources import s3 as s3_source
from orchestrator.data.sources.directory import DirectoryVersion
from orchestrator.data.sources.dvc import DvcVersion, Probe, ask_dvc
from orchestrator.data.sources.dvc_fetcher import Ask, DvcFetcher, ask_remotes
from orchestrator.data.sources.s3 import S3Fetcher, S3Version
from orchestrator.errors import ConfigError, nearest

Version = TypeVar("Version", DvcVersion, DirectoryVersion, S3Version)

SOURCES = ("dvc", "directory", "s3")


def resolve(
    version: Mapping[str, object], *, project: Path, cache: Path, probe: Probe = ask_dvc, ask: Ask = ask_remotes
) -> Manifest:
    """Return the exact files of a data version: `source: dvc`, `directory` or `s3`, and the source's keys.

    Relative paths start at `project`; `cache` may be deleted at any time. Raises ConfigError for keys
    and values that are wrong in themselves, RequestError for what does not exist.
    """
    keys = {name: value for name, value in version.items() if name != "source"}
    match version.get("source"):
        case "dvc":
            return dvc_source.resolve(_parse(DvcVersion, keys), project=project, cache=cache, probe=probe, ask=ask)
        case "directory":
            return directory_source.resolve(_parse(DirectoryVersion, keys), project=project, cache=cache)
        case "s3":
            return s3_source.resolve(_parse(S3Version, keys), cache=cache)
        case other:
            raise ConfigError(
                f"the data version has `source: {other}`{nearest(str(other), SOURCES)}",
                why=f"known are {', '.join(SOURCES)}",
                fix="set `source` to one of them",
            )


def fetcher_of(manifest: Manifest) -> Fetcher | None:
    """Return what has the objects that no path of the manifest holds; None if nothing has."""
    if manifest.origin.get("source") == "s3":
        return S3Fetcher.of(manifest.origin)
    remotes = manifest.origin.get("remotes")
    return DvcFetcher(remotes=remotes) if remotes else None


def _parse(kind: type[Version], keys: Mapping[str, Any]) -> Version:
    """Build a version from its keys; None stands for a key's default."""
    known = {field.name: field for field in fields(kind)}
    for name, value in keys.items():
        if name not in known:
            raise ConfigError(
                f"the data version has an unknown key {name!r}{nearest(str(name), known)}",
                why=f"this source knows {', '.join(known)}",
                fix=f"remove or rename {name!r}",
            )
        _check_text(name, value)
    given = {name: value for name, value in keys.items() if value is not None}
    for name, field in known.items():
        if field.default is MISSING and name not in given:
            raise ConfigError(f"the data version has no {name!r}", fix=f"add `{name}:` to it")
    return kind(**given)


def _check_text(name: str, value: object) -> None:
    if value is None or (isinstance(value, str) and value.strip() and "\0" not in value):
        return
    raise ConfigError(
        f"the data version has `{name}: {value!r}`",
        why="it must be text that is not empty",
        fix=f'{name}: "..."',
    )
