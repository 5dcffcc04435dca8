"""What runs asked for against what they took: memory, GPU memory and time. Pure.

Memory is what the worker measured on the node of rank 0 (see worker/monitor/usage.py), in GB of 2^30 bytes as
Slurm counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.records.record import Record
from orchestrator.spec import Resources

_GB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumption:
    """The most that an attempt of a run took; None where that was not measured, or nothing was asked."""

    memory_gb: float | None
    memory_gb_asked: float | None
    gpu_memory_gb: float | None
    hours: float | None
    hours_asked: float | None


def consumption(record: Record, now: float) -> Consumption:
    """Return what a run asked for and took. The time limit is that of an attempt, and so are all figures."""
    asked, seconds = record.planned.resources, max(record.spans(now), default=0.0)
    memory_bytes, gpu_bytes = _peak(record, "memory_bytes"), _peak(record, "gpu_bytes")
    return Consumption(
        memory_gb=memory_bytes / _GB if memory_bytes else None,
        memory_gb_asked=asked.mem_gb_per_node,
        gpu_memory_gb=gpu_bytes / _GB if gpu_bytes else None,
        hours=seconds / 3600 if seconds else None,
        hours_asked=asked.hours,
    )


def most(records: Iterable[Record], now: float) -> Consumption:
    """Return the figures, each of the ended run that came nearest to what it had asked for."""
    ended = [record for record in records if record.attempts and not record.state.active]
    largest = max(
        ended, key=lambda record: _share(_peak(record, "memory_bytes"), _asked(record).mem_gb_per_node), default=None
    )
    longest = max(
        ended, key=lambda record: _share(max(record.spans(now), default=0), _asked(record).hours), default=None
    )
    gpu_bytes = max((_peak(record, "gpu_bytes") for record in ended), default=0)
    memory = consumption(largest, now) if largest else _NOTHING
    time = consumption(longest, now) if longest else _NOTHING
    return Consumption(
        memory_gb=memory.memory_gb,
        memory_gb_asked=memory.memory_gb_asked if memory.memory_gb else None,
        gpu_memory_gb=gpu_bytes / _GB if gpu_bytes else None,
        hours=time.hours,
        hours_asked=time.hours_asked if time.hours else None,
    )


def _asked(record: Record) -> Resources:
    return record.planned.resources


def _peak(record: Record, what: str) -> int:
    return max([int(attempt.usage.get(what, 0)) for attempt in record.history], default=0)


def _share(taken: float, asked: float | None) -> tuple[bool, float]:
    """Return what to compare by: how much of a limit was taken; what has none counts less, and by itself."""
    return (bool(asked and taken), taken / asked if asked else taken)


_NOTHING = Consumption(memory_gb=None, memory_gb_asked=None, gpu_memory_gb=None, hours=None, hours_asked=None)
