"""Which waiting run starts next, and on which devices. Pure: what runs and what waits in, one choice out.

The run at the head of the queue is waited for, so that a wide one never starves. One behind it goes ahead only if
that cannot delay the head: it takes nothing that the head waits for; or it is sure to have ended, by its own time
limit, when those of the others let the head be sure to start.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from orchestrator.spec import Resources

DEPTH = 100
"""How many waiting runs are looked at: this happens several times a second, and a queue may hold thousands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU. `id`: what CUDA_VISIBLE_DEVICES takes, usually its number; `address`: the same for every user."""

    id: str
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the runs of one launch may take of this machine, together with all others that run, and how they wait.

    `mem_gb` None: memory is not counted. No `devices`: GPUs are not counted, since none are known. `runs_per_gpu`:
    how many runs of one GPU share one; a run of several has each for itself. Of higher `priority` runs start first.
    """

    cpus: int
    mem_gb: float | None = None
    devices: tuple[Device, ...] = ()
    runs_per_gpu: int = 1
    avoid_busy: bool = False
    priority: int = 0
    grace_seconds: float = 30.0

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Terms:
        """Read the terms of a queue's entry; an older version's says less."""
        known = {key: value[key] for key in cls.__dataclass_fields__ if key in value}
        return cls(**{**known, "devices": tuple(Device(**device) for device in value.get("devices", ()))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What one run needs, and on which terms."""

    resources: Resources
    terms: Terms

    @property
    def gpus(self) -> int:
        return self.resources.gpus_per_node if self.terms.devices else 0

    @property
    def share(self) -> Fraction:
        """How much of each of its devices it takes."""
        return Fraction(1, self.terms.runs_per_gpu if self.gpus == 1 else 1)

    @property
    def kinds(self) -> frozenset[str]:
        memory = self.resources.mem_gb_per_node and self.terms.mem_gb
        return frozenset({"CPU", *(["GPU"] if self.gpus else []), *(["GB"] if memory else [])})

    @property
    def seconds(self) -> float:
        """How long it may take at most, until it is killed."""
        return self.resources.hours * 3600 + self.terms.grace_seconds if self.resources.hours else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What a run has. `until`: when it will have ended at the latest; infinite without a time limit."""

    wanted: Wanted
    devices: tuple[Device, ...] = ()
    until: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The waiting run that starts next, by its place in the queue, and its devices."""

    place: int
    devices: tuple[Device, ...]


def choose(waiting: Sequence[Wanted], taken: Sequence[Taken], *, closed: Collection[str], now: float) -> Choice | None:
    """Return which run starts now, if one does. `closed`: addresses of devices that another process holds."""
    for place, wanted in enumerate(waiting):
        if shortage(wanted, taken, closed):
            continue
        choice = Choice(place=place, devices=_devices_for(wanted, taken, closed))
        if place == 0 or _may_go_ahead(waiting[0], wanted, choice.devices, taken, closed=closed, now=now):
            return choice
    return None


def shortage(wanted: Wanted, taken: Sequence[Taken], closed: Collection[str]) -> frozenset[str]:
    """Return what a run waits for: GPU, CPU, GB. With all CPUs and memory to itself a run starts, however wide."""
    resources, terms, found = wanted.resources, wanted.terms, set()
    if wanted.gpus > len(_open(wanted, taken, closed)):
        found.add("GPU")
    if taken and resources.cpus_per_node + sum(t.wanted.resources.cpus_per_node for t in taken) > terms.cpus:
        found.add("CPU")
    if taken and _memory(wanted) and _memory(wanted) + sum(_memory(t.wanted) for t in taken) > (terms.mem_gb or 0):
        found.add("GB")
    return frozenset(found)


def describe_wait(wanted: Wanted, taken: Sequence[Taken], closed: Mapping[str, str]) -> str:
    """Return in words what a run waits for. `closed` says why a device cannot be had."""
    resources, terms, missing = wanted.resources, wanted.terms, shortage(wanted, taken, closed)
    found = []
    if "GPU" in missing:
        why = "".join(f"; GPU {d.id} is {closed[d.address]}" for d in terms.devices if d.address in closed)
        found.append(f"{_count(wanted.gpus, 'GPU')} ({len(_open(wanted, taken, closed))} free{why})")
    if "CPU" in missing:
        left = terms.cpus - sum(one.wanted.resources.cpus_per_node for one in taken)
        found.append(f"{_count(resources.cpus_per_node, 'CPU')} ({max(0, left)} free)")
    if "GB" in missing:
        left_gb = (terms.mem_gb or 0) - sum(_memory(one.wanted) for one in taken)
        found.append(f"{resources.mem_gb_per_node:g} GB ({max(0.0, left_gb):.0f} free)")
    return f"waits for {' and '.join(found)}" if found else "is about to start"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number > 1 else ''}"


def _devices_for(wanted: Wanted, taken: Sequence[Taken], closed: Collection[str]) -> tuple[Device, ...]:
    """Return devices that a run can have; those that are shared already come first."""
    load = _load(taken)
    return tuple(sorted(_open(wanted, taken, closed), key=lambda device: -load[device.address])[: wanted.gpus])


def _open(wanted: Wanted, taken: Sequence[Taken], closed: Collection[str]) -> list[Device]:
    load = _load(taken)
    return [d for d in wanted.terms.devices if d.address not in closed and load[d.address] + wanted.share <= 1]


def _load(taken: Sequence[Taken]) -> Mapping[str, Fraction]:
    load: dict[str, Fraction] = defaultdict(Fraction)
    for one in taken:
        for device in one.devices:
            load[device.address] += one.wanted.share
    return load


def _memory(wanted: Wanted) -> float:
    return wanted.resources.mem_gb_per_node or 0.0 if wanted.terms.mem_gb else 0.0


def _may_go_ahead(
    head: Wanted,
    wanted: Wanted,
    devices: tuple[Device, ...],
    taken: Sequence[Taken],
    *,
    closed: Collection[str],
    now: float,
) -> bool:
    missing = shortage(head, taken, closed)
    beside = [*taken, Taken(wanted=wanted, devices=devices)]
    if not missing & wanted.kinds and shortage(head, beside, closed) == missing:
        return True
    return now + wanted.seconds <= _surely(head, taken, closed)


def _surely(wanted: Wanted, taken: Sequence[Taken], closed: Collection[str]) -> float:
    """Return when a run is sure to find room, by the time limits of what runs; minus infinity if that is not known."""
    left = sorted(taken, key=lambda one: one.until)
    while left and math.isfinite(left[0].until):
        ended = left.pop(0)
        if not shortage(wanted, left, closed):
            return ended.until
    return -math.inf
