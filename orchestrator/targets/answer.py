"""What Python itself says about a target: asked in a subprocess, kept on disk.

An answer is kept for the interpreter, the search path, and the state of its installed packages: the names
of their `.dist-info` folders (distribution and version) and when such a folder was last added or removed.
It names the files of the user's own that took part, and holds while their hashes are the same.
Failures are not kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from orchestrator import process
from orchestrator.errors import ConfigError
from orchestrator.targets.annotation import accepts_text
from orchestrator.targets.signature import AbsentError, Parameter, Signature

_VERSION = 2
_TIMEOUT_S = 600.0  # Lightning on a cold network filesystem can take minutes
_DISTRIBUTIONS = {".dist-info", ".egg-info"}
_PROBE = Path(__file__).with_name("probe.py")
_LOG = logging.getLogger(__name__)


class Run(Protocol):
    """Runs a program and returns its standard output, as `orchestrator.process.run` does."""

    def __call__(self, argv: Sequence[str], *, env: Mapping[str, str], stdin: bytes, timeout_s: float) -> bytes: ...


class Answers:
    """Asks a subprocess at most once for each target and state of the code."""

    def __init__(self, search_path: Sequence[str], cache_dir: Path, run: Run = process.run) -> None:
        self._search_path = [str(Path(entry).absolute()) for entry in search_path]
        self._cache_dir = cache_dir
        self._run = run

    def signature(self, target: str) -> Signature:
        """Return what the target takes; raises AbsentError, or ConfigError if its import fails."""
        file = self._cache_dir / f"{self._key(target)}.json"
        answer = _kept(file)
        if answer is None:
            answer = self._ask(target)
            _keep(file, answer)
        return _signature(answer["signature"])

    def _ask(self, target: str) -> dict[str, Any]:
        question = {
            "target": target,
            "search_path": self._search_path,
            "installed": [entry for entry in self._search_path if _is_installed(entry)],
        }
        try:
            said = self._run(
                [sys.executable, "-P", str(_PROBE)],
                env={"PYTHONDONTWRITEBYTECODE": "1"},  # the user's folders stay as they are
                stdin=json.dumps(question).encode(),
                timeout_s=_TIMEOUT_S,
            )
        except process.ProgramError as error:
            last_line = (error.stderr.strip().splitlines() or [str(error)])[-1]
            raise _import_fails(target, last_line) from error
        try:
            return _checked(target, json.loads(said))
        except ValueError as error:
            raise _import_fails(target, "the import ended the process") from error

    def _key(self, target: str) -> str:
        installed = {entry: _state(entry) for entry in self._search_path if _is_installed(entry)}
        parts = [_VERSION, sys.executable, sys.version, self._search_path, installed, target]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _checked(target: str, answer: dict[str, Any]) -> dict[str, Any]:
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
        name=said["name"], required=said["required"], kind=said["kind"],
        accepts=accepts_text(written, said["default"]) if written is not None else None,
    )  # fmt: skip


def _import_fails(target: str, reason: str) -> ConfigError:
    return ConfigError(
        f"target {target!r} cannot be imported",
        why=reason,
        fix=f"make the import work in this environment ({sys.executable}), or name another `_target_`",
    )


def _is_installed(entry: str) -> bool:
    """Whether a folder of the search path is changed by installers only, or comes with Python."""
    paths = sysconfig.get_paths()
    standard = {paths["stdlib"], paths["platstdlib"], str(Path(paths["platstdlib"], "lib-dynload"))}
    return entry in standard or Path(entry).name in {"site-packages", "dist-packages"}


def _state(entry: str) -> list[Any]:
    """Return what changes when something is installed, upgraded or installed again in a folder."""
    try:
        names = sorted(path.name for path in Path(entry).iterdir() if path.suffix in _DISTRIBUTIONS)
        return [Path(entry).stat().st_mtime_ns, names]
    except OSError:
        return []


def _kept(file: Path) -> dict[str, Any] | None:
    try:
        answer: dict[str, Any] = json.loads(file.read_bytes())
        _signature(answer["signature"])
        unchanged = all(_sha256(path) == digest for path, digest in answer["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return answer if unchanged else None


def _sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _keep(file: Path, answer: dict[str, Any]) -> None:
    """Publish an answer by rename; a cache that cannot be written costs time, nothing else."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as out:
            json.dump(answer, out)
        Path(out.name).replace(file)
    except OSError as error:
        _LOG.debug("the answer for %s is not kept: %s", file, error)
