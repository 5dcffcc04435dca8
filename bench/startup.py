"""The time of quick verbs as whole processes: the time that a user waits."""

from __future__ import annotations

from functools import partial

from bench.measure import Row, in_turns
from bench.records import make_experiment
from bench.sandbox import PYTHON, Sandbox

_ROUNDS = 11
_STANDARD = "argparse, json, subprocess, pathlib, dataclasses, logging"
_PEER = f"python -c 'import {_STANDARD}'"
_HELP, _LOOK = 1.5, 2.0
_SCALE = ("python -c 'import hydra'", "python -c 'import mlflow'")


def rows(box: Sandbox) -> list[Row]:
    paths = make_experiment(box.folder / "runs", "small", 20)
    run_id = next(iter(paths.runs.iterdir())).name
    ours = {
        "orch --help": (box.orch("--help"), _HELP),
        "orch --version": (box.orch("--version"), _HELP),
        "orch status (20 runs)": (box.orch("status", "small"), _LOOK),
        "orch show RUN": (box.orch("show", "small", run_id), _LOOK),
        "orch logs RUN": (box.orch("logs", "small", run_id), _LOOK),
    }
    scale = {name: [PYTHON, "-c", name.partition("'")[2].rstrip("'")] for name in _SCALE}
    commands = {**{name: argv for name, (argv, _) in ours.items()}, **scale}
    commands[_PEER] = [PYTHON, "-c", f"import {_STANDARD}"]
    found = in_turns("startup", _ROUNDS, {name: partial(box.seconds, argv) for name, argv in commands.items()})
    row = partial(Row, peer=_PEER, peer_measured=found[_PEER])
    return [
        *(row(what=name, measured=found[name], at_most=most) for name, (_, most) in ours.items()),
        *(row(what=name, measured=found[name]) for name in scale),
    ]
