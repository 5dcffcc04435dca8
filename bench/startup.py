"""How long a quick verb takes as a whole process: what a person waits for."""

from __future__ import annotations

from functools import partial

from bench.measure import Row, in_turns
from bench.records import make_experiment
from bench.sandbox import PYTHON, Sandbox

_ROUNDS = 7
_BARE = "python -c pass"
_SCALE = ("python -c 'import hydra'", "python -c 'import mlflow'")


def rows(box: Sandbox) -> list[Row]:
    paths = make_experiment(box.folder / "runs", "small", 20)
    run_id = next(iter(paths.runs.iterdir())).name
    verbs = {
        "orch --help": box.orch("--help"),
        "orch status (20 runs)": box.orch("status", "small"),
        "orch show RUN": box.orch("show", "small", run_id),
        "orch logs RUN": box.orch("logs", "small", run_id),
    }
    scale = {name: [PYTHON, "-c", name.partition("'")[2].rstrip("'")] for name in _SCALE}
    commands = {**verbs, _BARE: [PYTHON, "-c", "pass"], **scale}
    found = in_turns("startup", _ROUNDS, {name: partial(box.seconds, argv) for name, argv in commands.items()})
    budgets = {"orch status (20 runs)": 0.15}
    return [
        Row(what=name, measured=found[name], budget=budgets.get(name), peer=_BARE, peer_measured=found[_BARE])
        for name in (*verbs, *scale)
    ]
