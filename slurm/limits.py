"""The limits of a cluster's configuration, parsed from the output of `scontrol show`. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from orchestrator.spec import Resources

_NOT_UP = frozenset({"DOWN", "DRAIN", "DRAINED", "DRAINING", "ERROR", "FAIL", "FAILING", "FUTURE", "UNKNOWN"})
_GRES_COUNT = re.compile(r"(?:^|,)gpu(?::[^:,()]+)?:([0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the whole cluster: of the indices of an array, and of the number of jobs that Slurm holds.

    `message_timeout`: the seconds after which Slurm's daemons stop waiting for each other. `tmp_folder`: the folder
    whose size is a node's TmpDisk.
    """

    max_array_size: int = 1001
    max_job_count: int = 10_000
    message_timeout: int = 10
    tmp_folder: str = "/tmp"  # noqa: S108 - Slurm's default; `orch` has no file there

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `scontrol show config`; missing values are Slurm's defaults."""
        found = dict(re.findall(r"^(MaxArraySize|MaxJobCount|MessageTimeout)\s*=\s*([0-9]+)", text, re.MULTILINE))
        names = {
            "MaxArraySize": "max_array_size",
            "MaxJobCount": "max_job_count",
            "MessageTimeout": "message_timeout",
        }
        folder = re.search(r"^TmpFS\s*=\s*(/\S*)", text, re.MULTILINE)
        told: dict[str, Any] = {names[key]: int(value) for key, value in found.items()}
        if folder:
            told["tmp_folder"] = folder[1]
        return cls(**told)


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One partition; a limit is None if it sets none. `default_minutes` is the time limit of a job that requests none.

    `accounts` may use it (None: all), except those `denied`.
    """

    name: str
    default: bool
    max_minutes: int | None
    max_nodes: int | None
    default_minutes: int | None = None
    total_nodes: int | None = None
    state: str = "UP"
    hidden: bool = False
    min_nodes: int = 0
    accounts: tuple[str, ...] | None = None
    denied: tuple[str, ...] = ()
    max_memory_mb: int | None = None

    def refuses(self, need: Resources) -> str:
        """Return why a run of this shape would wait here forever, or an empty text."""
        if self.max_minutes is not None and need.hours and need.hours * 60 > self.max_minutes:
            return f"partition {self.name} allows {self.max_minutes / 60:g} h"
        if self.max_nodes is not None and need.nodes > self.max_nodes:
            return f"partition {self.name} allows {_nodes(self.max_nodes)}"
        if need.nodes < self.min_nodes:
            return f"partition {self.name} is for runs of {_nodes(self.min_nodes)} or more (MinNodes)"
        if self.total_nodes is not None and need.nodes > self.total_nodes:
            return f"partition {self.name} has {_nodes(self.total_nodes)}"
        if self.state in {"DRAIN", "INACTIVE"}:
            return f"partition {self.name} takes no jobs now (its state is {self.state})"
        return ""

    def shuts_out(self, account: str) -> str:
        """Return why jobs of an account may not run here, or an empty text."""
        if self.accounts is not None:  # Slurm then ignores the list of denied accounts
            only = f"partition {self.name} is only for account {' or '.join(self.accounts)} (AllowAccounts)"
            return "" if account in self.accounts else only
        return f"partition {self.name} is not for account {account} (DenyAccounts)" if account in self.denied else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node: its configuration and its state. `tmp_mb`: 0 if it is not configured in Slurm."""

    name: str
    partitions: tuple[str, ...]
    cpus: int
    gpus: int
    memory_mb: int
    tmp_mb: int
    features: tuple[str, ...]
    state: str
    reason: str

    @property
    def up(self) -> bool:
        return not _NOT_UP & {re.sub(r"[^A-Z_]", "", word) for word in self.state.split("+")}

    def holds(self, need: Resources) -> bool:
        """Return whether one node's share of a run fits on this node when it is idle."""
        memory_mb = (need.mem_gb_per_node or 0) * 1024
        return cpus_asked(need) <= self.cpus and need.gpus_per_node <= self.gpus and memory_mb <= self.memory_mb


def partitions(text: str) -> list[Partition]:
    """Parse `scontrol --oneliner show partition`."""
    return [_partition(each) for each in _records(text) if "PartitionName" in each]


def nodes(text: str) -> list[Node]:
    """Parse `scontrol --oneliner show node`."""
    return [_node(each) for each in _records(text) if "NodeName" in each]


def _records(text: str) -> Iterator[dict[str, str]]:
    for line in text.splitlines():
        words, _, reason = line.partition(" Reason=")  # the last field, which may have spaces
        yield dict(re.findall(r"(\w+)=(\S+)", words)) | {"Reason": reason.partition(" [")[0].strip()}


