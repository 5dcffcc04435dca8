"""`python -m orchestrator.worker.monitor.watcher LAUNCH INDEX ATTEMPT RANK FOLDER`: sees that an attempt hangs.

One runs on each node of an attempt, beside its ranks: a rank that was stopped, or is in C, cannot see that itself. What
hangs is described, with every rank's stack, in the ranks' logs, then ended; the run's policy decides what follows. The
watcher beside rank 0 writes it down, for all nodes. It ends when its standard input says so, or the rank that has
started it is gone.
"""

from __future__ import annotations

import json
import logging
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.errors import OrchError
from orchestrator.launch import recovery
from orchestrator.layout import AttemptPaths, LaunchPaths, RunPaths
from orchestrator.records.attempts import mark_state, read_attempts, write_observed
from orchestrator.records.planned import PlannedRun, read_planned_run
from orchestrator.records.record import RunState
from orchestrator.spec import Attempts
from orchestrator.system.files import names_in, read_json, write_text
from orchestrator.system.units import about
from orchestrator.worker.monitor import heartbeat, stall
from orchestrator.worker.monitor.heartbeat import SIGNAL, Beat

_log = logging.getLogger(__name__)
_PERIOD_SECONDS = 1.0
_STACK_SECONDS = 2.0
_START_SECONDS = 110.0
_TOGETHER_SECONDS = 15.0
"""How long the watcher beside rank 0 waits for what the other nodes' see."""
_LATER_SECONDS = 60.0
"""How long those wait for it to end the attempt."""
_SHOWN_BYTES = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """The part of an attempt that is on this node. `rank` is the one that has started the watcher."""

    launch: LaunchPaths
    planned: PlannedRun
    rank: int
    folder: Path

    @property
    def run(self) -> RunPaths:
        return self.launch.experiment.run(self.planned.run)

    @property
    def attempt(self) -> AttemptPaths:
        return self.run.attempt(self.planned.attempt)

    @property
    def policy(self) -> Attempts:
        return self.planned.resources.attempts or Attempts()


def watch(watched: Watched) -> None:
    """Look once a second until the attempt ends, or has stalled."""
    progress = stall.Progress(policy=watched.policy)
    parent, now, said, late = os.getppid(), 0.0, False, False
    while True:
        began = time.monotonic()
        if select.select([sys.stdin], [], [], _PERIOD_SECONDS)[0] or os.getppid() != parent:
            return
        now += min(time.monotonic() - began, 2 * _PERIOD_SECONDS)
        beats = heartbeat.beats(watched.folder)
        progress.see(beats, now)
        silent, limit = progress.silence(beats, now)
        if silent > limit and end(watched, beats, silent):
            return
        if silent > limit / 2 and not said:
            _say(watched, time.time() - silent, "")
        said = silent > limit / 2
        if not late and now > _START_SECONDS and watched.rank == 0:
            late = True
            _name_late(watched)


def end(watched: Watched, beats: Mapping[int, Beat], silent: float) -> bool:
    """Describe what hangs, write it down, and kill the ranks of this node; False if one gets on after all."""
    places = {rank: _described(watched, rank, beat, silent) for rank, beat in beats.items()}
    if heartbeat.beats(watched.folder) != beats:  # a system call that the signal has interrupted
        return False
    if watched.rank == 0:
        places |= _of_other_nodes(watched)
        _record(watched, f"stalled: {stall.signature(places)}")
    else:
        write_text(watched.attempt.stalled(socket.gethostname()), json.dumps(places))
        time.sleep(_LATER_SECONDS)
    for beat in beats.values():
        with suppress(OSError):  # it has ended
            os.kill(beat.pid, signal.SIGKILL)
    return True


