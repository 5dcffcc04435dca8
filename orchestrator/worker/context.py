"""The context of this process: its rank among the run's processes, and the scheduler's job that it belongs to."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from orchestrator.local.launcher import ATTEMPT
from orchestrator.slurm import commands
from orchestrator.system.processes import ProgramError

JOB, RESTART = "ORCH_JOB", "ORCH_RESTART"
"""Environment variables of a packed run, the only ones that describe the job that it shares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessContext:
    """One process of a run. `job` and `restart` are the scheduler's; without a scheduler they are empty and 0.

    `packed`: the job has several runs, and `orchestrator.worker.pack` deals with the scheduler for all of them. If a
    supervisor has started the ranks, `leader` is the process id of rank 0, `devices` the numbers of their GPUs, and
    `attempt` the one to begin; 0: the planned one.
    """

    rank: int = 0
    processes: int = 1
    nodes: int = 1
    job: str = ""
    restart: int = 0
    local_rank: int = 0
    packed: bool = False
    leader: int = 0
    attempt: int = 0
    devices: tuple[str, ...] = ()

    @property
    def first_on_node(self) -> bool:
        return self.local_rank == 0

    @classmethod
    def of(cls, environ: Mapping[str, str], *, slurm: bool) -> Self:
        """Read the context from Slurm's variables, or from those that a supervisor sets."""
        if not slurm:
            return cls._local(environ)
        if "SLURM_JOB_ID" not in environ and JOB in environ:
            attempt = int(environ.get(ATTEMPT, "0"))
            return cls(job=environ[JOB], restart=int(environ[RESTART]), packed=True, attempt=attempt)
        job, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
        return cls(
            rank=int(environ.get("SLURM_PROCID", "0")),
            processes=int(environ.get("SLURM_NTASKS", "1")),
            nodes=int(environ.get("SLURM_NNODES", "1")),
            restart=int(environ.get("SLURM_RESTART_COUNT", "0")),
            local_rank=int(environ.get("SLURM_LOCALID", "0")),
            job=f"{job}_{task}" if job else environ.get("SLURM_JOB_ID", ""),
        )

    @classmethod
    def _local(cls, environ: Mapping[str, str]) -> Self:
        rank = int(environ.get("RANK", "0"))
        return cls(
            rank=rank,
            local_rank=rank,
            processes=int(environ.get("WORLD_SIZE", "1")),
            leader=os.getpgrp(),
            attempt=int(environ.get(ATTEMPT, "0")),
            devices=tuple(filter(None, environ.get("ORCH_DEVICES", "").split(","))),
        )

    def listen_address(self) -> str:
        """Return a free `host:port` of rank 0 for the other ranks; an empty text if there are none."""
        if self.processes == 1:
            return ""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"{self._host()}:{probe.getsockname()[1]}"

    def _host(self) -> str:
        if self.nodes == 1:
            return "127.0.0.1"
        name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
        found = [_address(candidate) for candidate in (_slurm_address(name), name, socket.gethostname())]
        known = [address for address in found if address]
        # Debian maps a host's own name to 127.0.1.1 in /etc/hosts, where no other node can reach it.
        return next((address for address in known if not address.startswith("127.")), [*known, name][0])


def _address(name: str) -> str:
    try:
        return socket.gethostbyname(name) if name else ""
    except OSError:
        return ""


def _slurm_address(node: str) -> str:
    """Return the address that Slurm uses for a node: training hangs on a name that does not resolve (FACTS 18)."""
    try:
        text = commands.run(["scontrol", "--all", "--oneliner", "show", "node", node], timeout_s=30)
    except ProgramError:
        return ""
    found = re.search(r"NodeAddr=(\S+)", text)
    return found.group(1) if found else ""
