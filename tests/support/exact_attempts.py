"""A process that has imported torch and Lightning once, and forks the attempts of the runs that tests kill.

    python exact_attempts.py      a request on a line of its standard input, an answer on one of its standard output

A request is {"case", "folder", "kill": [place, time, signal] or null, "restores", "options"}; the options are those of
checkpoints. The answer is the exit status of the attempt and, if it ended by itself, the places that it has passed. All
ranks of an attempt are in one process group.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import exact_cases
import pytorch_lightning as pl
import torch
from exact_cases import Kill

from orchestrator.layout import AttemptPaths
from orchestrator.records.attempts import EventWriter
from orchestrator.records.checkpoints import to_resume
from orchestrator.spec import CheckpointOptions, Objective, Resources
from orchestrator.tracking import SpoolWriter
from orchestrator.tracking.logger import SpoolLogger
from orchestrator.worker.context import ProcessContext
from orchestrator.worker.fit import writer
from orchestrator.worker.fit.exact import state
from orchestrator.worker.fit.trainer import Training, train
from orchestrator.worker.signals import InterruptedByInfrastructureError, StopSignal

_SECONDS = 120


def serve() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _lead(asked)
        _, status = os.waitpid(pid, 0)
        passed = Path(asked["folder"], "passed.json")
        places = json.loads(passed.read_text()) if passed.is_file() else None
        sys.stdout.write(json.dumps({"status": os.waitstatus_to_exitcode(status), "passed": places}) + "\n")
        sys.stdout.flush()


def _lead(asked: dict[str, Any]) -> NoReturn:
    """Become the leader of the attempt's process group, and run its only rank or start several."""
    os.setpgid(0, 0)
    signal.alarm(_SECONDS)
    world = exact_cases.CASES[asked["case"]].get("world", 1)
    if world == 1:
        _leave(asked, 0, 1, 0)
    signal.signal(signal.SIGTERM, lambda *_: None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(world):
        if (pid := os.fork()) == 0:
            signal.alarm(_SECONDS)
            _leave(asked, rank, world, port)
        ranks.append(pid)
    os._exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks))


def _leave(asked: dict[str, Any], rank: int, world: int, port: int) -> NoReturn:
    code = 1
    log = os.open(f"{asked['folder']}/log.{rank}", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        code = attempt(asked, rank, world, port)
    except BaseException:  # noqa: BLE001 - the process ends here after any error
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def attempt(asked: dict[str, Any], rank: int, world: int, port: int) -> int:
    """Train from the last checkpoint of earlier attempts, and return the exit status."""
    warnings.filterwarnings("ignore")
    folder = Path(asked["folder"])
    Kill.file = folder / "kills"
    if asked["kill"] and rank == 0:
        Kill.place, Kill.time, Kill.number = asked["kill"]
    if world > 1:
        environ = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": rank, "NODE_RANK": 0}
        os.environ.update({name: str(value) for name, value in {**environ, "WORLD_SIZE": world}.items()})
    if not asked["restores"]:
        state.restore = lambda *_: None
    if rank == 0:
        _pass_by_saves()
    mine = AttemptPaths(folder / asked["attempt"])
    mine.path.mkdir(parents=True, exist_ok=True)
    earlier = [AttemptPaths(path) for path in folder.glob("a[0-9]*") if path.name < asked["attempt"]]
    objective = Objective(metric="val_loss", mode="min")
    work = Training(
        config=exact_cases.config(asked["case"]),
        resources=Resources(gpus_per_node=world if world > 1 else 0),
        objective=objective,
        folder=mine.path,
        artifacts=folder / "artifacts",
        context=ProcessContext(rank=rank, processes=world, local_rank=rank),
        resume_from=to_resume(earlier),
        checkpoint=CheckpointOptions(**asked["options"]),
    )
    stop = StopSignal()
    stop.install()
    with SpoolWriter(mine.path / "metrics.jsonl" if rank == 0 else Path(os.devnull)) as spool:
        events = EventWriter(mine.path / "events.jsonl" if rank == 0 else Path(os.devnull))
        try:
            done = train(work, logger=SpoolLogger(spool, mine), events=events, stop=stop)
        except InterruptedByInfrastructureError:
            return 143
    if rank == 0:
        best = {key: value for key, value in done["best"].items() if key != "checkpoint"}
        (folder / "done.json").write_text(json.dumps({"best": best, "metrics": done["metrics"]}))
        (folder / "passed.json").write_text(json.dumps(Kill.passed))
    return 0


def _pass_by_saves() -> None:
    """Add places for kills within a save: before it, and after the file is written, renamed, and made the latest."""
    write = writer.AtomicCheckpointIO.write
    writer.AtomicCheckpointIO.write = _around(write, "before a save", "renamed")
    torch.save = _around(torch.save, "", "written")
    writer.write_latest = _around(writer.write_latest, "", "saved")


def _around(function: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
    @wraps(function)
    def around(*args: Any, **kwargs: Any) -> Any:
        if before:
            Kill.at(before)
        result = function(*args, **kwargs)
        Kill.at(after)
        return result

    return around


if __name__ == "__main__":
    pl.LightningModule  # noqa: B018 - imported before the first fork
    serve()
