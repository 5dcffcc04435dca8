"""The signature of a target according to Python itself: asked in a subprocess, kept on disk.

The key of an answer is the interpreter, the search path, and the state of its installed packages: the names
of their `.dist-info` folders (distribution and version) and when such a folder was last added or removed.
An answer lists the user's own files that it depends on, and is valid while their hashes are the same.
Failures are not kept.
"""

from __future__ import annotations

import hashlib
import json
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.config.targets.annotation import accepts_text
from orchestrator.config.targets.signature import AbsentError, Parameter, Signature
from orchestrator.errors import ConfigError
from orchestrator.system import cache
from orchestrator.system import processes as process

_VERSION = 2
_TIMEOUT_S = 600.0  # Lightning on a cold network filesystem can take minutes
_DISTRIBUTIONS = {".dist-info", ".egg-info"}
_PROBE = Path(__file__).with_name("probe.py")


class Answers:
    """Asks a subprocess at most once for each target and state of the code."""

    def __init__(self, search_path: Sequence[str], cache_dir: Path, run: process.Run = process.run) -> None:
        self._search_path = [str(Path(entry).absolute()) for entry in search_path]
        self._kept = cache.Answers(cache_dir)
        self._run = run
        self.files: set[str] = set()
        """The files outside installed packages that the answers depend on."""

    def signature(self, target: str) -> Signature:
        """Return the signature of a target. Raises AbsentError, or ConfigError if its import fails."""
        question = (target, self._key(target))
        answer: Any = self._kept.read(*question)
        if not _holds(answer):
            answer = self._ask(target)
            self._kept.write(answer, *question)
        self.files.update(answer["files"])
        return _signature(answer["signature"])

    def _ask(self, target: str) -> dict[str, object]:
        question = {
            "target": target,
            "search_path": self._search_path,
            "installed": [entry for entry in self._search_path if is_installed(entry)],
        }
        try:
            # Writes nothing into the user's folders, and ignores PYTHONPATH, as runs do.
            env = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""}
            answer = process.ask([str(_PROBE)], question, env=env, timeout_s=_TIMEOUT_S, run=self._run)
        except process.ProgramError as error:
            why = "the import ended the process" if error.status == 0 else error.reason
            raise _import_fails(target, why) from error
        return _checked(target, answer)

    def _key(self, target: str) -> str:
        installed = {entry: _state(entry) for entry in self._search_path if is_installed(entry)}
        parts = [_VERSION, sys.executable, sys.version, self._search_path, installed, target]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _checked(target: str, answer: dict[str, Any]) -> dict[str, object]:
    if "absent" in answer:
        absent = answer["absent"]
        raise AbsentError(absent["owner"], absent["name"], tuple(absent["known"]))
    if "not_callable" in answer:
        raise ConfigError(
            f"target {target!r} cannot be called",
            why=f"it is of type {answer['not_callable']}",
            fix="name a class or a function in `_target_`",
        )
    if "error" in answer:
        raise _import_fails(target, answer["error"])
    return answer


def _signature(said: Mapping[str, Any]) -> Signature:
    return Signature(
        parameters=tuple(map(_parameter, said["parameters"])),
        var_positional=bool(said["var_positional"]),
        var_keyword=bool(said["var_keyword"]),
    )


def _parameter(said: Mapping[str, Any]) -> Parameter:
    written = said["annotation"]
    return Parameter(
        name=said["name"],
        required=said["required"],
        kind=said["kind"],
        accepts=accepts_text(written, said["default"]) if written is not None else None,
    )


def _import_fails(target: str, reason: str) -> ConfigError:
    return ConfigError(
        f"target {target!r} cannot be imported",
        why=reason,
        fix=f"make the import work in this environment ({sys.executable}), or name another `_target_`",
    )


def is_installed(entry: str) -> bool:
    """Return whether a folder of the search path is changed by installers only, or comes with Python."""
    paths = sysconfig.get_paths()
    standard = {paths["stdlib"], paths["platstdlib"], str(Path(paths["platstdlib"], "lib-dynload"))}
    return entry in standard or Path(entry).name in {"site-packages", "dist-packages"}


def _state(entry: str) -> list[object]:
    """Return a state that changes when a package is installed, upgraded or installed again in a folder."""
    try:
        names = sorted(path.name for path in Path(entry).iterdir() if path.suffix in _DISTRIBUTIONS)
        return [Path(entry).stat().st_mtime_ns, names]
    except OSError:
        return []


def _holds(answer: Any) -> bool:
    """Return whether a kept answer can be read, and the files that it depends on are unchanged."""
    try:
        _signature(answer["signature"])
        return all(_sha256(path) == digest for path, digest in answer["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
