"""How long a quick verb takes as a whole process: what a person waits for."""

from __future__ import annotations

from bench.measure import Row, in_turns
from bench.records import make_experiment
from bench.sandbox import PYTHON, Sandbox

_ROUNDS = 9
_HEAVY_ROUNDS = 3


def rows(box: Sandbox) -> list[Row]:
    paths = make_experiment(box.folder / "runs", "small", 20)
    run_id = next(iter((paths.path / "runs").iterdir())).name
    verbs = {
        "orch --help": box.orch("--help"),
        "orch status (20 runs)": box.orch("status", "small"),
        "orch show RUN": box.orch("show", "small", run_id),
        "orch logs RUN": box.orch("logs", "small", run_id),
    }
    bare, hydra, mlflow = ([PYTHON, "-c", code] for code in ("pass", "import hydra", "import mlflow"))
    commands = {**verbs, "bare": bare}
    found = in_turns("startup", _ROUNDS, {name: lambda a=argv: box.seconds(a) for name, argv in commands.items()})
    heavy = in_turns("imports", _HEAVY_ROUNDS, {"hydra": lambda: box.seconds(hydra), "mlflow": lambda: box.seconds(mlflow)})
    budgets = {"orch status (20 runs)": 0.15}
    return [
        Row(what=name, measured=found[name], budget=budgets.get(name), peer=peer, peer_measured=times)
        for name, peer, times in zip(
            verbs,
            ("python -c pass", "python -c pass", "python -c 'import hydra'", "python -c 'import mlflow'"),
            (found["bare"], found["bare"], heavy["hydra"], heavy["mlflow"]),
            strict=True,
        )
    ]