def _partition(told: Mapping[str, str]) -> Partition:
    return Partition(
        name=told["PartitionName"],
        default=told.get("Default") == "YES",
        max_minutes=minutes(told.get("MaxTime", "")),
        max_nodes=_number(told.get("MaxNodes", "")),
        default_minutes=minutes(told.get("DefaultTime", "")),
        total_nodes=_number(told.get("TotalNodes", "")),
        state=told.get("State", "UP"),
        hidden=told.get("Hidden") == "YES",
        min_nodes=_number(told.get("MinNodes", "")) or 0,
        accounts=_some(told.get("AllowAccounts", "ALL")),
        denied=_some(told.get("DenyAccounts", "")) or (),
        max_memory_mb=_number(told.get("MaxMemPerNode", "")),
    )


def _some(text: str) -> tuple[str, ...] | None:
    """Return the names in a list; None if it stands for all, or is empty."""
    return tuple(text.split(",")) if text not in {"", "ALL", "(null)"} else None


def _node(told: Mapping[str, str]) -> Node:
    features = told.get("AvailableFeatures", "")
    return Node(
        name=told["NodeName"],
        partitions=tuple(told.get("Partitions", "").split(",")),
        cpus=_number(told.get("CPUEfctv", told.get("CPUTot", ""))) or 0,
        gpus=sum(map(int, _GRES_COUNT.findall(told.get("Gres", "")))),
        memory_mb=_number(told.get("RealMemory", "")) or 0,
        tmp_mb=_number(told.get("TmpDisk", "")) or 0,
        features=() if features in {"", "(null)"} else tuple(features.split(",")),
        state=told.get("State", "UNKNOWN"),
        reason=told.get("Reason", ""),
    )


def chosen_partitions(chosen: str | None, known: Mapping[str, Partition]) -> list[Partition]:
    """Return the partitions that jobs may run in: those chosen, or else the default."""
    names = [name for name in (chosen or "").split(",") if name]
    return [known[name] for name in names if name in known] if names else [p for p in known.values() if p.default]


def refusal(need: Resources, chosen: Collection[str], known: Mapping[str, Partition]) -> str:
    """Return why none of the chosen partitions (or the default one) would ever run it, or an empty text."""
    asked = [known.get(name) for name in chosen if name] or [p for p in known.values() if p.default]
    refusals = [partition.refuses(need) if partition else "" for partition in asked]  # Slurm reports unknown names
    return "; ".join(refusals) if refusals and all(refusals) else ""


def shortage(need: Resources, found: Sequence[Node]) -> str:
    """Return which resource too few of these nodes have, or an empty text. Busy and down nodes count as well."""
    memory_gb = need.mem_gb_per_node or 0
    for asked, most, unit in (
        (need.gpus_per_node, max(node.gpus for node in found), "GPUs"),
        (cpus_asked(need), max(node.cpus for node in found), "CPUs"),
        (memory_gb, max(node.memory_mb for node in found) / 1024, "GB of memory"),
    ):
        if asked > most:
            return f"no node has {asked:g} {unit}: the largest has {most:.4g}"
    fitting = sum(node.holds(need) for node in found)
    if not fitting:
        return "no node has all of it at once"
    return (
        f"{_nodes(fitting)} of {len(found)} can hold it, and {need.nodes} are asked for" if fitting < need.nodes else ""
    )


def nodes_away(need: Resources, found: Sequence[Node]) -> str:
    """Return why a run must wait for nodes to come back, or an empty text."""
    fitting = [node for node in found if node.holds(need)]
    away = [node for node in fitting if not node.up]
    if len(fitting) - len(away) >= need.nodes:
        return ""
    first = away[0]
    why = f", {first.reason}" if first.reason else ""
    told = f"{first.name}: {first.state}{why}"
    return f"{len(away)} of {len(fitting)} nodes that can hold a run are down or drained ({told})"


def cpus_asked(need: Resources) -> int:
    """Return the CPUs of one node's share of a run: an equal number for each process, at least one."""
    return need.processes_per_node * max(1, need.cpus_per_node // need.processes_per_node)


def default_hours(found: Sequence[Partition]) -> float | None:
    """Return the time limit, in hours, of a job that requests none; None if a partition sets none."""
    limits = [partition.default_minutes or partition.max_minutes for partition in found]
    known = [each for each in limits if each is not None]
    return max(known) / 60 if known and len(known) == len(limits) else None


def minutes(text: str) -> int | None:
    """Return a time limit as Slurm prints it (`1-02:00:00`, `01:00:00`) in minutes; None if there is none."""
    found = re.fullmatch(r"(?:([0-9]+)-)?([0-9]+):([0-9]+):([0-9]+)", text)
    if found is None:
        return None
    days, hours, mins, _ = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + mins


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and text.isascii() else None


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
