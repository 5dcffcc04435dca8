"""Where a value was written: the override, or the file and line. Used for errors only, so it may read files again."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

_KEY = re.compile(r"[A-Za-z_][\w.]*")
_POINT = re.compile(r"point .*?: ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A key, and the place that gives it a value."""

    key: str
    place: str


def named_in(message: str, written: Sequence[Written]) -> str:
    """Return where the first key that a message names was written, else where its section was; empty if unknown."""
    keys = _KEY.findall(_POINT.sub("", message, count=1))
    parents = [key.rpartition(".")[0] for key in keys]
    for key in [*keys, *filter(None, parents)]:
        for item in written:
            if item.key == key:
                return item.place
    return ""


def in_overrides(overrides: Sequence[str]) -> Iterator[Written]:
    """Yield the keys that overrides set, the last first."""
    for text in reversed(overrides):
        yield Written(key=text.lstrip("+~").partition("=")[0].replace("/", "."), place=f"override {text!r}")


def in_files(folders: Sequence[Path], choices: Mapping[str, str]) -> Iterator[Written]:
    """Yield the keys that the files of the chosen options set, the experiment's first. The first folder wins."""
    for group in sorted(choices, key=lambda group: group != "experiment"):
        files = (folder / group / f"{choices[group]}.yaml" for folder in folders)
        file = next((file for file in files if file.is_file()), None)
        if file is not None:
            yield from _in_file(file, "" if group == "experiment" else group.replace("/", "."))


def _in_file(file: Path, package: str) -> Iterator[Written]:
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return
    yield from _below(root, file, package)
    yield Written(key=package, place=str(file))


def _below(node: yaml.Node | None, file: Path, at: str) -> Iterator[Written]:
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        path = f"{at}.{key.value}" if at else str(key.value)
        place = f"{file}, line {key.start_mark.line + 1}"
        yield Written(key=path, place=place)
        if at.startswith("sweep"):  # `model.lr` below `sweep.grid` sets model.lr
            yield Written(key=str(key.value), place=place)
        yield from _below(value, file, path)
