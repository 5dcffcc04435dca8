"""`orch plan` on the budget configuration, and `orch launch` on a workstation, next to Hydra composing the same points.

Such a launch ends when its runs are in the workstation's queue, which starts none of them. Each is the first of its
experiment, so that it also writes the snapshot.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from bench.configuration import make_project, sweep_of
from bench.measure import Row, Seconds, in_turns, say
from bench.sandbox import PYTHON, Sandbox

_ROUNDS = 5
_COMPOSED = 20
_COMPOSE = """
import sys, time
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
OmegaConf.register_new_resolver("view", lambda: "view")
conf, count = sys.argv[1], int(sys.argv[2])
where = [f"hydra.searchpath=[file://{conf}]", "experiment=budget"]
with initialize_config_module("orchestrator.conf", version_base=None):
    compose("config", overrides=where)
    began = time.perf_counter()
    for i in range(count):
        point = [f"model={('small', 'large')[i % 2]}", f"model.lr={i / 1000}", f"seed={i}"]
        OmegaConf.to_container(compose("config", overrides=[*where, *point]), resolve=True)
    print((time.perf_counter() - began) / count)
"""


def rows(box: Sandbox) -> list[Row]:
    say("plan: making the budget configuration")
    project = box.folder / "project"
    make_project(box, project)
    box.settle()
    fresh = (box.folder / f"runs-{i}" for i in itertools.count())

    def orch(verb: str, points: int) -> Seconds:
        return box.seconds(box.orch(verb, *sweep_of(points), "--runs", str(next(fresh))), cwd=project)

    def peak_mb(verb: str, *words: str) -> float:
        return box.peak_mb(box.orch(verb, *sweep_of(10_000), *words, "--runs", str(next(fresh))), cwd=project)

    with box.idle_workstation():
        found = in_turns(
            "plan",
            _ROUNDS,
            {
                "launch 1,000": lambda: orch("launch", 1_000),
                "plan 1,000": lambda: orch("plan", 1_000),
                "plan 10,000": lambda: orch("plan", 10_000),
                "compose": lambda: _compose(box, project),
                "memory, compose": lambda: box.peak_mb(_compose_argv(project), cwd=project),
                "memory, plan": lambda: peak_mb("plan"),
                "memory, launch": lambda: peak_mb("launch", "--yes"),
            },
        )
    return [
        _row("orch plan (1,000 points)", found["plan 1,000"], 1_000, found["compose"]),
        _row("orch plan (10,000 points)", found["plan 10,000"], 10_000, found["compose"]),
        _row("orch launch (1,000 runs, workstation)", found["launch 1,000"], 1_000, found["compose"]),
        *(
            Row(
                what=f"orch {verb} (10,000 points), memory",
                measured=found[f"memory, {verb}"],
                unit="MB",
                at_most=5.0,
                peer=f"Hydra's compose, {_COMPOSED} points",
                peer_measured=found["memory, compose"],
            )
            for verb in ("plan", "launch")
        ),
    ]


def _row(what: str, measured: list[Seconds], points: int, per_point: list[Seconds]) -> Row:
    peer = f"Hydra's compose, {_COMPOSED} points x {points // _COMPOSED:,} (extrapolated)"
    return Row(what=what, measured=measured, peer=peer, peer_measured=[points * each for each in per_point])


def _compose(box: Sandbox, project: Path) -> Seconds:
    """Return the seconds that Hydra takes to compose one point."""
    return float(box.run(_compose_argv(project)))


def _compose_argv(project: Path) -> list[str]:
    return [PYTHON, "-c", _COMPOSE, str(project / "conf"), str(_COMPOSED)]
