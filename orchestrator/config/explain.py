"""The errors of Hydra, OmegaConf and YAML when a composition fails -> errors that a user can act on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from orchestrator.config.counterparts import of_template
from orchestrator.errors import ConfigError, closest, nearest

_NOT_FOUND = re.compile(r"Could not find '([^']+)'")
_NOT_OVERRIDDEN = re.compile(r"Could not override '([^']+)'")
_FULL_KEY = re.compile(r"full_key: ([^\s\[]+)")
_OPEN = re.compile(r"(data|model|trainer|vars|cluster\.extra)\b")
"""The sections whose keys are not ours: arguments of targets, sbatch's options, and the user's own values."""
_IN_FILE = re.compile(r"In '([^']+)'")


class Composes(Protocol):
    """The interface of a composer: the project's conf/, its groups and their options, and an unresolved config."""

    folder: Path

    @property
    def groups(self) -> frozenset[str]: ...

    def options(self, group: str) -> list[str]: ...

    def unresolved(self, overrides: Sequence[str]) -> object: ...


def explain(composer: Composes, error: Exception, overrides: Sequence[str]) -> ConfigError:
    """Return the error that names the override or the file, and the fix."""
    if isinstance(error, yaml.YAMLError):
        return _not_yaml(error)
    if unmatched := _unmatched(composer, error):
        return unmatched
    for text in overrides:
        found = _override(composer, error, text, overrides)
        if found is not None:
            return found
    if isinstance(error, UnicodeDecodeError):
        return _not_text(composer.folder, error)
    if isinstance(error, RecursionError):
        return ConfigError(
            "the configuration does not compose",
            why="it nests too deeply, or the defaults list of a file leads back to the file itself",
            fix=f"see the `defaults:` of the files under {composer.folder}, and the overrides given",
        )
    if missing := _NOT_FOUND.search(str(error)):
        return unknown_option(composer, *_split(missing[1]))
    return _not_mergeable(composer, error, overrides) or _unspecific(composer.folder, error)


def unknown_option(composer: Composes, group: str, option: str) -> ConfigError:
    """Return the error for an option that a config group does not have."""
    options = composer.options(group)
    return ConfigError(
        f"{group}={option}: there is no conf/{group}/{option}.yaml{nearest(option, options)}",
        why=f"the options of {group} are {', '.join(options) or 'none'}",
        fix=f"choose one of them, or write conf/{group}/{option}.yaml",
    )


def _split(path: str) -> tuple[str, str]:
    group, _, option = path.rpartition("/")
    return group, option


def _override(composer: Composes, error: Exception, text: str, overrides: Sequence[str]) -> ConfigError | None:
    """Return the error if this override causes it."""
    key, _, value = text.lstrip("+~").partition("=")
    said = str(error)
    if text.startswith("~") and "Could not delete" in said and f"'{key}'" in said:
        return ConfigError(
            f"override {text!r} deletes nothing", why=said.splitlines()[0], fix="correct the key, or leave it out"
        )
    is_option = f"'{key}/{value}'" in said or "Config group override must be" in said
    group = key.partition("@")[0]
    if is_option and group in composer.groups and value not in composer.options(group):
        return unknown_option(composer, group, value)
    if f"'{key}'" in said and "struct" in f"{said}{error.__cause__}":
        full = _FULL_KEY.search(f"{said}\n{error.__cause__}")  # a mapping as value has keys of its own
        deeper = full is not None and full[1].startswith(f"{key}.")
        return _unknown_key(composer, full[1] if full and deeper else key, text, overrides)
    if isinstance(error.__cause__, GrammarParseError):
        why = str(error.__cause__).splitlines()[0]
        return ConfigError(f"override {text!r} cannot be read", why=why, fix="close the brace: ${vars.x}")
    if "Error merging override" in said and text in said:
        return ConfigError(
            f"override {text!r} does not fit what it overrides",
            why=str(error.__cause__ or said).splitlines()[0],
            fix="give a mapping for a mapping, and a value for a value",
        )
    return None


def _unknown_key(composer: Composes, key: str, text: str, overrides: Sequence[str]) -> ConfigError:
    others = [o for o in overrides if o != text and o.lstrip("+").partition("=")[0] in composer.groups]
    raw = composer.unresolved(others)
    path = key.split(".")
    at, known = _deepest(raw, path)
    missing = path[len(at)] if len(at) < len(path) else key
    return ConfigError(
        f"override {text!r}: {key} is unknown{nearest(missing, known or ())}",
        why=f"{'.'.join(at) or 'the top level'} has {', '.join(known or ()) or 'no keys'}",
        fix=_known_key(path, text, at, known),
    )


