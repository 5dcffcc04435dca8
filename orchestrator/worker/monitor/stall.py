"""When an attempt has stalled, and in what: from beats, and from the stacks of its ranks. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.spec import Attempts
from orchestrator.worker.monitor.heartbeat import Beat, Stage

_LEAST_SECONDS, _TIMES = 900.0, 10.0
_NEAR = 10
"""The number of innermost frames that may show a data loader: it waits for its workers in code of a queue."""
_COLLECTIVE = re.compile(
    r"(all_)?(gather|reduce)(_into_tensor|_object)?|all_to_all|(monitored_)?barrier|broadcast(_object_list)?"
    r"|reduce_scatter|scatter|send|recv|init_process_group"
)
_FRAME = re.compile(r'^  File "(?P<file>[^"]*)", line (?P<line>\d+) in (?P<name>.+)$', re.MULTILINE)
_THREAD = re.compile(r"^(?:Current t|T)hread 0x[0-9a-f]+.*\(most recent call first\):$", re.MULTILINE)


@dataclass(slots=True, kw_only=True)
class Progress:
    """What a watcher has seen of the ranks of its node, by a clock that runs only while it does itself.

    A job that is suspended, and a laptop that sleeps, stop the watcher, too: that time does not count.
    """

    policy: Attempts
    counts: dict[int, tuple[int, int]] = field(default_factory=dict)
    changed: dict[int, float] = field(default_factory=dict)
    longest: float = 0.0

    def see(self, beats: Mapping[int, Beat], now: float) -> None:
        for rank, beat in beats.items():
            if self.counts.get(rank) != (beat.pid, beat.count):
                if beat.stage is Stage.TRAINING and self.counts.get(rank, (0, 0))[0] == beat.pid:
                    self.longest = max(self.longest, now - self.changed[rank])
                self.counts[rank], self.changed[rank] = (beat.pid, beat.count), now

    def limit(self, stage: Stage) -> float:
        """Return after how many seconds without progress a rank has stalled."""
        if stage is Stage.STARTING:
            return self.policy.startup_minutes * 60
        if self.policy.stall_minutes is not None:
            return self.policy.stall_minutes * 60
        return max(_LEAST_SECONDS, _TIMES * self.longest)

    def silence(self, beats: Mapping[int, Beat], now: float) -> tuple[float, float]:
        """Return for how long the most silent rank has said nothing, and its limit."""
        found = [(now - self.changed.get(rank, now), self.limit(beat.stage)) for rank, beat in beats.items()]
        return max(found, key=lambda each: each[0] - each[1], default=(0.0, 1.0))


def place(stack: str) -> str:
    """Return in what the thread is that has written a stack, in words; empty where there is none."""
    start = next((each for each in _THREAD.finditer(stack) if each[0].startswith("Current")), None)
    if start is None:
        return ""
    text = stack[start.end() :]
    following = _THREAD.search(text)
    frames = list(_FRAME.finditer(text[: following.start()] if following else text))
    if not frames:
        return "in C"
    for frame in frames:
        if _COLLECTIVE.fullmatch(frame["name"]):
            return f"in {frame['name']}"
    if any(frame["file"].endswith("utils/data/dataloader.py") for frame in frames[:_NEAR]):
        return "waits for its data loader's workers"
    file = "/".join(frames[0]["file"].split("/")[-2:])
    return f"in {frames[0]['name']} ({file}:{frames[0]['line']})"


def where(state: str, stack: str) -> str:
    """Return in what a process is, by its state as the kernel names it in a letter, and the stack that it wrote."""
    if state in {"T", "t"}:
        return "stopped"
    if state in {"", "Z", "X"}:
        return "ended"
    return place(stack) or ("waits for a disk" if state == "D" else "does not answer")


def signature(ranks: Mapping[int, str]) -> str:
    """Return what each rank is in, those alike together: `ranks 0, 2 in all_reduce, rank 1 stopped`."""
    groups: dict[str, list[int]] = {}
    for rank, text in sorted(ranks.items()):
        groups.setdefault(text, []).append(rank)
    return ", ".join(
        f"rank{'s' if len(found) > 1 else ''} {', '.join(map(str, found))} {text}" for text, found in groups.items()
    )
