"""The options of a development cluster: its size, its folders, its ports. Plain data; no effects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from orchestrator.errors import RequestError

_SAFE_PATH = re.compile(r"/[A-Za-z0-9._/+@=-]+")
_SOCKET_PATH_BYTES = 107  # the kernel's limit for the path of a Unix socket, without the final zero byte
_LONGEST_SOCKET = "/nodes/n99/spool/n99_4294967295.4294967295"  # slurmstepd creates one for every step


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The size and the behaviour of a cluster.

    `tmp_mb`: the size of each node's private /tmp; None: a folder, limited only by its disk.
    `memory_mb`: the memory that a node claims to have; it need not exist.
    `grace_seconds`: from a preemption's SIGTERM to its SIGKILL. `kill_wait_seconds`: the same for `scancel` and the
    time limit. `lost_after_seconds`: how long a node may be silent before it is DOWN.
    `shares`: folders below /tmp that all nodes see despite their private /tmp.
    """

    nodes: int = 4
    cpus: int = 4
    gpus: int = 2
    memory_mb: int = 16000
    tmp_mb: int | None = None
    accounting: bool = False
    grace_seconds: int = 12
    kill_wait_seconds: int = 5
    lost_after_seconds: int = 10
    max_array_size: int = 10_001
    max_job_count: int = 50_000
    shares: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        least = {
            "nodes": 1,
            "cpus": 1,
            "gpus": 0,
            "memory_mb": 1,
            "grace_seconds": 0,
            "kill_wait_seconds": 1,
            "lost_after_seconds": 3,
            "max_array_size": 2,
            "max_job_count": 2,
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise RequestError(f"{name} is {getattr(self, name)}", why=f"it must be at least {low}")
        if self.tmp_mb is not None and self.tmp_mb < 1:
            raise RequestError(f"tmp_mb is {self.tmp_mb}", why="a node's /tmp needs at least 1 MB")
        if self.nodes > 99:
            raise RequestError(f"nodes is {self.nodes}", why="one machine takes at most 99")

    @property
    def node_names(self) -> tuple[str, ...]:
        return tuple(f"n{number}" for number in range(self.nodes))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(**{**value, "shares": tuple(value["shares"])})

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The loopback ports of the daemons; `nodes` are in the order of the nodes' names."""

    slurmctld: int
    slurmdbd: int
    nodes: tuple[int, ...]

    @classmethod
    def from_list(cls, ports: list[int]) -> Self:
        return cls(slurmctld=ports[0], slurmdbd=ports[1], nodes=tuple(ports[2:]))

    def to_list(self) -> list[int]:
        return [self.slurmctld, self.slurmdbd, *self.nodes]


@dataclass(frozen=True, slots=True)
class ClusterPaths:
    """The state folder of a cluster, and the paths of all files in it."""

    root: Path

    def __post_init__(self) -> None:
        """Refuse paths that slurm.conf cannot express, and those too long for Slurm's sockets, which fail silently."""
        text = str(self.root)
        if not _SAFE_PATH.fullmatch(text):
            raise RequestError(
                f"the state folder {text!r} cannot be used",
                why="slurm.conf has no quotes: an absolute path of letters, digits and ._/+@=- is needed",
                fix="give another with --state",
            )
        if len(text + _LONGEST_SOCKET) > _SOCKET_PATH_BYTES:
            raise RequestError(
                f"the state folder {text!r} has a name of {len(text)} characters",
                why=f"Slurm's sockets in it allow at most {_SOCKET_PATH_BYTES - len(_LONGEST_SOCKET)}",
                fix="give a shorter one with --state",
            )

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def record(self) -> Path:
        """The record of the running cluster: options, ports and processes."""
        return self.root / "cluster.json"

    @property
    def slurm_conf(self) -> Path:
        return self.root / "etc" / "slurm.conf"

    @property
    def node_conf(self) -> Path:
        """The slurm.conf that nodes see."""
        return self.root / "etc" / "node.conf"

    @property
    def gres_conf(self) -> Path:
        return self.root / "etc" / "gres.conf"

    @property
    def slurmdbd_conf(self) -> Path:
        return self.root / "etc" / "slurmdbd.conf"

    @property
    def hosts(self) -> Path:
        """The nodes' /etc/hosts: a rank that cannot resolve the name of rank 0's node waits for half an hour."""
        return self.root / "etc" / "hosts"

    @property
    def controller_state(self) -> Path:
        return self.root / "slurmctld"

    @property
    def database(self) -> Path:
        return self.root / "mariadb"

    @property
    def database_tmp(self) -> Path:
        """The database's private temporary folder: a server that starts empties it, with any other server's tables."""
        return self.root / "mariadb-tmp"

    @property
    def database_socket(self) -> Path:
        return self.root / "mariadb.sock"

    def log(self, daemon: str) -> Path:
        """The log of a daemon, and on a node also of its steps, once it has read its configuration."""
        return self.root / "log" / f"{daemon}.log"

    def output(self, daemon: str) -> Path:
        """The output of a daemon, including errors in its configuration."""
        return self.root / "log" / f"{daemon}.out"

    def spool(self, node: str) -> Path:
        return self.root / "nodes" / node / "spool"

    def tmp(self, node: str) -> Path:
        return self.root / "nodes" / node / "tmp"

    def gpu(self, node: str, number: int) -> Path:
        return self.root / "nodes" / node / "gpu" / f"gpu{number}"
