"""`orch launch` of the budget configuration on a real Slurm, next to Hydra's multirun with its submitit launcher.

The time is that of the whole process, with all checks. Each launch is the first of its experiment, so that it also
writes the snapshot. After it, every task has to be in Slurm's queue, and no process of the launch may be left. It is
measured on the local disk, and with the project and runs/ on a mount where each metadata operation takes 1 ms.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from bench.configuration import make_project, sweep_of
from bench.measure import Cost, Row, in_turns, say
from bench.multirun import Multirun
from bench.sandbox import Sandbox
from bench.slow_mount import slow_mount, unavailable
from bench.slurm import BusySlurm, busy_slurm
from orchestrator.slurm.devcluster import available

_BUDGETS = {1_000: 80.0, 10_000: 300.0}
_SLOWLY = 40.0
_ROUNDS = 3
_PEER_POINTS = (20, 100)
_MARK = "ORCH_BENCH"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The costs of launches, by their number of points; those of the peer for two sizes only."""

    ours: Mapping[int, Sequence[Cost]]
    peer: Mapping[int, Sequence[Cost]]

    def row(self, what: str, points: int, at_least: float) -> Row:
        """Return the row of a launch; the peer's cost is extrapolated linearly from its two sizes."""
        small, large = sorted(self.peer)
        share = (points - small) / (large - small)
        peer = [a + (b - a) * share for a, b in zip(self.peer[small], self.peer[large], strict=True)]
        return Row(
            what=what,
            measured=[each.seconds for each in self.ours[points]],
            at_least=at_least,
            cpu=[each.cpu_seconds for each in self.ours[points]],
            peer=f"Hydra's multirun until queued ({small} and {large} points, extrapolated)",
            peer_measured=[each.seconds for each in peer],
            peer_cpu=[each.cpu_seconds for each in peer],
        )


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """Launches the budget configuration with `orch`. `home` holds the project, and gets the folders for runs."""

    box: Sandbox
    slurm: BusySlurm
    home: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def launch(self, points: int) -> Cost:
        """Return the cost of a launch. Raises RuntimeError if a task is not in the queue, or a process is left."""
        runs, mark = self.home / f"runs-{next(self._numbers)}", uuid.uuid4().hex
        argv = self.box.orch("launch", *sweep_of(points), "cluster=slurm", "--yes", "--runs", str(runs))
        cost = self.box.cost(argv, cwd=self.home / "project", env={**self.slurm.environment, _MARK: mark})
        if (waiting := self.slurm.waiting()) != points:
            raise RuntimeError(f"{waiting} tasks wait in the queue, and {points} were launched")
        if left := processes_marked(mark):
            raise RuntimeError(f"the launch left processes behind: {left}")
        self.slurm.clear()
        return cost


def processes_marked(mark: str) -> list[psutil.Process]:
    """Return the processes that have inherited a launch's mark in their environment."""
    found = psutil.process_iter(["environ"])
    return [process for process in found if (process.info["environ"] or {}).get(_MARK) == mark]


def rows(box: Sandbox) -> list[Row]:
    if (why := available()) is not None:
        say(f"launch: not measured: {why}")
        return []
    say("launch: making the budget configuration, and starting a Slurm")
    disk = box.folder / "disk"
    make_project(box, disk / "project")
    box.settle()
    with busy_slurm() as slurm:
        found = measured(box, slurm, disk, _BUDGETS, name="launch")
        local = [found.row(f"orch launch ({n:,} runs, Slurm)", n, budget) for n, budget in _BUDGETS.items()]
        return [*local, *_slowly(box, slurm, disk)]


def measured(
    box: Sandbox,
    slurm: BusySlurm,
    home: Path,
    sizes: Collection[int],
    *,
    name: str,
    rounds: int = _ROUNDS,
    peer_points: tuple[int, int] = _PEER_POINTS,
    warm_up: bool = True,
) -> Found:
    """Return the costs of launches of these sizes, and of the peer's two."""
    ours, peer = Launcher(box=box, slurm=slurm, home=home), Multirun(box=box, slurm=slurm, home=home)
    sides = {f"ours {points}": partial(ours.launch, points) for points in sizes}
    sides |= {f"peer {points}": partial(peer.queue, points) for points in peer_points}
    found = in_turns(name, rounds, sides, warm_up=warm_up)
    return Found(
        ours={points: found[f"ours {points}"] for points in sizes},
        peer={points: found[f"peer {points}"] for points in peer_points},
    )


def _slowly(box: Sandbox, slurm: BusySlurm, disk: Path) -> list[Row]:
    if (why := unavailable()) is not None:
        say(f"launch on a slow mount: not measured: {why}")
        return []
    with slow_mount(disk, box.folder / "slow") as mount:
        found = measured(box, slurm, mount.path, [1_000], name="launch, 1 ms per metadata operation")
    return [found.row("... project and runs/ at 1 ms per metadata operation", 1_000, _SLOWLY)]