def _known_key(path: Sequence[str], text: str, at: Sequence[str], known: Sequence[str] | None) -> str:
    """Return what to do about a key that is not among the known ones of the section `at`; None if it is a value."""
    key, below = ".".join(path), path[: len(at) + 1]
    meant = closest(below[-1], known or ())
    ways = [f"rename {'.'.join(below)} to {'.'.join([*at, meant])}"] if meant else []
    if not at and not meant:
        return f"your own values come under vars: +vars.{text}"
    if known is not None and text.startswith(key) and _OPEN.match(key):
        return ", or ".join([*ways, f"+{text}, if it is taken there"])
    return ", or ".join([*ways, f"remove {key}"])


def _deepest(tree: object, path: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Return the part of a path that exists, and the keys that are known there; None if it is a value."""
    at: list[str] = []
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            break
        tree, at = tree[key], [*at, key]
    return at, sorted(map(str, tree)) if isinstance(tree, dict) else None


def _unmatched(composer: Composes, error: Exception) -> ConfigError | None:
    """Return the error for a group of a defaults list or an override that exists in templates only, or has moved."""
    unmatched, named = _NOT_OVERRIDDEN.search(str(error)), _IN_FILE.search(str(error))
    if unmatched is None:
        return None
    group, _, package = unmatched[1].lstrip("/").partition("@")
    where = f"{composer.folder / named[1]}.yaml: " if named else ""
    if package.startswith("experiment."):
        return not_global(f"{where}the keys of this file come under `experiment:`")
    return of_template(group, where)


def not_global(what: str) -> ConfigError:
    """Return the error for an experiment's file whose keys ended up where nothing reads them."""
    return ConfigError(
        what,
        why="nothing reads them there; without a package directive Hydra puts a file's keys under its group's name",
        fix="make `# @package _global_` the first line of the experiment's file",
    )


def _not_mergeable(composer: Composes, error: Exception, overrides: Sequence[str]) -> ConfigError | None:
    """Return the error for a file with a list where a mapping is needed."""
    named = _IN_FILE.search(str(error))
    file = composer.folder / f"{named[1]}.yaml" if named else None
    if file is None or "ListConfig" not in str(error) or not file.is_file():
        return None
    written = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    without = [text for text in overrides if text.partition("=")[0] != "experiment"]
    try:
        base = composer.unresolved(without)
    except (ConfigError, OmegaConfBaseException):
        base = {}
    key, value = _misplaced(base, written) or ("its top level", written)
    return ConfigError(
        f"{file}: {key} is {value!r}", why="a mapping of keys to values is needed", fix="write {key: value} there"
    )


def _misplaced(base: object, written: object, at: str = "") -> tuple[str, object] | None:
    """Return the first key whose value is a list where the base has a mapping, and that value."""
    for key, value in written.items() if isinstance(written, Mapping) else ():
        known = base.get(key) if isinstance(base, Mapping) else None
        if isinstance(known, Mapping) and isinstance(value, list):
            return f"{at}{key}", value
        if found := _misplaced(known, value, f"{at}{key}."):
            return found
    return None


def _not_text(conf: Path, error: UnicodeDecodeError) -> ConfigError:
    broken = (file for file in sorted(conf.rglob("*.yaml")) if file.is_file() and not _decodes(file))
    return ConfigError(
        f"{next(broken, conf)}: this is not UTF-8", why=f"{error.reason} at byte {error.start}", fix="save it as UTF-8"
    )


def _decodes(file: Path) -> bool:
    try:
        file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _unspecific(conf: Path, error: Exception) -> ConfigError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = error.__cause__ or error.__context__
    if not lines and cause:
        return _unspecific(conf, cause if isinstance(cause, Exception) else ValueError(str(cause)))
    return ConfigError(
        f"the configuration does not compose: {lines[0] if lines else type(error).__name__}",
        why=" ".join(lines[1:4]),
        fix=f"see the files under {conf} and the overrides given",
    )


def _not_yaml(error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    place = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}" if mark else getattr(error, "name", "a file")
    return ConfigError(
        f"{place}: this is not YAML",
        why=str(getattr(error, "problem", None) or error).splitlines()[0],
        fix="correct the line; values with ':' or '#' need quotes",
    )
