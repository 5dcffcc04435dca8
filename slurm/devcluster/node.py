"""What runs before a daemon: gives it a machine's name and files of its own, and a node also its own /tmp.

It runs in new namespaces (see `argv`), as a script: standard library only. A node has its own processes, too,
and then this is the first of them, which reaps orphans; killing it is a node crash, because the kernel then
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

TMP = Path("/tmp")  # noqa: S108 - the folder itself, which each node gets its own of


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A host name, what lies where in its view of the files, and the command that runs there.

    `files` lie over others: (what, where). `tmp` becomes /tmp, of `tmp_mb` megabytes if that is given; `shares`
    are the folders below /tmp that stay visible. Without `tmp` it is a daemon's environment only.
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
    """Return the command that runs a node; when the command's process is killed, all of the node is."""
    processes = ["-p", "--fork", "--kill-child", "--mount-proc"] if node.tmp else []
    return ["unshare", "-m", "-u", *processes, sys.executable, "-I", "-S", __file__, json.dumps(asdict(node))]


def mounts(node: Node) -> list[list[str]]:
    """Return the mount commands, in order: /tmp is covered last, while what is bound into it is still seen."""
    files = [["mount", "--bind", what, where] for what, where in node.files]
    if node.tmp is None:
        return files
    size = [] if node.tmp_mb is None else [["mount", "-t", "tmpfs", "-o", f"size={node.tmp_mb}m", node.name, node.tmp]]
    shares = [["mount", "--rbind", share, place] for share, place in zip(node.shares, _places(node), strict=True)]
    return [*files, *size, *shares, ["mount", "--rbind", node.tmp, str(TMP)]]


def _places(node: Node) -> list[str]:
    """Return where the shared folders are bound before the node's /tmp is put in its place."""
    return [str(Path(node.tmp or "/") / Path(share).relative_to(TMP)) for share in node.shares]


def main(text: str) -> int:
    """Become the node. Returns the command's exit status."""
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
    """Wait for every orphan that ends, as the first process must, until the daemon itself does."""
    while True:
        pid, status = os.wait()
        if pid == daemon:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
