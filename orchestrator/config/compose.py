"""Hydra's composition over the project's conf/ and the built-in one, with its errors translated."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

import orchestrator
from orchestrator.config.credentials import reference
from orchestrator.config.explain import explain
from orchestrator.config.files import PROVIDER, Files
from orchestrator.config.location import in_files, in_overrides, named_in
from orchestrator.errors import ConfigError
from orchestrator.spec import PROJECT, VIEW

_ROOT = "config"
_NOT_DELETED = re.compile(r"Could not delete from config\. '([^']+)' does not exist")
_FREE = ("cluster.extra={", "trainer.callbacks={", "trainer.logger={", "vars={", "sweep.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """One composed, not yet resolved config, and the config groups chosen for it."""

    config: DictConfig
    choices: Mapping[str, str]


class Composer:
    """Composes configs of one project: `conf/` in its folder first, the built-in conf second."""

    def __init__(self, project: Path) -> None:
        self.folder = project / "conf"
        OmegaConf.register_new_resolver("view", lambda: VIEW, replace=True)
        OmegaConf.register_new_resolver("project", lambda: PROJECT, replace=True)
        OmegaConf.register_new_resolver("secret", reference, replace=True)

    @cached_property
    def _loader(self) -> ConfigLoaderImpl:
        Plugins.instance()  # registers the file:// and pkg:// sources
        path = ConfigSearchPathImpl()
        path.append("hydra", "pkg://hydra.conf")
        if self.folder.is_dir():
            path.append(PROVIDER, f"file://{self.folder}")
        path.append("orchestrator", "pkg://orchestrator.conf")
        path.append("schema", "structured://")
        loader = ConfigLoaderImpl(path)
        loader.repository = Files(path)
        return loader

    @property
    def misread(self) -> Mapping[tuple[str, ...], tuple[str, float]]:
        """The keys whose values YAML read as numbers, such as `1:30` and `0123`: text as written, and number."""
        return cast("Files", self._loader.repository).misread

    @property
    def unread(self) -> str:
        """The folder in which other programs keep their conf/, if the project has one; empty where there is a conf/."""
        beside = [] if self.folder.is_dir() else [self.folder.with_name(name) for name in ("configs", "config")]
        return next((folder.name for folder in beside if any(folder.glob("**/*.yaml"))), "")

    @cached_property
    def groups(self) -> frozenset[str]:
        """All config groups, nested ones with a slash."""
        return frozenset(self._groups_under(""))

    def chooses(self, key: str, value: object) -> bool:
        """Return whether an override chooses from a config group, perhaps into a package (`group@package`).

        As in Hydra, a mapping as the value changes keys of the chosen option, and chooses nothing.
        """
        return key.partition("@")[0] in self.groups and not isinstance(value, Mapping)

    def options_of(self, key: str) -> list[str] | None:
        """Return the options of a key that is a config group, and None for others."""
        return self.options(key) if key in self.groups else None

    def options(self, group: str) -> list[str]:
        """Return the options of a config group."""
        return list(self._loader.repository.get_group_options(group, ObjectType.CONFIG))

    def option(self, key: str, value: object) -> Any:
        """Return an option of a config group, or a list of options, without the `.yaml` ending that Hydra accepts.

        Any other value stays as it is.
        """
        if isinstance(value, list):
            return [self.option(key, each) for each in value]
        group = str(key).partition("@")[0]
        if not isinstance(value, str) or not value.endswith(".yaml") or group not in self.groups:
            return value
        return value if value in self.options(group) else value.removesuffix(".yaml")

    def compose(self, overrides: Sequence[str]) -> Composition:
        """Compose with Hydra overrides. Raises ConfigError, which names the override or the file, and the fix."""
        try:
            config = self._load(overrides)
        except ConfigError:
            raise
        except Exception as error:  # Hydra, OmegaConf and YAML raise any Python exception
            raise explain(self, error, overrides) from error
        chosen = {k: v for k, v in config.hydra.runtime.choices.items() if "hydra" not in k and v}
        with open_dict(config):
            del config["hydra"]
        return Composition(config=config, choices={key: self.option(key, value) for key, value in chosen.items()})

    def _load(self, overrides: Sequence[str]) -> DictConfig:
        """Compose with Hydra, which cannot delete a null key: such a key gets a value first, and is then deleted."""
        written = list(map(_opened, overrides))
        try:
            return self._hydra(written)
        except ConfigCompositionException as error:
            missing = _NOT_DELETED.search(str(error))
            place = next(
                (i for i, each in enumerate(written) if missing and each.partition("=")[0] == f"~{missing[1]}"), None
            )
            if missing is None or place is None or not self._is_null(missing[1], written[:place]):
                raise
            return self._load([*written[:place], f"++{missing[1]}=0", *written[place:]])

    def _is_null(self, key: str, overrides: Sequence[str]) -> bool:
        parent, _, leaf = key.rpartition(".")
        config = self._hydra(overrides)
        node = OmegaConf.select(config, parent) if parent else config
        return isinstance(node, DictConfig) and leaf in node

    def _hydra(self, overrides: Sequence[str]) -> DictConfig:
        return self._loader.load_configuration(
            config_name=_ROOT, overrides=list(overrides), run_mode=RunMode.RUN, from_shell=False
        )

    def unresolved(self, overrides: Sequence[str]) -> object:
        """Compose, and return plain dicts and lists with their interpolations as written."""
        return OmegaConf.to_container(self.compose(overrides).config, resolve=False)

    def place_of(self, message: str, overrides: Sequence[str]) -> str:
        """Return where the value that a message complains about was written; empty if that is unknown."""
        values = [text for text in overrides if text.lstrip("+").partition("=")[0].partition("@")[0] not in self.groups]
        folders = [self.folder, *(Path(folder) / "conf" for folder in orchestrator.__path__)]
        try:
            choices = self.compose([text for text in overrides if text not in values]).choices
        except ConfigError:
            choices = {}
        return named_in(message, [*in_overrides(values), *in_files(folders, choices)])

    def _groups_under(self, parent: str) -> Iterable[str]:
        # Not `list_groups`, which first makes a deep copy of everything registered with Hydra.
        for name in self._loader.repository.get_group_options(parent, ObjectType.GROUP):
            group = f"{parent}/{name}" if parent else name
            if group.split("/")[0] not in {"hydra", "__pycache__"}:
                yield group
                yield from self._groups_under(group)


def _opened(override: str) -> str:
    """Return an override in a form in which Hydra accepts new keys in a mapping of free keys given as a whole."""
    return f"++{override}" if override.startswith(_FREE) else override


def resolve(config: DictConfig, *, where: str, only: str | None = None) -> Any:
    """Resolve all interpolations, or those of one top-level key.

    Raises ConfigError for a missing value or a broken interpolation.
    """
    try:
        return plain(config if only is None else config[only])
    except Exception as error:  # a resolver may raise any Python exception
        raise _resolution_error(error, where) from error


def plain(value: object) -> object:
    """Return a resolved value without OmegaConf's types. Raises OmegaConf's errors."""
    if OmegaConf.is_config(value):
        return OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
    return value


def _resolution_error(error: Exception, where: str) -> ConfigError:
    key = str(getattr(error, "full_key", "") or "")
    if "Missing mandatory value" in str(error):
        hints = {"name": "name=my-experiment", "model._target_": "model=mlp, or model._target_=package.module.Class"}
        return ConfigError(
            f"{key} has no value ({where})",
            why="it is marked ??? and must be given",
            fix=f"add {hints.get(key, key + '=...')}",
        )
    return ConfigError(
        f"{key or 'a value'} cannot be resolved ({where})",
        why=(str(error).splitlines() or [type(error).__name__])[0],
        fix="correct the ${...} in it, or give the value it reads",
    )
