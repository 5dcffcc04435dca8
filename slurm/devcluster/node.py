"""A wrapper that runs a daemon with a host name and files of its own, and for a node with its own /tmp.

It runs as a script in new namespaces (see `argv`), with the standard library only. A node also has its own process
namespace: then this is the first process, which reaps orphans. Killing it crashes the node, because the kernel then
kills every process of the namespace.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

TMP = Path("/tmp")  # noqa: S108 - the folder itself, which each node replaces


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A host name, its mounts, and the command that runs there.

    `files` are mounted over others: (what, where). `tmp` becomes /tmp, with `tmp_mb` megabytes if given; `shares` are
    the folders below /tmp that stay visible. Without `tmp` it is only the environment of a daemon, and not a node.
    """

    name: str
    files: tuple[tuple[str, str], ...]
    command: tuple[str, ...]
    tmp: str | None = None
    tmp_mb: int | None = None
    shares: tuple[str, ...] = ()


def from_json(text: str) -> Node:
    value = json.loads(text)
    files = tuple((what, where) for what, where in value["files"])
    return Node(**value | {"files": files, "command": tuple(value["command"]), "shares": tuple(value["shares"])})


def argv(node: Node) -> list[str]:
    """Return the command that runs a node; killing the command's process kills the whole node."""
    processes = ["-p", "--fork", "--kill-child", "--mount-proc"] if node.tmp else []
    return ["unshare", "-m", "-u", *processes, sys.executable, "-I", "-S", __file__, json.dumps(asdict(node))]


def mounts(node: Node) -> list[list[str]]:
    """Return the mount commands, in order: /tmp is covered last, because the shares are bound from it before."""
    files = [["mount", "--bind", what, where] for what, where in node.files]
    if node.tmp is None:
        return files
    size = [] if node.tmp_mb is None else [["mount", "-t", "tmpfs", "-o", f"size={node.tmp_mb}m", node.name, node.tmp]]
    shares = [["mount", "--rbind", share, place] for share, place in zip(node.shares, _places(node), strict=True)]
    return [*files, *size, *shares, ["mount", "--rbind", node.tmp, str(TMP)]]


def _places(node: Node) -> list[str]:
    """Return the mount points of the shared folders in the node's /tmp, before that is mounted itself."""
    return [str(Path(node.tmp or "/") / Path(share).relative_to(TMP)) for share in node.shares]


def main(text: str) -> int:
    """Become the node, and run its command. Return the command's exit status."""
    node = from_json(text)
    for command in mounts(node):
        if command[-1] in _places(node):
            Path(command[-1]).mkdir(parents=True, exist_ok=True)
        subprocess.run(command, check=True)
    socket.sethostname(node.name)
    if node.tmp is None:
        os.execvp(node.command[0], node.command)  # noqa: S606 - no shell is the point
    Path(node.tmp).chmod(0o1777)
    return _reap_until(os.posix_spawnp(node.command[0], node.command, os.environ))


def _reap_until(daemon: int) -> int:
    """Reap orphans, as the first process must, until the daemon itself ends; return its exit status."""
    while True:
        pid, status = os.wait()
        if pid == daemon:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
