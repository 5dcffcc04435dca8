"""The cluster's daemons: how each is started, and starting, finding and stopping them. Knows no order of things.

A daemon runs in the foreground of its own session, its process recorded by number and start time, so that a
later process with the same number is never taken for it.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from orchestrator.errors import ClusterError
from orchestrator.process import ProcessId

from . import node
from .options import ClusterPaths, Options

POLL_SECONDS = 0.05
_SBIN = "/usr/sbin:/sbin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """One program to run. `output` is the file for what it prints."""

    name: str
    argv: tuple[str, ...]
    output: Path
    env: Mapping[str, str] = field(default_factory=dict)


def slurmctld(paths: ClusterPaths) -> Daemon:
    return Daemon(name="slurmctld", argv=("slurmctld", "-D"), output=paths.output("slurmctld"))


def slurmdbd(paths: ClusterPaths) -> Daemon:
    socket = {"MYSQL_UNIX_PORT": str(paths.database_socket)}  # slurmdbd.conf cannot name a socket
    return Daemon(name="slurmdbd", argv=("slurmdbd", "-D"), output=paths.output("slurmdbd"), env=socket)


def mariadbd(paths: ClusterPaths) -> Daemon:
    settings = (
        f"--datadir={paths.database}", f"--socket={paths.database_socket}", f"--pid-file={paths.root}/mariadbd.pid",
        "--user=root", "--skip-networking", "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=16M",
        "--innodb-flush-log-at-trx-commit=0", "--innodb-lock-wait-timeout=900",
        "--performance-schema=OFF", "--aria-pagecache-buffer-size=8M", "--key-buffer-size=8M",
    )  # fmt: skip
    return Daemon(name="mariadbd", argv=("mariadbd", "--no-defaults", *settings), output=paths.output("mariadbd"))


def slurmd(name: str, options: Options, paths: ClusterPaths, shares: tuple[str, ...]) -> Daemon:
    first = node.Node(
        name=name, tmp=str(paths.tmp(name)), tmp_mb=options.tmp_mb, hosts=str(paths.hosts), shares=shares,
        slurmd=("slurmd", "-D", "-N", name),
    )  # fmt: skip
    return Daemon(name=name, argv=tuple(node.argv(first)), output=paths.output(name))


def find_program(name: str) -> str | None:
    """Return a program's path; the daemons' folder is searched also where PATH leaves it out."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")


def clean_environment(paths: ClusterPaths) -> dict[str, str]:
    """Return what a daemon sees: nothing of the user's, and above all no SLURM_* of a job around it."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TZ") if name in os.environ}
    path = f"{os.environ.get('PATH', os.defpath)}:{_SBIN}"
    return {**kept, "PATH": path, "SLURM_CONF": str(paths.slurm_conf)}


def start(daemon: Daemon, paths: ClusterPaths) -> ProcessId:
    """Start a daemon detached, its output appended to a file."""
    daemon.output.parent.mkdir(parents=True, exist_ok=True)
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawnp(
        "env", ["env", "--chdir=/", *daemon.argv], {**clean_environment(paths), **daemon.env}, setsid=True,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(daemon.output), append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )  # fmt: skip
    return ProcessId.of(pid)


def stop(process: ProcessId, *, patience_seconds: float) -> None:
    """Ask a daemon to end, and kill it when it has not within the time given. Returns when it is gone."""
    if not process.alive():
        return
    found = psutil.Process(process.pid)
    try:
        found.send_signal(signal.SIGTERM)
        found.wait(patience_seconds)
    except psutil.TimeoutExpired:
        found.kill()
        found.wait()
    except psutil.NoSuchProcess:
        pass


def crash(process: ProcessId) -> None:
    """Kill a daemon and, of a node, every process. Returns when they are gone.

    What is recorded of a node is `unshare`; its one child is the first process of the node's namespace, and
    the kernel lets that end only after all others in the namespace have.
    """
    if not process.alive():
        return
    found = psutil.Process(process.pid)
    doomed = [*found.children(), found] if found.name() == "unshare" else [found]
    for each in doomed:
        try:
            each.kill()
            each.wait()
        except psutil.NoSuchProcess:
            continue


def listening(port: int) -> bool:
    """Return whether something listens on a TCP port; looking, not knocking, keeps the daemons' logs quiet."""
    found = psutil.net_connections(kind="tcp")
    return any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in found)


def wait_until(done: Callable[[], bool], *, seconds: float, daemon: Daemon, process: ProcessId, what: str) -> None:
    """Wait until `done`; a daemon that ends before, or a wait that is too long, is an error with what it printed last."""
    deadline = time.monotonic() + seconds
    while not done():
        if not process.alive():
            raise ClusterError(f"{daemon.name} ended before {what}", why=tail(daemon.output))
        if time.monotonic() > deadline:
            raise ClusterError(f"{daemon.name}: not {what} after {seconds:g} s", why=tail(daemon.output))
        time.sleep(POLL_SECONDS)


def tail(output: Path, lines: int = 12) -> str:
    """Return the end of what a daemon printed, or where that should have been."""
    try:
        text = output.read_text(errors="replace")
    except OSError:
        return f"there is no {output}"
    return f"the end of {output}:\n" + "\n".join(text.splitlines()[-lines:])
