"""The command line of the development cluster; see `python -m orchestrator.slurm.devcluster --help`."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import fields, replace
from pathlib import Path

from orchestrator.errors import OrchError

from .cluster import DevCluster, default_state
from .options import Options

_UP_HELP = {
    "nodes": "number of nodes, n0, n1, ...",
    "cpus": "CPUs of a node; they need not exist",
    "gpus": "fake GPUs of a node",
    "memory_mb": "memory of a node; it need not exist",
    "tmp_mb": "size of each node's private /tmp; without it, that of the disk",
    "grace_seconds": "time from SIGTERM to SIGKILL when a job is preempted",
    "kill_wait_seconds": "the same for scancel and the time limit",
    "lost_after_seconds": "how long a node may be silent before it is DOWN",
    "max_array_size": "MaxArraySize",
    "max_job_count": "MaxJobCount",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command. Return the exit status: 1 for a cluster that failed, 2 for a wrong request."""
    arguments = _parser().parse_args(argv)
    try:
        return _act(DevCluster(arguments.state), arguments)
    except OrchError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.slurm.devcluster", description=__doc__)
    parser.add_argument("--state", type=Path, default=default_state(), help="state folder (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_up(commands.add_parser("up", help="start it, or its parts that do not run; options not given: as last time"))
    down = commands.add_parser("down", help="stop it; jobs and accounting are kept for the next up")
    down.add_argument("--purge", action="store_true", help="delete the state folder, too")
    commands.add_parser("status", help="show its daemons and nodes; exit status 1 if not all run")
    commands.add_parser("env", help="print the line that points a shell's Slurm commands at it")
    for name, text in (("crash", "kill a node (n0) or a daemon (slurmctld)"), ("restore", "bring it back")):
        commands.add_parser(name, help=text).add_argument("name", metavar="NODE")
    return parser


def _add_up(up: argparse.ArgumentParser) -> None:
    for name, text in _UP_HELP.items():
        default = next(each.default for each in fields(Options) if each.name == name)
        shown = text if default is None else f"{text} (default: {default})"
        option = f"--{name.replace('_', '-')}"
        up.add_argument(option, type=int, default=argparse.SUPPRESS, metavar="N", help=shown)
    up.add_argument(
        "--accounting",
        action=argparse.BooleanOptionalAction,
        default=argparse.SUPPRESS,
        help="run slurmdbd on a MariaDB of its own, so that sacct works",
    )
    up.add_argument(
        "--share",
        dest="shares",
        action="append",
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="a folder below /tmp that all nodes see; may be given again",
    )


def _act(cluster: DevCluster, arguments: argparse.Namespace) -> int:
    given = vars(arguments)
    match given.pop("command"):
        case "up":
            cluster.up(_options(cluster, given))
            _say_env(cluster)
        case "down":
            cluster.down(purge=arguments.purge)
        case "env":
            _say_env(cluster)
        case "status":
            return _say_status(cluster)
        case "crash":
            cluster.crash(arguments.name)
        case _:
            cluster.restore(arguments.name)
    return 0


def _options(cluster: DevCluster, given: dict[str, object]) -> Options:
    """Return the options given, the others as they were last time."""
    changes = {name: value for name, value in given.items() if name != "state"}
    if "shares" in changes:
        changes["shares"] = tuple(str(Path(share).absolute()) for share in changes["shares"])  # type: ignore[attr-defined]  # argparse's
    return replace(cluster.options() or Options(), **changes)  # type: ignore[arg-type]  # argparse's


def _say_env(cluster: DevCluster) -> None:
    for name, value in cluster.environ().items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")


def _say_status(cluster: DevCluster) -> int:
    states = cluster.status()
    sys.stdout.write("".join(f"{name:<10} {state}\n" for name, state in states.items()) or "not up\n")
    return 0 if states and "stopped" not in states.values() else 1


if __name__ == "__main__":
    sys.exit(main())
