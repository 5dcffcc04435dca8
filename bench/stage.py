"""Staging a data version to scratch, with full hashes, next to other programs; and a version that is there already.

5,000 small and 4 large files from DVC's cache: once on the local disk, once from a mount where each operation of the
file server's takes a millisecond, reads among them. There each way finds the mount new: nothing is in a cache of the
kernel's. Eight at once are processes of one node: ours copy once; the peers know nothing of each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from bench.copiers import Copied, Copiers
from bench.measure import Row, in_turns, say, timed
from bench.sandbox import PYTHON, Sandbox
from bench.slow_mount import slow_mount, unavailable
from orchestrator.data import Manifest, Staging, Store, resolve

_SMALL, _LARGE = 5_000, 4
_SMALL_BYTES, _LARGE_BYTES = 4_000, 100_000_000
_ROUNDS, _SLOW_ROUNDS, _HITS = 3, 2, 50
_AT_ONCE = 8
_HIT_AT_MOST = 0.02
"""Of the time of the first stage."""

_TIMES = {"cp -r": 8.0, "dvc checkout": 14.0, "rclone copy": 2.5}
"""How many times as long these peers must take, at 1 ms."""

_GIT = ("git", "-c", "user.name=bench", "-c", "user.email=bench@localhost")

On = Callable[[], AbstractContextManager[object]]
"""Provides the folder with the source, for one measurement."""


def rows(box: Sandbox) -> list[Row]:
    say("stage: making a DVC repository")
    project = _make_project(box, box.folder / "project")
    local = _copiers(box, project, project)
    found = [*_compared(local, nullcontext, "stage", _ROUNDS), _hit(local)]
    if (why := unavailable()) is not None:
        say(f"stage from a slow mount: not measured: {why}")
        return found
    at = box.folder / "slow"

    @contextmanager
    def mounted() -> Iterator[None]:
        with slow_mount(project, at, reads=True):
            yield

    with mounted():
        slow = _copiers(box, at, project)
    return [*found, *_compared(slow, mounted, "stage at 1 ms per operation", _SLOW_ROUNDS, times=_TIMES)]


def _compared(
    copiers: Copiers, on: On, name: str, rounds: int, *, times: Mapping[str, float] | None = None
) -> list[Row]:
    """Return the rows of one place: each way alone, then some concurrently."""

    def side(way: Callable[[int], Copied], count: int) -> Callable[[], Copied]:
        def measure() -> Copied:
            with on():
                return way(count)

        return measure

    ways = copiers.ways()
    alone = in_turns(name, rounds, {way: side(bring, 1) for way, bring in ways.items()}, warm_up=times is None)
    crowd = {way: side(ways[way], _AT_ONCE) for way in ("ours", "cp -r")}
    together = in_turns(f"{name}, {_AT_ONCE} at once", rounds, crowd, warm_up=False)
    return [
        *_rows(name, alone, times or {}),
        *_rows(f"{name}, {_AT_ONCE} processes of one node at once", together, {}),
    ]


def _rows(what: str, found: Mapping[str, Sequence[Copied]], times: Mapping[str, float]) -> list[Row]:
    return [_row(what, found["ours"], peer, found[peer], times.get(peer)) for peer in found if peer != "ours"]


def _row(what: str, ours: Sequence[Copied], peer: str, peers: Sequence[Copied], times: float | None) -> Row:
    return Row(
        what=what,
        measured=[each.seconds for each in ours],
        peak=[each.peak_bytes for each in ours],
        at_least=times,
        peer=peer,
        peer_measured=[each.seconds for each in peers],
        peer_peak=[each.peak_bytes for each in peers],
    )


def _hit(copiers: Copiers) -> Row:
    """Return the row of a version that is already on the node."""
    store = Store(copiers.box.folder / "hit", Staging(keep_free_gb=0))
    first = timed(lambda: store.stage(Manifest.read(copiers.manifest)).release())

    def hit() -> None:
        if (staged := store.find(copiers.digest)) is None:
            raise RuntimeError("the version is not there")
        staged.release()

    hits = [timed(hit) for _ in range(_HITS)]
    return Row(
        what="stage, already there", measured=hits, at_most=_HIT_AT_MOST, peer="its first stage", peer_measured=[first]
    )


def _make_project(box: Sandbox, project: Path) -> Path:
    _write_files(project / "data")
    git, dvc = [*_GIT, "-C", str(project)], [PYTHON, "-m", "dvc", "--cd", str(project)]
    box.run([*git, "init", "-q"])
    for words in (["init", "-q"], ["config", "cache.type", "copy"], ["add", "-q", "data"]):
        box.run([*dvc, *words])
    box.run([*git, "add", "-A"])
    box.run([*git, "commit", "-qm", "data"])
    return project


def _copiers(box: Sandbox, seen: Path, project: Path) -> Copiers:
    """Return the ways to copy from the project, which is visible at `seen`."""
    version = {"source": "dvc", "repo": str(seen), "path": "data"}
    manifest = resolve(version, project=box.folder, cache=box.folder / "answers")
    if manifest.files != _SMALL + _LARGE:
        raise RuntimeError(f"{manifest.files} files in {project}")
    path = box.folder / f"{seen.name}.json"
    manifest.write(path)
    return Copiers(box=box, source=seen, manifest=path, digest=manifest.digest, files=manifest.files)


def _write_files(folder: Path) -> None:
    for i in range(_SMALL):
        path = folder / f"{i % 50:02d}" / f"{i:04d}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(_SMALL_BYTES))
    for i in range(_LARGE):
        (folder / f"large-{i}.bin").write_bytes(os.urandom(_LARGE_BYTES))
