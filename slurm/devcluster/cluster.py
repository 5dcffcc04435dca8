"""A development cluster: bring it up, take it down, crash and restore its parts. Its state is one folder.

Not for machines shared with people you do not trust: with `auth/none`, every local user who finds the ports can run
jobs as root. Daemons listen only on the loopback address.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from orchestrator.errors import ClusterError, RequestError, StateError, nearest
from orchestrator.layout import state_dir
from orchestrator.system.processes import ProcessId, ProgramError, run

from . import daemons, render
from .daemons import Daemon
from .node import TMP
from .options import ClusterPaths, Options, Ports

_PACKAGES = {"slurm-wlm": ("slurmctld", "slurmd", "srun", "sinfo", "scontrol"), "util-linux": ("unshare", "mount")}
_ACCOUNTING_PACKAGES = {"slurmdbd": ("slurmdbd", "sacctmgr"), "mariadb-server": ("mariadbd", "mariadb-install-db")}
_PORTS = range(20_000, 32_000)  # below the ports that Linux uses for outgoing connections
_READY = re.compile(r"(IDLE|MIXED|ALLOCATED)(\+(COMPLETING|PLANNED|RESERVED))*")
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0


def available(*, accounting: bool = False) -> str | None:
    """Return why no cluster can run on this machine, as one line; None if one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a development cluster needs root on Linux: it makes namespaces and mounts"
    wanted = _PACKAGES | (_ACCOUNTING_PACKAGES if accounting else {})
    missing = [name for name, programs in wanted.items() if not all(map(daemons.find_program, programs))]
    if missing:
        names = " ".join(missing)
        return f"missing: {names} (Debian, Ubuntu: apt-get install -y --no-install-recommends {names})"
    try:
        run(["unshare", "-m", "-u", "-p", "--fork", "--mount-proc", "true"])
    except ProgramError as error:
        return f"this machine allows no namespaces: {' '.join(str(error).split())}"
    return None


