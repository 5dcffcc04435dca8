"""Ways to copy a data version to a node: that of `orch`, and common programs, each in a process of its own.

All start with nothing on the node, except that DVC has a clone of the repository there already. Only `orch` checks the
hash of every file; DVC checks those that its cache does not mark as read-only.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

from bench.sandbox import PYTHON, Sandbox

_LOOK_SECONDS, _LOOKS_PER_FAMILY = 0.05, 10
_RCLONE = ("rclone", "copy", "--config", os.devnull, "--quiet", "--transfers", "32", "--checkers", "32")
_STAGE = """
import sys
from pathlib import Path
from orchestrator.data import Manifest, Staging, Store
digest, manifest, root = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
store = Store(root, Staging(keep_free_gb=0))
(store.find(digest) or store.stage(Manifest.read(manifest))).release()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """The cost of a copy: its time from start to end, and the peak memory of all of its processes together."""

    seconds: float
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Copiers:
    """The ways. `source` is a project: a DVC repository with `data/` in its cache; `manifest` is that of its data."""

    box: Sandbox
    source: Path
    manifest: Path
    digest: str
    files: int
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def ways(self) -> dict[str, Callable[[int], Copied]]:
        """Return the ways available on this machine, by name; each takes the number of concurrent copies."""
        found: dict[str, Callable[[int], Copied]] = {"ours": self.ours, "cp -r": self._copy("cp", "-r")}
        if shutil.which("rsync"):
            found["rsync -r"] = self._copy("rsync", "-r")
        if shutil.which("tar"):
            found["tar | tar"] = self._tar
        if shutil.which("rclone"):
            found["rclone copy"] = self._copy(*_RCLONE)
        return {**found, "dvc checkout": self._dvc("checkout"), "dvc pull": self._dvc("pull")}

    def ours(self, count: int = 1) -> Copied:
        """Let this many processes of one node request the version at the same time, as runs do."""
        root = self._place()
        argv = [PYTHON, "-c", _STAGE, self.digest, str(self.manifest), str(root)]
        return self._measure([root], [[argv]] * count)

    def _copy(self, *words: str) -> Callable[[int], Copied]:
        def copy(count: int) -> Copied:
            places = [self._place() for _ in range(count)]
            return self._measure(places, [[[*words, f"{self.source / 'data'}/.", str(at)]] for at in places])

        return copy

    def _tar(self, count: int) -> Copied:
        places = [self._place() for _ in range(count)]
        for place in places:
            place.mkdir()
        pack = ["tar", "-C", str(self.source / "data"), "-cf", "-", "."]
        return self._measure(places, [[pack, ["tar", "-C", str(place), "-xf", "-"]] for place in places])

    def _dvc(self, verb: str) -> Callable[[int], Copied]:
        """Return a way that takes the files from the project's cache, as a shared cache or as a remote."""

        def bring(count: int) -> Copied:
            clones = [self._clone(verb) for _ in range(count)]
            argvs = [[PYTHON, "-m", "dvc", "--cd", str(clone), verb, "-q"] for clone in clones]
            return self._measure(clones, [[argv] for argv in argvs])

        return bring

    def _clone(self, verb: str) -> Path:
        place, cache = self._place(), str(self.source / ".dvc" / "cache")
        self.box.run(["git", "clone", "-q", str(self.source), str(place)])
        setting = ["remote", "add", "-d", "r", cache] if verb == "pull" else ["cache", "dir", cache]
        self.box.run([PYTHON, "-m", "dvc", *setting], cwd=place)
        self.box.run([PYTHON, "-m", "dvc", "config", "cache.type", "copy"], cwd=place)
        return place

    def _place(self) -> Path:
        return self.box.folder / f"node-{next(self._numbers)}"

    def _measure(self, places: Sequence[Path], pipelines: Sequence[Sequence[Sequence[str]]]) -> Copied:
        """Run pipelines at the same time; then remove their targets, and let the disk catch up."""
        self.box.settle()
        site = {"DVC_SITE_CACHE_DIR": str(self._place())}
        environment = {**os.environ, **self.box.environment, **site}
        began = time.perf_counter()
        processes = [process for pipeline in pipelines for process in _started(pipeline, environment)]
        with _Watch(processes) as watch:
            for process in processes:
                process.wait()
            seconds = time.perf_counter() - began
        copied = Copied(seconds=seconds, peak_bytes=watch.peak_bytes)
        for place in places:
            if (there := sum(len(files) for _, _, files in os.walk(place))) < self.files:
                raise RuntimeError(f"{pipelines[0]} brought {there} of {self.files} files")
        if failed := [process.args for process in processes if process.returncode]:
            raise RuntimeError(f"{failed[0]} failed")
        for place in [*places, Path(site["DVC_SITE_CACHE_DIR"])]:
            subprocess.run(["chmod", "-R", "u+w", str(place)], check=False, stderr=subprocess.DEVNULL)
            shutil.rmtree(place, ignore_errors=True)
        return copied


def _started(pipeline: Sequence[Sequence[str]], environment: Mapping[str, str]) -> list[subprocess.Popen[bytes]]:
    """Start commands as a pipeline, each reading the output of the one before."""
    started: list[subprocess.Popen[bytes]] = []
    for argv in pipeline:
        before = started[-1].stdout if started else subprocess.DEVNULL
        output = subprocess.PIPE if len(started) < len(pipeline) - 1 else None
        started.append(subprocess.Popen(argv, env=environment, stdin=before, stdout=output))
        if started[1:] and started[-2].stdout:
            started[-2].stdout.close()
    return started


class _Watch:
    """Watches processes while they run: `peak_bytes` is the sum of the peaks of each process and its children."""

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._processes, self._most, self._ended = processes, dict[int, int](), threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def peak_bytes(self) -> int:
        return sum(self._most.values())

    def _look(self) -> None:
        children: list[int] = []
        for number in itertools.count():
            if number % _LOOKS_PER_FAMILY == 0:  # finding children reads all of /proc
                children = [child for process in self._processes for child in _children(process.pid)]
            for pid in (*children, *(process.pid for process in self._processes)):
                self._most[pid] = max(self._most.get(pid, 0), _peak_bytes(pid))
            if self._ended.wait(_LOOK_SECONDS):
                return


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _peak_bytes(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
