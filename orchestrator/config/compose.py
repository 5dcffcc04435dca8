"""Hydra's composition over the project's conf/ and the built-in one, with its errors translated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from orchestrator.errors import ConfigError, nearest
from orchestrator.spec import PROJECT, VIEW

_ROOT = "config"


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """One composed, not yet resolved config, and the config groups chosen for it."""

    config: DictConfig
    choices: Mapping[str, str]


class Composer:
    """Composes configs of one project: `conf/` in its folder first, the built-in conf second."""

    def __init__(self, project: Path) -> None:
        self._project = project
        OmegaConf.register_new_resolver("view", lambda: VIEW, replace=True)
        OmegaConf.register_new_resolver("project", lambda: PROJECT, replace=True)

    @cached_property
    def _loader(self) -> ConfigLoaderImpl:
        Plugins.instance()  # registers the file:// and pkg:// sources
        path = ConfigSearchPathImpl()
        path.append("hydra", "pkg://hydra.conf")
        if (self._project / "conf").is_dir():
            path.append("project", f"file://{self._project / 'conf'}")
        path.append("orchestrator", "pkg://orchestrator.conf")
        path.append("schema", "structured://")
        return ConfigLoaderImpl(path)

    @cached_property
    def groups(self) -> frozenset[str]:
        """All config groups, nested ones with a slash."""
        return frozenset(self._groups_under(""))

    def options(self, group: str) -> list[str]:
        """Return the options of a config group."""
        return list(self._loader.get_group_options(group, results_filter=ObjectType.CONFIG))

    def compose(self, overrides: Sequence[str]) -> Composition:
        """Compose with Hydra overrides. Raises ConfigError naming the override or the file, and the fix."""
        try:
            config = self._loader.load_configuration(
                config_name=_ROOT, overrides=list(overrides), run_mode=RunMode.RUN, from_shell=False
            )
        except yaml.YAMLError as error:
            raise _yaml_error(error) from error
        except (HydraException, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
            raise self._explain(error, overrides) from error
        choices = {k: v for k, v in config.hydra.runtime.choices.items() if "hydra" not in k and v}
        with open_dict(config):
            del config["hydra"]
        return Composition(config=config, choices=choices)

    def _groups_under(self, parent: str) -> Iterable[str]:
        for name in self._loader.list_groups(parent):
            group = f"{parent}/{name}" if parent else name
            if group.split("/")[0] not in {"hydra", "__pycache__"}:
                yield group
                yield from self._groups_under(group)

    def _explain(self, error: Exception, overrides: Sequence[str]) -> ConfigError:
        for text in overrides:
            key, _, value = text.lstrip("+").partition("=")
            if key in self.groups and value not in (options := self.options(key)) and f"'{key}/{value}'" in str(error):
                return ConfigError(
                    f"{key}={value}: there is no conf/{key}/{value}.yaml{nearest(value, options)}",
                    why=f"the options of {key} are {', '.join(options)}",
                    fix=f"choose one of them, or write conf/{key}/{value}.yaml",
                )
        for text in overrides:
            key = text.lstrip("+").partition("=")[0]
            if f"'{key}'" in str(error) and "struct" in f"{error}{error.__cause__}":
                return self._unknown_key(key, text, overrides)
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return ConfigError(
            f"the configuration does not compose: {lines[0] if lines else type(error).__name__}",
            why=" ".join(lines[1:4]), fix=f"see the files under {self._project / 'conf'} and the overrides given",
        )  # fmt: skip

    def _unknown_key(self, key: str, text: str, overrides: Sequence[str]) -> ConfigError:
        others = [o for o in overrides if o != text and o.lstrip("+").partition("=")[0] in self.groups]
        raw = OmegaConf.to_container(self.compose(others).config, resolve=False)
        at, known = _deepest(raw, key.split("."))
        missing = key.split(".")[len(at)] if len(at) < len(key.split(".")) else key
        return ConfigError(
            f"override {text!r}: {key} is unknown{nearest(missing, known)}",
            why=f"{'.'.join(at) or 'the top level'} has {', '.join(known) or 'no keys'}",
            fix=f"use one of them, or add a new key with +{text}",
        )  # fmt: skip


def resolve(config: DictConfig, *, where: str, only: str | None = None) -> Any:
    """Resolve all interpolations, or those of one top-level key.

    Raises ConfigError for a missing value or a broken interpolation.
    """
    try:
        return plain(config if only is None else config[only])
    except OmegaConfBaseException as error:
        raise _resolution_error(error, where) from error


def plain(value: Any) -> Any:
    """Return a resolved value without OmegaConf's types. Raises OmegaConf's errors."""
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
    return value


def _deepest(tree: Any, path: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return how much of a path exists, and the keys that are known there."""
    at: list[str] = []
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            break
        tree, at = tree[key], [*at, key]
    return at, sorted(map(str, tree)) if isinstance(tree, dict) else []


def _resolution_error(error: OmegaConfBaseException, where: str) -> ConfigError:
    key = str(getattr(error, "full_key", "") or "")
    if "Missing mandatory value" in str(error):
        hints = {"name": "name=my-experiment", "model._target_": "model=mlp, or model._target_=package.module.Class"}
        return ConfigError(
            f"{key} has no value ({where})", why="it is marked ??? and must be given",
            fix=f"add {hints.get(key, key + '=...')}",
        )  # fmt: skip
    return ConfigError(
        f"{key or 'a value'} cannot be resolved ({where})", why=str(error).splitlines()[0],
        fix="correct the ${...} in it, or give the value it reads",
    )  # fmt: skip


def _yaml_error(error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    place = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}" if mark else "a YAML file"
    return ConfigError(
        f"{place}: this is not YAML", why=str(getattr(error, "problem", None) or error).splitlines()[0],
        fix="correct the line; values with ':' or '#' need quotes",
    )  # fmt: skip