def default_state() -> Path:
    """Return the default state folder of a cluster."""
    return state_dir() / "devcluster"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """A node as slurmctld sees it. `started`: when its slurmd started, in seconds since the epoch."""

    name: str
    state: str
    started: float | None

    @property
    def ready(self) -> bool:
        """Whether the node answers and accepts jobs, or would if it were idle."""
        return _READY.fullmatch(self.state) is not None

    @property
    def has_jobs(self) -> bool:
        """Whether Slurm believes that jobs are running or completing on the node."""
        return re.search(r"MIXED|ALLOCATED|COMPLETING", self.state) is not None

    @classmethod
    def parse(cls, line: str) -> Self:
        """Parse one line of `scontrol --oneliner show nodes`, with times in seconds (SLURM_TIME_FORMAT=%s)."""
        found = dict(re.findall(r"\b(NodeName|State|SlurmdStartTime)=(\S+)", line))
        started = found.get("SlurmdStartTime", "")
        return cls(
            name=found.get("NodeName", ""),
            state=found.get("State", "UNKNOWN"),
            started=float(started) if started.isdigit() else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """The started cluster, as recorded in the state folder. `shares` are all folders that nodes bind."""

    options: Options
    ports: Ports
    shares: tuple[str, ...]
    processes: Mapping[str, ProcessId] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        return any(process.alive() for process in self.processes.values())

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        processes = {name: ProcessId.from_json(each) for name, each in value["processes"].items()}
        return cls(
            options=Options.from_json(value["options"]),
            ports=Ports.from_list(value["ports"]),
            shares=tuple(value["shares"]),
            processes=processes,
        )

    def to_json(self) -> dict[str, object]:
        processes = {name: process.to_json() for name, process in self.processes.items()}
        return {
            "v": 1,
            "options": self.options.to_json(),
            "ports": self.ports.to_list(),
            "shares": self.shares,
            "processes": processes,
        }


class DevCluster:
    """One development cluster, identified by its state folder. Its methods may be called from any process."""

    def __init__(self, state: Path | None = None) -> None:
        self._paths = ClusterPaths((state or default_state()).absolute())

    @property
    def slurm_conf(self) -> Path:
        return self._paths.slurm_conf

    def environ(self) -> dict[str, str]:
        """Return the environment variables with which Slurm's commands talk to this cluster."""
        return {"SLURM_CONF": str(self._paths.slurm_conf)}

    def options(self) -> Options | None:
        """Return the options of the last `up`, or None if there was none."""
        record = self._read()
        return record.options if record else None

    def up(self, options: Options | None = None) -> None:
        """Start all parts that do not run, and return when every node accepts jobs. None: the options of last time.

        Raises RequestError if no cluster can run here, or it runs with other options; ClusterError with the end of the
        daemon's log if it does not come up: then everything is stopped again.
        """
        wanted = options or self.options() or Options()
        if (reason := available(accounting=wanted.accounting)) is not None:
            raise RequestError("the development cluster cannot run here", why=reason)
        with self._locked():
            record = self._prepare(wanted)
            try:
                self._start(record)
            except ClusterError:
                self._stop()
                raise

    def down(self, *, purge: bool = False) -> None:
        """Stop the processes that `up` started. `purge`: also delete the state folder, with jobs and accounting.

        Without `purge`, queued jobs continue after the next `up`, as after the maintenance of a real cluster.
        """
        if not self._paths.root.exists():
            return
        with self._locked():
            if purge and not self._paths.record.exists() and set(os.listdir(self._paths.root)) - {"lock"}:
                raise StateError(f"{self._paths.root} is not deleted", why="no development cluster was ever in it")
            self._stop()
            if purge:
                shutil.rmtree(self._paths.root)

    def crash(self, name: str) -> None:
        """Kill a node with everything that runs on it, or a daemon, without notifying Slurm."""
        with self._locked():
            daemons.crash(self._process(name))

    def restore(self, name: str) -> None:
        """Bring a crashed node or daemon back, and return when it accepts jobs. A drained node is resumed."""
        with self._locked():
            self._process(name)
            if name in self._existing().options.node_names:
                self._launch_node(name)
            else:
                self._launch(name)
            self._await(name)

    def status(self) -> dict[str, str]:
        """Return every daemon's state: `running` or `stopped`, or for a running node its state in Slurm."""
        record = self._read()
        if record is None:
            return {}
        states = {name: "running" if _alive(record, name) else "stopped" for name in _names(record.options)}
        if states["slurmctld"] == "running":
            with suppress(ClusterError):
                nodes = {each.name: each.state for each in self.nodes()}
                states |= {name: nodes[name] for name, state in states.items() if name in nodes and state == "running"}
        return states

    def nodes(self) -> list[NodeState]:
        """Ask slurmctld for its nodes. Raises ClusterError if it does not answer."""
        lines = self._ask("scontrol", "--oneliner", "show", "nodes", env={"SLURM_TIME_FORMAT": "%s"}).splitlines()
        return [NodeState.parse(line) for line in lines if line.startswith("NodeName=")]

    # --- the state folder -------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process at a time change the cluster."""
        while True:
            self._paths.root.mkdir(parents=True, exist_ok=True, mode=0o755)
            with self._paths.lock.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                with suppress(FileNotFoundError):  # deleted by a purge meanwhile: lock the new one
                    if _same(self._paths.lock, lock.fileno()):
                        yield
                        return

    def _read(self) -> _Record | None:
        try:
            return _Record.from_json(json.loads(self._paths.record.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise StateError(f"{self._paths.record} cannot be read", why=str(error)) from error

    def _existing(self) -> _Record:
        record = self._read()
        if record is None:
            raise RequestError(f"there is no development cluster in {self._paths.root}", fix="run `up` first")
        return record

    def _write(self, record: _Record) -> None:
        draft = self._paths.record.with_suffix(".new")
        draft.write_text(json.dumps(record.to_json(), indent=1))
        draft.replace(self._paths.record)

    def _prepare(self, options: Options) -> _Record:
        """Choose ports and shares, and write all configuration files, unless the cluster already runs."""
        record = self._read()
        if record is not None and record.running:
            if record.options != options:
                raise RequestError(
                    f"the development cluster in {self._paths.root} is already up with other options",
                    why=_differences(record.options, options),
                    fix="run `down` first",
                )
            return record
        ports = _ports(options.nodes + 2, record.ports.to_list() if record else [])
        record = _Record(options=options, ports=Ports.from_list(ports), shares=shares(options.shares, self._paths.root))
        self._configure(record)
        self._write(record)
        return record

    def _configure(self, record: _Record) -> None:
        options, ports, paths = record.options, record.ports, self._paths
        folders = [paths.slurm_conf.parent, paths.controller_state, paths.log("").parent]
        folders += [each for node in options.node_names for each in (paths.spool(node), paths.tmp(node))]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for file, inner in ((paths.slurm_conf, _host_is_loopback()), (paths.node_conf, True)):
            file.write_text(render.slurm_conf(options, ports, paths, loopback_only=inner))
        paths.gres_conf.write_text(render.gres_conf(options, paths))
        paths.hosts.write_text(render.hosts(options, Path("/etc/hosts").read_text()))
        paths.slurmdbd_conf.touch(mode=0o600)
        paths.slurmdbd_conf.write_text(render.slurmdbd_conf(ports, paths))
        for node in options.node_names:
            _make_gpus([paths.gpu(node, number) for number in range(options.gpus)])

    # --- starting and stopping --------------------------------------------------------------------------------

    def _start(self, record: _Record) -> None:
        if record.options.accounting:
            self._start_accounting()
        self._launch("slurmctld")
        self._await("slurmctld")
        for name in record.options.node_names:
            self._launch_node(name)
        for name in record.options.node_names:
            self._await(name)

    def _start_accounting(self) -> None:
        self._paths.database_tmp.mkdir(exist_ok=True)
        _install_database(self._paths.database, self._paths.database_tmp)
        for name in ("mariadbd", "slurmdbd"):
            self._launch(name)
            self._await(name)
        deadline = time.monotonic() + _START_SECONDS
        while not self._ask("sacctmgr", "-nP", "show", "cluster", render.CLUSTER_NAME).strip():
            try:
                self._ask("sacctmgr", "-i", "add", "cluster", render.CLUSTER_NAME)
            except ClusterError:  # a slurmdbd that has just started to listen may refuse for a moment
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def _daemon(self, record: _Record, name: str) -> Daemon:
        makers = {each.__name__: each for each in (daemons.slurmctld, daemons.slurmdbd, daemons.mariadbd)}
        if name in makers:
            return makers[name](self._paths)
        return daemons.slurmd(name, record.options, self._paths, record.shares)

    def _launch(self, name: str) -> None:
        """Start a daemon that does not run, and record its process before doing anything else."""
        record = self._existing()
        if not _alive(record, name):
            process = daemons.start(self._daemon(record, name), self._paths)
            self._write(replace(record, processes={**record.processes, name: process}))

    def _launch_node(self, name: str) -> None:
        """Start a node, after telling Slurm that the jobs on it are lost.

        Jobs on a node that is back before Slurm has missed it would stay RUNNING: Slurm compares jobs with the node's
        boot time only if they are older than BatchStartTimeout + MessageTimeout.
        """
        if not _alive(self._existing(), name):
            held = [each for each in self.nodes() if each.name == name and each.has_jobs]
            if held:
                self._ask("scontrol", "update", f"NodeName={name}", "State=DOWN", "Reason=crashed")
            self._launch(name)

    def _await(self, name: str) -> None:
        """Wait until a daemon is ready. Raises ClusterError if it ends or takes too long."""
        record = self._existing()
        process = record.processes[name]
        checks = {
            "mariadbd": self._paths.database_socket.exists,
            "slurmdbd": lambda: daemons.listening(record.ports.slurmdbd),
            "slurmctld": lambda: daemons.listening(record.ports.slurmctld),
        }
        daemons.wait_until(
            checks.get(name, lambda: self._node_ready(name, process)),
            seconds=_START_SECONDS,
            daemon=self._daemon(record, name),
            process=process,
            what="ready",
        )

    def _node_ready(self, name: str, process: ProcessId) -> bool:
        """Return whether slurmctld knows the node's current slurmd and gives it jobs; resume the node if needed."""
        try:
            node = next(each for each in self.nodes() if each.name == name)
        except (ClusterError, StopIteration):
            return False
        if node.started is None or node.started < int(process.started) - 1:
            return False
        if not node.ready:
            with suppress(ClusterError):
                self._ask("scontrol", "update", f"NodeName={name}", "State=RESUME")
        return node.ready

    def _stop(self) -> None:
        record = self._read()
        if record is None:
            return
        nodes = record.options.node_names
        # slurmctld first: it would wait for nodes that ended before it. Each of the rest needs the next to end cleanly.
        for name in ("slurmctld", *nodes, "slurmdbd", "mariadbd"):
            if name in record.processes and name in nodes:
                daemons.crash(record.processes[name])
            elif name in record.processes:
                daemons.stop(record.processes[name], patience_seconds=_STOP_SECONDS)
        self._write(replace(record, processes={}))

    def _process(self, name: str) -> ProcessId:
        processes = self._existing().processes
        if name not in processes:
            known = ", ".join(processes) or "nothing"
            raise RequestError(f"no {name!r} was started{nearest(name, processes)}", why=f"running: {known}")
        return processes[name]

    def _ask(self, *argv: str, env: Mapping[str, str] | None = None) -> str:
        try:
            return run(argv, env={**self.environ(), **(env or {})}, timeout_s=_STOP_SECONDS).decode()
        except ProgramError as error:
            raise ClusterError(f"{argv[0]} failed", why=str(error)) from error


def shares(given: tuple[str, ...], state: Path) -> tuple[str, ...]:
    """Return the folders below /tmp that nodes must see: those given, and those that the cluster needs.

    It needs the state folder, the working directory, and the folders of the interpreter and of this package. Folders
    inside another of them are left out.
    """
    needed = [state, Path.cwd(), Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[2]]
    tmp = TMP.resolve()
    for path in map(Path, given):
        if not path.is_dir() or path.resolve() == tmp:
            raise RequestError(f"{str(path)!r} cannot be shared", why=f"it must be a folder below {tmp}, not all of it")
    found = {path.resolve() for path in [*map(Path, given), *needed]}
    below = sorted(path for path in found if tmp in path.parents)
    return tuple(str(path) for path in below if not set(path.parents) & set(below))


def _alive(record: _Record, name: str) -> bool:
    return name in record.processes and record.processes[name].alive() is True


def _names(options: Options) -> list[str]:
    accounting = ["mariadbd", "slurmdbd"] if options.accounting else []
    return [*accounting, "slurmctld", *options.node_names]


def _same(path: Path, descriptor: int) -> bool:
    return os.path.samestat(path.stat(), os.fstat(descriptor))


def _differences(have: Options, want: Options) -> str:
    old, new = have.to_json(), want.to_json()
    return ", ".join(f"{key} is {old[key]}, not {new[key]}" for key in old if old[key] != new[key])


def _make_gpus(devices: list[Path]) -> None:
    for device in devices:
        device.parent.mkdir(parents=True, exist_ok=True)
        if not device.exists():
            os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))  # another /dev/null


def _install_database(folder: Path, tmp: Path) -> None:
    """Create an empty database, atomically; `tmp` is for its temporary tables."""
    if folder.exists():
        return
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        made = Path(draft) / "data"
        settings = ["--user=root", f"--datadir={made}", f"--tmpdir={tmp}", "--skip-test-db", "--skip-name-resolve"]
        try:
            run(["mariadb-install-db", "--no-defaults", *settings, *daemons.MARIADB_IS_SMALL], timeout_s=_START_SECONDS)
        except ProgramError as error:
            raise ClusterError("the accounting database could not be made", why=str(error)) from error
        made.rename(folder)


def _ports(count: int, remembered: list[int]) -> list[int]:
    """Return free loopback ports: those of last time if all are free, otherwise others."""
    if len(remembered) == count and all(map(_free, remembered)):
        return remembered
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if _free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise ClusterError(f"no {count} free ports", why=f"looked at {_PORTS.start} to {_PORTS.stop}")


def _host_is_loopback() -> bool:
    try:
        return socket.gethostbyname(socket.gethostname()).startswith("127.")
    except OSError:
        return False


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((render.LOOPBACK, port))
        except OSError:
            return False
    return True