def _described(watched: Watched, rank: int, beat: Beat, silent: float) -> str:
    """Return in what a rank is; its stack, and those of its children, go to its log."""
    seen = heartbeat.stack_bytes(watched.folder, rank)
    state = _state(beat.pid)
    _ask_for_stack(beat.pid)
    mine = _settled(watched.folder, rank, seen)
    seen += len(mine.encode(errors="replace"))
    asked = [_ask_for_stack(child) for child in _children(beat.pid)]
    theirs = _settled(watched.folder, rank, seen) if any(asked) else ""
    found = stall.where(state, mine)
    if theirs and found.startswith("waits for its data loader"):
        found += f": {stall.place(theirs)}"
    title = f"orch: no progress for {about(silent)}: rank {rank} (pid {beat.pid}) {found}"
    _append(watched.attempt.rank_log(rank), f"{title}\n{mine}{theirs}"[:_SHOWN_BYTES])
    return found


def _ask_for_stack(pid: int) -> bool:
    """Have a process write its stack, if it has a handler for that: any other would die of the signal."""
    if SIGNAL is None or not int(_status(pid).get("SigCgt", "0"), 16) >> (SIGNAL - 1) & 1:
        return False
    with suppress(OSError):
        os.kill(pid, SIGNAL)
    return True


def _settled(folder: Path, rank: int, seen: int) -> str:
    """Return what was written since, once no more comes."""
    deadline, text = time.monotonic() + _STACK_SECONDS, ""
    while time.monotonic() < deadline:
        time.sleep(0.2)
        later = heartbeat.take_stack(folder, rank, seen)
        if later and later == text:
            break
        text = later
    return text


def _state(pid: int) -> str:
    return _status(pid).get("State", "")[:1]


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(child) for child in text.split() if int(child) != os.getpid()]


def _append(log: Path, text: str) -> None:
    try:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")
    except OSError as error:
        _log.warning("%s\n%s", error, text)


def _of_other_nodes(watched: Watched) -> dict[int, str]:
    """Return what the watchers of other nodes have found, as far as they say so soon."""
    if watched.planned.resources.nodes == 1:
        return {}
    found: dict[int, str] = {}
    deadline = time.monotonic() + _TOGETHER_SECONDS
    while len(found) < watched.planned.resources.nodes - 1 and time.monotonic() < deadline:
        time.sleep(0.5)
        names = [name for name in names_in(watched.attempt.path) if name.startswith("stalled.")]
        with suppress(OrchError):
            found = {
                int(rank): str(text) for name in names for rank, text in read_json(watched.attempt.path / name).items()
            }
    return found


def _record(watched: Watched, reason: str) -> None:
    ours = recovery.of_launch(read_attempts(watched.run), watched.launch.number)
    endings = [recovery.ending(each) for each in ours]
    endings[-1] = replace(endings[-1], cause="stalled", reason=reason)
    described = recovery.described(reason, recovery.decide(watched.policy, endings, recovery.Room()))
    write_observed(watched.run, watched.planned.attempt, "interrupted", reason=described, cause="stalled")
    state = RunState.INTERRUPTED.value
    mark_state(watched.launch.experiment, watched.planned.run, watched.planned.attempt, state)


def _say(watched: Watched, since: float, what: str) -> None:
    """Have `orch status` say that there is no progress."""
    if watched.rank == 0:
        with suppress(OSError, OrchError):
            write_observed(watched.run, watched.planned.attempt, "stalling", since=since, what=what)


def _name_late(watched: Watched) -> None:
    """Name the ranks that have not begun: each that has begun has a log."""
    logs = {path.name for path in watched.attempt.logs()}
    missing = [n for n in range(watched.planned.resources.world_size) if watched.attempt.rank_log(n).name not in logs]
    if missing:
        text = f"{stall.signature(dict.fromkeys(missing, 'has not started'))} after {about(_START_SECONDS)}"
        _append(watched.attempt.log, f"orch: {text}")
        _say(watched, time.time() - _START_SECONDS, text)


def main(words: Sequence[str]) -> None:
    folder, index, attempt, rank, beats = words
    launch = LaunchPaths(Path(folder))
    planned = replace(read_planned_run(launch, int(index)), attempt=int(attempt))
    watched = Watched(launch=launch, planned=planned, rank=int(rank), folder=Path(beats))
    try:
        watch(watched)
    except (OrchError, OSError) as error:
        _log.warning("a hang of this run is no longer noticed: %s", error)
    finally:
        shutil.rmtree(watched.folder, ignore_errors=True)


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    main(sys.argv[1:6])
