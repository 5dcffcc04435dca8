"""Processes that stage, hold, read and remove data versions, killed at random moments: a program, for any machine.

    python stager_chaos.py FOLDER ROOT SEED KILLS

FOLDER holds two versions that share objects: their manifests `0.json` and `1.json`, their files in `data 0` and
`data 1`. ROOT is the store. After each kill, every view in it is read and compared. It prints each error on a line, and
last the number of kills that hit a process while it copied. Meanwhile file locks have no effect, and clocks jump.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import signal
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

from orchestrator.data import Manifest, Staging, Store
from orchestrator.data.store.holder import Holder

PROCESSES = 4
COPIERS_OF_TEN = 8
"""The number of kills, out of ten, that hit a copying process just after it started to copy; others hit any process."""


def main(folder: Path, root: Path, seed: str, kills: int) -> None:
    logging.disable()
    for name in ("flock", "lockf"):
        setattr(fcntl, name, lambda *_: None)  # as on a network filesystem that grants a lock to everybody
    chance = random.Random(seed)
    versions = [(Manifest.read(folder / f"{number}.json"), tree(folder / f"data {number}")) for number in range(2)]
    alive = [start(root, versions, f"{seed} {number}") for number in range(PROCESSES)]
    at_work = 0
    for number in range(kills):
        time.sleep(chance.uniform(0, 0.02))
        victim = choose(root, alive, chance)
        os.kill(victim, signal.SIGKILL)
        _, status = os.waitpid(victim, 0)
        if os.WIFEXITED(status):
            say(f"seed {seed}, kill {number}: the process had failed before")
        at_work += any(holder.pid == victim for holder in workers(root))
        for problem in wrong(root, {manifest.digest: files for manifest, files in versions}):
            say(f"seed {seed}, kill {number}: {problem}")
        alive[alive.index(victim)] = start(root, versions, f"{seed} {number} again")
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    say(str(at_work))


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def start(root: Path, versions: list[tuple[Manifest, dict[str, bytes]]], seed: str) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            live(root, versions, random.Random(seed))
        except BaseException:  # noqa: BLE001 - the parent reports it
            traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
        os._exit(1)
    return pid


def live(root: Path, versions: list[tuple[Manifest, dict[str, bytes]]], chance: random.Random) -> None:
    """Stage, read and remove until killed."""
    store = Store(root, Staging(keep_free_gb=0, threads=2))
    while True:
        if chance.random() < 0.4:
            set_clocks(root, chance)
            store.collect(all_idle=True)
            continue
        manifest, files = versions[chance.randrange(2)]
        staged = store.stage(manifest)
        for _ in range(chance.randrange(4)):
            if tree(staged.view) != files or store.changed(staged.version):
                raise SystemExit(f"wrong bytes in {staged.view}")
        staged.release()


def set_clocks(root: Path, chance: random.Random) -> None:
    """Give leases, claims and versions arbitrary times, as if a clock had been set forward or back."""
    with suppress(OSError):  # another process removes it
        for path in [*root.glob("versions/*/leases"), *root.glob("versions/*/leases/*"), *root.glob("*/*")]:
            os.utime(path, (0, chance.uniform(0, 2**33)))


def choose(root: Path, alive: list[int], chance: random.Random) -> int:
    """Return the process to kill."""
    if chance.randrange(10) >= COPIERS_OF_TEN:
        return chance.choice(alive)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if copiers := sorted({holder.pid for holder in workers(root)} & set(alive)):
            time.sleep(chance.uniform(0, 0.01))
            return chance.choice(copiers)
    raise SystemExit("nobody has copied anything for a minute")


def workers(root: Path) -> list[Holder]:
    """Return the processes with unfinished work."""
    try:
        return [holder for name in os.listdir(root / "work") if (holder := Holder.parse(name))]
    except FileNotFoundError:
        return []


def wrong(root: Path, right: dict[str, dict[str, bytes]]) -> list[str]:
    """Read all views that a process could use now, and return those that are wrong."""
    holder, found = Holder.current(), []
    for version in Store(root).versions():
        with version.held(holder) as held:
            if held and version.facts() and tree(version.view) != right[version.digest]:
                found.append(f"wrong bytes in {version.view}")
    return found


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
