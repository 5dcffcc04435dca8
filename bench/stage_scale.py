"""Growth of the time and memory of a data version with its files: 2,000, 20,000 and 200,000 files of a few bytes.

Each verb is a separate process. Scratch and source are in memory if there is a tmpfs, so that the code is measured and
not the disk. The cost of a process that only imports the same modules is subtracted. The peer of each row is linear
growth: ten times the figure of the previous size. A hit must not grow.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.measure import Row, say
from bench.sandbox import PYTHON, Sandbox

_SIZES = (2_000, 20_000, 200_000)
_PER_FOLDER = 1_000
_HIT_AT_MOST = 0.02  # of the time of the first stage
_VERBS = ("nothing", "resolve", "stage", "check", "verify", "hit", "dvc")
_MEMORY = Path("/dev/shm")
_GIT = ("git", "-c", "user.name=bench", "-c", "user.email=bench@localhost")
_NEEDED = 3_000_000_000
_ACT = """
import json, os, resource, sys, time
from pathlib import Path
from orchestrator.data import Manifest, Staging, Store, resolve
verb, home = sys.argv[1], Path(sys.argv[2])
manifest, store = home / "manifest.json", Store(home / "scratch", Staging(keep_free_gb=0))
digest = (home / "digest").read_text() if verb in ("check", "verify", "hit") else ""
used = [resource.getrusage(which) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
began, before = time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in used)
if verb == "resolve":
    found = resolve({"source": "directory", "path": str(home / "data")}, project=home, cache=home / "cache")
    found.write(manifest)
    (home / "digest").write_text(found.digest)
elif verb == "dvc":
    resolve({"source": "dvc", "repo": str(home), "path": "data", "rev": "HEAD"}, project=home, cache=home / "cache")
elif verb == "stage":
    store.stage(Manifest.read(manifest)).release()
elif verb in ("check", "verify"):
    staged = store.find(digest)
    assert (store.changed if verb == "check" else store.verify)(staged.version) == []
elif verb == "hit":
    store.find(digest).release()
used = [resource.getrusage(which) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
cpu = sum(each.ru_utime + each.ru_stime for each in used) - before
print(json.dumps([time.perf_counter() - began, cpu, max(each.ru_maxrss for each in used) * 1024]))
"""


def rows(box: Sandbox) -> list[Row]:
    found: dict[tuple[str, int], tuple[float, float, int]] = {}
    for size in _SIZES:
        say(f"stage_scale: {size:,} files")
        with _home(box) as home:
            _write_files(home / "data", size)
            for verb in _VERBS:
                if verb == "dvc":
                    _track(box, home)
                argv = [PYTHON, "-c", _ACT, verb, str(home)]
                found[verb, size] = tuple(json.loads(box.run(argv, cwd=home)))
    return [_row(verb, size, found) for verb in _VERBS[1:] for size in _SIZES]


def _row(verb: str, size: int, found: dict[tuple[str, int], tuple[float, float, int]]) -> Row:
    seconds, cpu, peak = found[verb, size]
    smaller = found.get((verb, size // 10))
    idle = found["nothing", size][2]
    names = {
        "check": "a look at all sizes and times",
        "verify": "reading all of it",
        "hit": "a hit",
        "dvc": "resolve from DVC, its own process included",
    }
    told = f"{names.get(verb, verb)}, {size:,} files, beyond {idle / 1e6:.0f} MB"
    if smaller is None:
        return Row(what=told, measured=[seconds], cpu=[cpu], peak=[max(0, peak - idle)])
    if verb == "hit":
        return Row(
            what=told,
            measured=[seconds],
            cpu=[cpu],
            peak=[max(0, peak - idle)],
            at_most=_HIT_AT_MOST,
            peer="the first stage of it",
            peer_measured=[found["stage", size][0]],
        )
    grown = max(0, smaller[2] - found["nothing", size // 10][2]) * 10
    return Row(
        what=told,
        measured=[seconds],
        cpu=[cpu],
        peak=[max(0, peak - idle)],
        peer="ten times that of a tenth",
        peer_measured=[smaller[0] * 10],
        peer_cpu=[smaller[1] * 10],
        peer_peak=[grown],
    )


@contextmanager
def _home(box: Sandbox) -> Iterator[Path]:
    """Create a folder, in memory if that is large enough."""
    roomy = _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free > _NEEDED
    home = Path(tempfile.mkdtemp(prefix="orch-bench-", dir=_MEMORY if roomy else box.folder))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _track(box: Sandbox, home: Path) -> None:
    """Turn the folder into a DVC repository that tracks the data."""
    git, dvc = [*_GIT, "-C", str(home)], [PYTHON, "-m", "dvc", "--cd", str(home)]
    box.run([*git, "init", "-q"])
    for words in (["init", "-q"], ["config", "cache.type", "hardlink"], ["add", "-q", "data"]):
        box.run([*dvc, *words])
    box.run([*git, "add", "data.dvc", ".dvc"])
    box.run([*git, "commit", "-qm", "data"])


def _write_files(folder: Path, count: int) -> None:
    for number in range(count):
        if number % _PER_FOLDER == 0:
            (folder / f"{number // _PER_FOLDER:04d}").mkdir(parents=True)
        (folder / f"{number // _PER_FOLDER:04d}" / f"{number:06d}").write_bytes(os.urandom(64))
