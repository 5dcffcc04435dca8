"""What a cluster's configuration allows, read from what `scontrol show` prints. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Self

from orchestrator.spec import Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of the whole cluster: the largest index of an array, and how many jobs it holds at once."""

    max_array_size: int = 1001
    max_job_count: int = 10_000

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `scontrol show config`; what it does not say is Slurm's default."""
        found = dict(re.findall(r"^(MaxArraySize|MaxJobCount)\s*=\s*([0-9]+)", text, re.MULTILINE))
        names = {"MaxArraySize": "max_array_size", "MaxJobCount": "max_job_count"}
        return cls(**{names[key]: int(value) for key, value in found.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One partition: None where it sets no limit."""

    name: str
    default: bool
    max_minutes: int | None
    max_nodes: int | None

    def refuses(self, need: Resources) -> str:
        """Return why a run of this shape would wait here for ever, or nothing."""
        if self.max_minutes is not None and need.hours and need.hours * 60 > self.max_minutes:
            return f"partition {self.name} allows {self.max_minutes / 60:g} h"
        if self.max_nodes is not None and need.nodes > self.max_nodes:
            return f"partition {self.name} allows {self.max_nodes} nodes"
        return ""


def partitions(text: str) -> list[Partition]:
    """Read `scontrol --oneliner show partition`."""
    found = (dict(re.findall(r"(\w+)=(\S+)", line)) for line in text.splitlines())
    return [_partition(each) for each in found if "PartitionName" in each]


def _partition(told: Mapping[str, str]) -> Partition:
    return Partition(
        name=told["PartitionName"], default=told.get("Default") == "YES",
        max_minutes=minutes(told.get("MaxTime", "")), max_nodes=_number(told.get("MaxNodes", "")),
    )  # fmt: skip


def refusal(need: Resources, chosen: Collection[str], known: Mapping[str, Partition]) -> str:
    """Return why none of the chosen partitions (or the default one) would ever run it, or nothing."""
    asked = [known.get(name) for name in chosen if name] or [p for p in known.values() if p.default]
    refusals = [partition.refuses(need) if partition else "" for partition in asked]  # hidden ones are not shown
    return "; ".join(refusals) if refusals and all(refusals) else ""


def minutes(text: str) -> int | None:
    """Return a time limit as Slurm prints it (`1-02:00:00`, `01:00:00`) in minutes; None if there is none."""
    found = re.fullmatch(r"(?:([0-9]+)-)?([0-9]+):([0-9]+):([0-9]+)", text)
    if found is None:
        return None
    days, hours, mins, _ = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + mins


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None
