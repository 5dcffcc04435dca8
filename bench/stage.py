"""Staging a data version to scratch, with full hashes, next to `cp -r`, which checks nothing.

On a local disk: the design's 6x are for a filesystem with a latency of 1 ms, which this does not make up.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from bench.measure import Row, Seconds, in_turns, say, timed
from bench.sandbox import Sandbox
from orchestrator.data import Manifest, Store, resolve

_SMALL, _LARGE = 5_000, 4
_LARGE_BYTES = 25_000_000
_ROUNDS = 3


def rows(box: Sandbox) -> list[Row]:
    say("stage: writing the files")
    source = _write_files(box.folder / "source")
    version = {"source": "directory", "path": str(source)}
    manifest = resolve(version, project=box.folder, cache=box.folder / "cache")
    manifest.write(box.folder / "manifest.json")
    digest = manifest.digest
    box.settle()
    places = (box.folder / f"place-{i}" for i in itertools.count())

    def bring(root: Path) -> None:
        """Do what a run does: a version that is there is found without reading the manifest."""
        store = Store(root)
        (store.find(digest) or store.stage(Manifest.read(box.folder / "manifest.json"))).release()

    def stage(root: Path) -> Seconds:
        return timed(lambda: bring(root))

    def copy() -> Seconds:
        return box.seconds(["cp", "-r", str(source), str(next(places))])

    first = in_turns("stage", _ROUNDS, {"ours": lambda: stage(next(places)), "peer": copy})
    staged = box.folder / "staged"
    hit = in_turns("stage again", 3 * _ROUNDS, {"ours": lambda: stage(staged)})
    files = f"{_SMALL:,} small + {_LARGE} x {_LARGE_BYTES // 1_000_000} MB"
    return [
        Row(what=f"stage {files}", measured=first["ours"], peer="cp -r", peer_measured=first["peer"]),
        Row(what="stage, already there", measured=hit["ours"], budget=0.05, peer="cp -r", peer_measured=first["peer"]),
    ]


def _write_files(folder: Path) -> Path:
    for i in range(_SMALL):
        path = folder / f"{i % 50:02d}" / f"{i:04d}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(4_000))
    for i in range(_LARGE):
        (folder / f"large-{i}.bin").write_bytes(os.urandom(_LARGE_BYTES))
    return folder
