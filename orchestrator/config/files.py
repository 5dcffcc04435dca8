"""Config files, as Hydra loads them: Hydra's repository, what a project's file may not contain, what YAML misreads.

A `hydra:` section would be composed, and then ignored: it is refused, and the error names the key that replaces it.

YAML 1.1 reads an unquoted `1:30` as 90, and `0123` as 83. In `cluster`, and wherever `resources` are set, these are
times, accounts or mistakes: they keep their text as written, and the rule of their key decides. Elsewhere they stay
numbers, which the ids of runs depend on.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import GroupDefault, InputDefault
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from omegaconf.grammar_parser import parse

from orchestrator.config.counterparts import of_hydra
from orchestrator.errors import ConfigError

PROVIDER = "project"
"""The name of the project's conf/ in Hydra's search path."""
_OURS = frozenset({"hydra", PROVIDER, "orchestrator", "schema"})

_PACKAGE = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)*?[ \t]*#[ \t]*@package[ \t]+(\S+)[ \t]*(?:\n|$)")
_INTERPOLATION, _ESCAPED = re.compile(r"\$\{"), r"\\${"
_READ_BY_HYDRA = frozenset({"searchpath"})
_MISREAD, _PERHAPS = re.compile(r"[-+]?(?:0\w+|.*:.*)"), re.compile(r"\b0\w|[0-9_]:[0-9]")
_MARK = "\ufeff"
MOST_LEVELS = 50
MOST_VALUES = 100_000
"""The most values read from a file, counting those that aliases repeat."""
_INDENTED = "\n" + " " * MOST_LEVELS
_NUMBERS = frozenset({"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"})


class Files(ConfigRepository):
    """Hydra's repository of config files, with checks of the project's own.

    `misread` maps the keys left as YAML reads them to the text as written and the number.
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
        """Load a file. Raises ConfigError for a `hydra:` section, and for a text that YAML or OmegaConf cannot read."""
        try:
            self._bound(config_path)
            found: ConfigResult | None = super().load_config(config_path)
        except OmegaConfBaseException as error:
            raise self._unreadable(config_path) or error from error
        except (ConfigError, HydraException, yaml.YAMLError, OSError, UnicodeDecodeError):
            raise
        except Exception as error:  # a constructor of YAML may raise any Python exception: KeyError, IndexError, ...
            raise _unbuildable(self._file(config_path), error) from error
        if found is None:
            return None
        text = _text(found.path, config_path)
        if found.provider == PROVIDER:
            if package := _PACKAGE.match(text):  # Hydra ignores a package directive that follows a comment
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

    def _bound(self, config_path: str) -> None:
        """Refuse a file of the project that is not plain YAML of a moderate size, before building anything from it."""
        file = self._file(config_path)
        if not file.is_file():
            return
        text = file.read_text(encoding="utf-8")
        if text.startswith(_MARK):
            raise ConfigError(
                f"{file} begins with a byte order mark",
                why="with it the first line is not a comment, and `# @package` is not read",
                fix="save it as UTF-8 without one",
            )
        if "&" in text or max(map(text.count, "[{-"), default=0) > MOST_LEVELS or _INDENTED in text:
            with suppress(yaml.YAMLError):  # reported with the file's name when it is loaded
                check_bounds(text, file)

    def initialize_sources(self, config_search_path: ConfigSearchPath) -> None:
        """Find packages named in a file's `hydra.searchpath` without importing them: Hydra would run their code."""
        for query in config_search_path.get_path():
            if query.provider not in _OURS and query.path.startswith("pkg://"):
                query.path = f"file://{_folder_of(query.path.removeprefix('pkg://'))}"
        super().initialize_sources(config_search_path)

    def _file(self, config_path: str) -> Path:
        folder = next((source.path for source in self.sources if source.provider == PROVIDER), "")
        return Path(folder) / _named(config_path)

    def _unreadable(self, config_path: str) -> ConfigError | None:
        """Return the error for the first text of a file that is not a whole interpolation."""
        file = self._file(config_path)
        return next(_broken(file, yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), ""), None)


def _folder_of(package: str) -> str:
    """Return the folder of a package of `hydra.searchpath`. Raises ConfigError where there is none."""
    path, name = None, ""
    for part in filter(None, re.split(r"[./]", package)):
        name = f"{name}.{part}".lstrip(".")
        specs = (finder.find_spec(name, path) for finder in sys.meta_path)
        spec = next(filter(None, specs), None)
        path = spec.submodule_search_locations if spec else None
        if not path:
            raise ConfigError(
                f"hydra.searchpath names pkg://{package}",
                why=f"there is no package {name}",
                fix="install it, or name a folder: file:///FOLDER",
            )
    return str(next(iter(path or ()), ""))


def check_bounds(text: str, file: Path) -> None:
    """Refuse text that nests too deeply, or that aliases make too long, without building anything from it."""
    sizes, open_anchors = [0], [""]
    known: dict[str, int] = {}
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in open_anchors:
                raise _too_much(file, line, f"*{event.anchor} lies in &{event.anchor}", "a value cannot hold itself")
            sizes[-1] += known.get(event.anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent):
            sizes[-1] += 1
        elif isinstance(event, yaml.CollectionStartEvent):
            sizes.append(1)
            open_anchors.append(event.anchor or "")
        elif isinstance(event, yaml.CollectionEndEvent):
            size = sizes.pop()
            known[open_anchors.pop()] = size
            sizes[-1] += size
        if len(sizes) > MOST_LEVELS:
            raise _too_much(file, line, "it nests too deeply", f"{MOST_LEVELS} levels are read")
        if sizes[-1] > MOST_VALUES:
            raise _too_much(file, line, "its aliases (`*`) make too many values", f"{MOST_VALUES:,} are read")


def _too_much(file: Path, line: int, what: str, why: str) -> ConfigError:
    return ConfigError(f"{file}, line {line}: {what}", why=why, fix="write it with less nesting and fewer aliases")


def _unbuildable(file: Path, error: Exception) -> ConfigError:
    """Return the error for the first value of a file that YAML cannot convert to the type of its tag."""
    try:
        text = file.read_text(encoding="utf-8")
        loader = get_yaml_loader()(text)
        nodes = _scalars(loader.get_single_node())
        broken = next((node for node in nodes if not _builds(loader, node)), None)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        broken = None
    place = f"{file}, line {broken.start_mark.line + 1}" if broken else str(file)
    what = f"{broken.value!r:.60} is not of the type {broken.tag.rpartition(':')[2]}" if broken else "it cannot be read"
    return ConfigError(
        f"{place}: {what}", why=f"{type(error).__name__}: {error!s:.200}", fix="correct it, or quote the text"
    )


def _scalars(node: yaml.Node | None) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.ScalarNode):
        yield node
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _scalars(value)
    elif isinstance(node, yaml.MappingNode):
        for value in (each for pair in node.value for each in pair):
            yield from _scalars(value)


def _builds(loader: Any, node: yaml.ScalarNode) -> bool:
    try:
        loader.construct_object(node)
    except Exception:  # noqa: BLE001 - as above
        return False
    return True


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
            loader.flatten_mapping(node)  # merged keys (`<<`) come first, and the last value of a key wins
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
    """Return whether a key belongs to `cluster` or `resources`, or to what a sweep sets in them."""
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
    """Yield the keys below `hydra` that a file sets; sweeps first, since leaving them out changes results."""
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
