"""The cluster's daemons: their commands, and how to start, find and stop them. Their order is decided elsewhere.

A daemon runs in the foreground of its own session. Its process is recorded by number and start time, so that a later
process with the same number is never mistaken for it.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from orchestrator.errors import ClusterError
from orchestrator.system.processes import ProcessId

from . import node
from .options import ClusterPaths, Options

POLL_SECONDS = 0.05
_SBIN = "/usr/sbin:/sbin"
MARIADB_IS_SMALL = (
    "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M", "--performance-schema=OFF",
    "--aria-pagecache-buffer-size=8M", "--key-buffer-size=8M",
    # These give up durability after a power failure; a first start takes half the time.
    "--innodb-flush-method=nosync", "--innodb-flush-log-at-trx-commit=0",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """One program to run. `output` is the file for its standard output and error."""

    name: str
    argv: tuple[str, ...]
    output: Path
    env: Mapping[str, str] = field(default_factory=dict)


def slurmctld(paths: ClusterPaths) -> Daemon:
    return Daemon(
        name="slurmctld",
        argv=_under_its_name("slurmctld", ("slurmctld", "-D"), paths),
        output=paths.output("slurmctld"),
    )


def slurmdbd(paths: ClusterPaths) -> Daemon:
    return Daemon(
        name="slurmdbd",
        argv=_under_its_name("slurmdbd", ("slurmdbd", "-D"), paths),
        output=paths.output("slurmdbd"),
        env={"MYSQL_UNIX_PORT": str(paths.database_socket)},  # slurmdbd.conf cannot name a socket
    )


def _under_its_name(name: str, command: tuple[str, ...], paths: ClusterPaths) -> tuple[str, ...]:
    """Return the command to run a daemon on a host of its own name, which resolves to the loopback address."""
    return tuple(node.argv(node.Node(name=name, files=_files(paths), command=command)))


def _files(paths: ClusterPaths) -> tuple[tuple[str, str], ...]:
    return (str(paths.hosts), "/etc/hosts"), (str(paths.node_conf), str(paths.slurm_conf))


def mariadbd(paths: ClusterPaths) -> Daemon:
    settings = (
        f"--datadir={paths.database}",
        f"--tmpdir={paths.database_tmp}",
        f"--socket={paths.database_socket}",
        f"--pid-file={paths.root}/mariadbd.pid",
        "--user=root",
        "--skip-networking",
        "--innodb-lock-wait-timeout=900",
        *MARIADB_IS_SMALL,
    )
    return Daemon(name="mariadbd", argv=("mariadbd", "--no-defaults", *settings), output=paths.output("mariadbd"))


def slurmd(name: str, options: Options, paths: ClusterPaths, shares: tuple[str, ...]) -> Daemon:
    first = node.Node(
        name=name,
        files=_files(paths),
        command=("slurmd", "-D", "-b", "-N", name),
        tmp=str(paths.tmp(name)),
        tmp_mb=options.tmp_mb,
        shares=shares,
    )
    return Daemon(name=name, argv=tuple(node.argv(first)), output=paths.output(name))


def find_program(name: str) -> str | None:
    """Return a program's path, or None; folders of daemons are searched even if they are not in PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")


def clean_environment(paths: ClusterPaths) -> dict[str, str]:
    """Return a daemon's environment, without the user's variables, above all SLURM_* of a surrounding job."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TZ") if name in os.environ}
    path = f"{os.environ.get('PATH', os.defpath)}:{_SBIN}"
    return {**kept, "PATH": path, "SLURM_CONF": str(paths.slurm_conf)}


def start(daemon: Daemon, paths: ClusterPaths) -> ProcessId:
    """Start a daemon in a session of its own, with its output appended to a file."""
    daemon.output.parent.mkdir(parents=True, exist_ok=True)
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawnp(
        "env",
        ["env", "--chdir=/", *daemon.argv],
        {**clean_environment(paths), **daemon.env},
        setsid=True,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(daemon.output), append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    return ProcessId.of(pid)


def stop(process: ProcessId, *, patience_seconds: float) -> None:
    """Ask a daemon to end, and kill it if it does not end in time. Return when it has ended."""
    if process.alive():
        _signal(process, signal.SIGTERM)
    if not _gone(process, seconds=patience_seconds):
        crash(process)


def crash(process: ProcessId) -> None:
    """Kill a daemon or, for a node, all of its processes. Return when they have ended.

    The recorded process of a node is `unshare`. Its only child is the first process of the node's namespace, which the
    kernel lets end only after all others in the namespace.
    """
    for each in (*_namespace(process), process):
        if each.alive():
            _signal(each, signal.SIGKILL)
        _gone(each, seconds=math.inf)


def _namespace(process: ProcessId) -> list[ProcessId]:
    try:
        found = psutil.Process(process.pid)
        if process.alive() and found.name() == "unshare":
            return [ProcessId.of(child.pid) for child in found.children()]
    except psutil.NoSuchProcess:
        pass
    return []


def _signal(process: ProcessId, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)


def _gone(process: ProcessId, *, seconds: float) -> bool:
    """Return whether a process ends within a time. It need not have been reaped, which can take seconds."""
    deadline = time.monotonic() + seconds
    while process.alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS / 5)
    with suppress(ChildProcessError):  # a child of this process if it called `up`
        os.waitpid(process.pid, os.WNOHANG)
    return True


def listening(port: int) -> bool:
    """Return whether a process listens on a TCP port. It does not connect, which daemons would log as an error."""
    found = psutil.net_connections(kind="tcp")
    return any(each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port for each in found)


def wait_until(done: Callable[[], bool], *, seconds: float, daemon: Daemon, process: ProcessId, what: str) -> None:
    """Wait until `done`. Raises ClusterError with the daemon's output if the daemon ends first or takes too long."""
    deadline = time.monotonic() + seconds
    while not done():
        if not process.alive():
            raise ClusterError(f"{daemon.name} ended before {what}", why=tail(daemon.output))
        if time.monotonic() > deadline:
            raise ClusterError(f"{daemon.name}: not {what} after {seconds:g} s", why=tail(daemon.output))
        time.sleep(POLL_SECONDS)


def tail(output: Path, lines: int = 12) -> str:
    """Return the end of a daemon's output, or a text that the file does not exist."""
    try:
        text = output.read_text(errors="replace")
    except OSError:
        return f"there is no {output}"
    return f"the end of {output}:\n" + "\n".join(text.splitlines()[-lines:])
