"""Config files, as Hydra loads them: Hydra's repository, what a file of ours may not say, and what YAML misreads.

A `hydra:` section would be composed, and then read by nobody: it is refused, with the key that does the same here.

YAML 1.1 reads an unquoted `1:30` as 90, and `0123` as 83. In `cluster`, and wherever `resources` are set, these are
times, accounts or mistakes: they stay the text that was written, and the rule of their key decides. Elsewhere they stay
the numbers that are in the ids of runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import GroupDefault, InputDefault
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from omegaconf.grammar_parser import parse

from orchestrator.config.counterparts import of_hydra
from orchestrator.errors import ConfigError

PROVIDER = "project"
"""The name under which Hydra's search path has the project's conf/."""

_PACKAGE = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)*?[ \t]*#[ \t]*@package[ \t]+(\S+)[ \t]*(?:\n|$)")
_INTERPOLATION, _ESCAPED = re.compile(r"\$\{"), r"\\${"
_READ_BY_HYDRA = frozenset({"searchpath"})
_MISREAD, _PERHAPS = re.compile(r"[-+]?(?:0\w+|.*:.*)"), re.compile(r"\b0\w|[0-9_]:[0-9]")
_NUMBERS = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})


class Files(ConfigRepository):
    """Hydra's repository of config files, with checks of those of the project.

    `misread` are the keys that were left as YAML reads them: the text that was written, and the number.
    """

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.misread: dict[tuple[str, ...], tuple[str, float]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Files:
        """Return a copy with sources of its own, as Hydra makes one for each composition; `misread` is the same."""
        copy = Files.__new__(Files)
        copy.sources, copy.misread = deepcopy(self.sources, memo), self.misread
        return copy

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Load a file. Raises ConfigError for a `hydra:` section, or an interpolation that cannot be read."""
        try:
            found: ConfigResult | None = super().load_config(config_path)
        except OmegaConfBaseException as error:
            raise self._unreadable(config_path) or error from error
        if found is None:
            return None
        text = _text(found.path, config_path)
        if found.provider == PROVIDER:
            if package := _PACKAGE.match(text):  # Hydra reads none behind a comment
                found.header.update(package=package[1])
            _refuse_hydra(self._file(config_path), found, config_path)
        self._keep_as_written(found, config_path, text)
        return found

    def _keep_as_written(self, found: ConfigResult, config_path: str, written: str) -> None:
        group = config_path.rpartition("/")[0].replace("/", ".")
        package = found.header.get("package") or group
        package = {"_global_": "", "_group_": group}.get(package, package)
        above = tuple(filter(None, package.split(".")))
        for at, text, number in _misread(written):
            key = (*above, *map(str, at))
            if is_as_written(key):
                node: Any = found.config
                for part in at[:-1]:
                    node = node[part]
                node[at[-1]] = text
            else:
                self.misread[key] = text, number

    def _file(self, config_path: str) -> Path:
        (source,) = (source for source in self.sources if source.provider == PROVIDER)
        return Path(source.path) / _named(config_path)

    def _unreadable(self, config_path: str) -> ConfigError | None:
        """Return the error for the first text of a file that is not a whole interpolation."""
        file = self._file(config_path)
        return next(_broken(file, yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), ""), None)


def _named(config_path: str) -> str:
    return config_path if config_path.endswith(".yaml") else f"{config_path}.yaml"


def _text(source: str, config_path: str) -> str:
    kind, _, place = source.partition("://")
    if kind == "file":
        return (Path(place) / _named(config_path)).read_text(encoding="utf-8")
    return files(place).joinpath(_named(config_path)).read_text(encoding="utf-8") if kind == "pkg" else ""


def _misread(text: str) -> Iterator[tuple[tuple[Any, ...], str, float]]:
    """Yield the scalars that YAML 1.1 reads as numbers of base 60, 8, 16 or 2: their paths, texts and these numbers."""
    loader = get_yaml_loader()(text)

    def below(node: yaml.Node | None, at: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str, float]]:
        if isinstance(node, yaml.MappingNode):
            loader.flatten_mapping(node)  # what `<<` merges comes first, and the last of a key holds
            children = {loader.construct_object(key): value for key, value in node.value}
        elif isinstance(node, yaml.SequenceNode):
            children = dict(enumerate(node.value))
        else:
            if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and _MISREAD.fullmatch(node.value):
                yield at, node.value, loader.construct_object(node)
            return
        for key, value in children.items():
            yield from below(value, (*at, key))

    yield from below(loader.get_single_node() if _PERHAPS.search(text) else None, ())


def is_as_written(key: tuple[str, ...]) -> bool:
    """Return whether a key is one of `cluster` or `resources`, or of what a sweep sets in these."""
    if key[0] != "sweep":
        return key[0] in {"cluster", "resources"}
    return (*key[1:2], *key[3:4]) == ("resources", "set") or any(
        re.split(r"[./]", part.lstrip("+"))[0] == "resources" for part in key[2:]
    )


def _broken(file: Path, node: yaml.Node | None, at: str) -> Iterator[ConfigError]:
    """Yield an error for each text that is not a whole interpolation."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _broken(file, value, f"{at}.{key.value}" if at else str(key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield from _broken(file, value, f"{at}[{index}]")
    elif isinstance(node, yaml.ScalarNode) and "${" in node.value:
        try:
            parse(node.value)
        except GrammarParseError as error:
            yield ConfigError(
                f"{file}, line {node.start_mark.line + 1}: {at} is {node.value!r}",
                why=str(error).splitlines()[0],
                fix=rf"close the brace, ${{vars.x}}; for the text itself: '{_INTERPOLATION.sub(_ESCAPED, node.value)}'",
            )


def _refuse_hydra(file: Path, found: ConfigResult, config_path: str) -> None:
    for key, value in [*_chosen(found.defaults_list or []), *_section(found, config_path)]:
        instead, fix = of_hydra(key, value)
        raise ConfigError(f"{file}: {key} is set", why=f"Hydra does not run here, {instead}", fix=fix)


def _chosen(defaults: list[InputDefault]) -> Iterator[tuple[str, object]]:
    """Yield the options of Hydra's own groups that a defaults list chooses."""
    for each in defaults:
        if isinstance(each, GroupDefault):
            group = str(each.group).lstrip("/")
            if _is_hydras(group, "/") or _is_hydras(str(each.package or ""), "."):
                yield (group if _is_hydras(group, "/") else f"{group}@{each.package}"), each.value


def _section(found: ConfigResult, config_path: str) -> Iterator[tuple[str, object]]:
    """Yield the keys below `hydra` that a file sets; sweeps first, since to leave these out changes results."""
    written = OmegaConf.to_container(found.config, resolve=False)
    package = found.header.get("package") or ("" if "/" in config_path else "_global_")
    if package == "_global_" and isinstance(written, Mapping):
        written, package = written.get("hydra"), "hydra"
    if not _is_hydras(package, ".") or not isinstance(written, Mapping):
        return
    for key in sorted(written.keys() - _READ_BY_HYDRA, key=lambda key: (key != "sweeper", str(key))):
        yield f"{package}.{key}", written[key]


def _is_hydras(key: str, dot: str) -> bool:
    return key.partition(dot)[0] == "hydra"
