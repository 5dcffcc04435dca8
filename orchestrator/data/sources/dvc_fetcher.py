"""DVC's remotes as a fetcher of objects; they are asked by `dvc_remote`, a program of its own."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.data.fetch import Arrival
from orchestrator.data.manifest import Entry
from orchestrator.system.extras import require
from orchestrator.system.processes import python, with_our_package

_LOOK_SECONDS = 0.2

Ask = Callable[
    [Sequence[Mapping[str, Any]], Sequence[tuple[str, Sequence[str]]], Path | None, threading.Event],
    Iterator[tuple[int, Mapping[str, Any]]],
]
"""Ask remotes for objects, as `ask_remotes` does."""


def ask_remotes(
    remotes: Sequence[Mapping[str, object]],
    objects: Sequence[tuple[str, Sequence[str]]],
    folder: Path | None,
    stop: threading.Event,
) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield each object's index and its answer, as they come: its size, or its file if there is a folder to fetch into.

    Closing the generator ends the program, and so does `stop`. What it has not answered then, or when it breaks, has
    that as its problem.
    """
    waiting = set(range(len(objects)))
    problem = ""
    if remotes:
        require("dvc", "a remote of DVC")
        request = {"remotes": list(remotes), "objects": objects, "folder": str(folder or "")}
        with tempfile.TemporaryFile() as errors:
            for answer in _answers(json.dumps(request).encode(), errors.fileno(), stop):
                waiting.discard(answer["index"])
                yield answer["index"], answer
            errors.seek(0)
            problem = errors.read().decode(errors="replace").strip().rpartition("\n")[2] if waiting else ""
    for index in sorted(waiting):
        yield index, {"problem": problem}


def _answers(request: bytes, errors: int, stop: threading.Event) -> Iterator[dict[str, Any]]:
    env = {**os.environ, **with_our_package(), "DVC_NO_ANALYTICS": "1"}
    argv = python("-m", "orchestrator.data.sources.dvc_remote")
    with subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors) as program:
        over = threading.Event()
        threading.Thread(target=_kill_at, args=(stop, over, program), daemon=True).start()
        try:
            if program.stdin and program.stdout:
                program.stdin.write(request)
                program.stdin.close()
                yield from (json.loads(line) for line in program.stdout if line.endswith(b"\n"))
        finally:
            over.set()
            program.kill()


def _kill_at(stop: threading.Event, over: threading.Event, program: subprocess.Popen[bytes]) -> None:
    """Kill a program when it is to stop: who reads its answers waits for the next one, and cannot."""
    while not over.wait(_LOOK_SECONDS):
        if stop.is_set():
            program.kill()
            return


@dataclass(frozen=True, slots=True, kw_only=True)
class DvcFetcher:
    """The remotes of a manifest, as `dvc_remote` describes them."""

    remotes: Sequence[Mapping[str, object]]
    ask: Ask = ask_remotes

    @property
    def name(self) -> str:
        named = ", ".join(f"{remote['name']!r} ({remote['url']})" for remote in self.remotes)
        return f"the remote{'s' if len(self.remotes) > 1 else ''} {named}"

    def fetch(self, entries: Sequence[Entry], folder: Path, stop: threading.Event) -> Iterator[Arrival]:
        objects = [(entry.hash, entry.remote) for entry in entries]
        for index, answer in self.ask(self.remotes, objects, folder, stop):
            if "full" in answer:
                raise OSError(answer["full"], os.strerror(answer["full"]))
            path = Path(answer["path"]) if "path" in answer else None
            yield Arrival(entry=entries[index], path=path, problem=str(answer.get("problem", "")))
