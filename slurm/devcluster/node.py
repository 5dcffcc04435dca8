"""The first process of a node: makes the node's own /tmp and name, starts slurmd, and reaps orphans.

It runs in its own mount, UTS and process namespaces (see `argv`), as a script: standard library only. Killing
it is a node crash, because the kernel then kills every process of the namespace.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

TMP = Path("/tmp")  # noqa: S108 - the folder itself, which each node gets its own of


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What a node's first process has to know. `shares` are folders below /tmp that stay visible."""

    name: str
    tmp: str
    tmp_mb: int | None
    hosts: str
    shares: tuple[str, ...]
    slurmd: tuple[str, ...]


def argv(node: Node) -> list[str]:
    """Return the command that runs a node; when the command's process is killed, all of the node is."""
    namespaces = ["unshare", "-m", "-u", "-p", "--fork", "--kill-child", "--mount-proc"]
    return [*namespaces, sys.executable, "-I", "-S", __file__, json.dumps(asdict(node))]


def mounts(node: Node) -> list[list[str]]:
    """Return the mount commands, in order: /tmp is covered last, while what is bound into it is still seen."""
    sized = [] if node.tmp_mb is None else [["mount", "-t", "tmpfs", "-o", f"size={node.tmp_mb}m", node.name, node.tmp]]
    return [
        *sized,
        *(["mount", "--bind", share, target(node, share)] for share in node.shares),
        ["mount", "--bind", node.hosts, "/etc/hosts"],
        ["mount", "--rbind", node.tmp, str(TMP)],
    ]


def target(node: Node, share: str) -> str:
    """Return where a shared folder is bound before the node's /tmp is put in its place."""
    return str(Path(node.tmp) / Path(share).relative_to(TMP))


def main(text: str) -> int:
    """Become the node. Returns slurmd's exit status."""
    value = json.loads(text)
    node = Node(**value | {"shares": tuple(value["shares"]), "slurmd": tuple(value["slurmd"])})
    for command in mounts(node):
        if command[:2] == ["mount", "--bind"] and command[3] != "/etc/hosts":
            Path(command[3]).mkdir(parents=True, exist_ok=True)
        subprocess.run(command, check=True)
    Path(node.tmp).chmod(0o1777)
    socket.sethostname(node.name)
    return _reap_until(os.posix_spawnp(node.slurmd[0], list(node.slurmd), os.environ))


def _reap_until(daemon: int) -> int:
    """Wait for every orphan that ends, as the first process must, until the daemon itself does."""

    def forward(number: int, _: FrameType | None) -> None:
        os.kill(daemon, number)

    signal.signal(signal.SIGTERM, forward)
    while True:
        pid, status = os.wait()
        if pid == daemon:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
