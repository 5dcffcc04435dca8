"""The subprocess that imports a target and reports its signature. Run as a script, never imported.

Reads `{"target", "search_path", "installed"}` as JSON from standard input and writes one JSON object:
`{"signature", "files"}`, `{"absent"}`, `{"error"}` or `{"not_callable"}`. `files` are the loaded files
outside the folders `installed`, with their SHA-256: the answer is valid while they are unchanged.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import inspect
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO


class _AbsentError(Exception):
    def __init__(self, owner: str, name: str, known: list[str]) -> None:
        super().__init__(name)
        self.answer = {"owner": owner, "name": name, "known": known}


def _locate(target: str) -> object:
    """Find an object as Hydra does: attributes first, then submodules."""
    top, *rest = target.split(".")
    found, path = _imported(top, "", None), top
    for name in rest:
        if not hasattr(found, name) and inspect.ismodule(found):
            _imported(name, path, found)
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise _AbsentError(path, name, dir(found)) from error
        path = f"{path}.{name}"
    return found


def _imported(name: str, parent: str, owner: object) -> object:
    path = f"{parent}.{name}" if parent else name
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name == path or (owner is not None and not hasattr(owner, "__path__")):
            raise _AbsentError(parent, name, dir(owner) if parent else []) from error
        raise


def _signature(found: Any) -> dict[str, object]:
    try:
        parameters = inspect.signature(found).parameters.values()
    except (ValueError, TypeError):  # written in C without a text signature: nothing is known
        return {"parameters": [], "var_positional": True, "var_keyword": True}
    kinds = {p.kind for p in parameters}
    named = [p for p in parameters if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]
    return {
        "parameters": [
            {"name": p.name, "kind": p.kind.name.lower(), "required": p.default is p.empty, **_written(p)}
            for p in named
        ],
        "var_positional": inspect.Parameter.VAR_POSITIONAL in kinds,
        "var_keyword": inspect.Parameter.VAR_KEYWORD in kinds,
    }


def _written(parameter: inspect.Parameter) -> dict[str, object]:
    """Return a parameter's annotation and default as text; None where there is none."""
    annotation, default = parameter.annotation, parameter.default
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    plain = isinstance(default, (bool, int, float, str, type(None)))
    return {
        "annotation": None if annotation is parameter.empty else text,
        "default": repr(default) if plain else None,
    }


def _files(installed: list[str]) -> dict[str, str]:
    roots = tuple(os.path.join(folder, "") for folder in installed)  # noqa: PTH118 - no Path adds a last slash
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())} - {None, __file__}
    own = sorted(str(file) for file in files if not str(file).startswith(roots))
    return {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in own if Path(file).is_file()}


def _error(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    foreign = [f"{f.filename}:{f.lineno}" for f in frames if f.filename != __file__]
    return " at ".join([f"{type(error).__name__}: {error}", *foreign[-1:]])


def _answer(question: dict[str, Any]) -> dict[str, object]:
    from orchestrator.config.lightning_names import unite  # once the search path is complete

    unite()
    try:
        found = _locate(question["target"])
    except _AbsentError as absent:
        return {"absent": absent.answer}
    except BaseException as error:  # noqa: BLE001 - importing runs foreign code, sys.exit() included
        return {"error": _error(error)}
    if not callable(found):
        return {"not_callable": type(found).__name__}
    return {"signature": _signature(found), "files": _files(question["installed"])}


def _main(answers: TextIO) -> None:
    question = json.load(sys.stdin)
    path = question["search_path"]
    sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]
    answers.write(json.dumps(_answer(question)))
    answers.flush()
    os._exit(0)  # skips the threads and exit handlers that the import has left behind


if __name__ == "__main__":
    gc.disable()  # imports produce no garbage, and take a fifth less time without the collector
    # Output of the import goes to standard error: standard output carries the answer alone.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        _main(answers)
