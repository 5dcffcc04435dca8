"""Who has bound an abstract Unix socket: the user, by the kernel's sock_diag(7), and the process where it may be seen.

Linux only. What cannot be found out is left out: it is for messages, and decides nothing.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.system.files import user_of

_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_REQUEST_DUMP = 0x301
_DONE = {2, 3}  # NLMSG_ERROR, NLMSG_DONE
_SHOW_NAME, _SHOW_UID = 0x1, 0x40
_NAME, _UID = 0, 7  # the attributes UNIX_DIAG_NAME and UNIX_DIAG_UID of linux/unix_diag.h
_HEADER, _MESSAGE = 16, 16
_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who has bound a name; what is not known is None."""

    uid: int | None
    process: int | None

    def __str__(self) -> str:
        known = [user_of(self.uid)] if self.uid is not None else []
        return ", ".join([*known, *([f"process {self.process}"] if self.process else [])]) or "somebody"


def owner(name: str) -> Owner | None:
    """Return who has bound an abstract name; None where nobody has, or the kernel does not say."""
    with suppress(OSError, struct.error, AttributeError):  # where the system has no netlink
        for inode, found, uid in _sockets():
            if found == b"\0" + name.encode():
                return Owner(uid=uid, process=_process(inode))
    return None


def _sockets() -> Iterator[tuple[int, bytes, int | None]]:
    """Yield the inode, the name and the owner of each Unix socket of this network namespace."""
    request = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, _SHOW_NAME | _SHOW_UID, 0, 0)
    header = struct.pack("=IHHII", _HEADER + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(_SECONDS)
        kernel.send(header + request)
        while True:
            for kind, body in _messages(kernel.recv(1 << 20)):
                if kind in _DONE:
                    return
                yield _parsed(body)


def _messages(answer: bytes) -> Iterator[tuple[int, bytes]]:
    while len(answer) >= _HEADER:
        length, kind = struct.unpack_from("=IH", answer)
        yield kind, answer[_HEADER:length]
        answer = answer[(length + 3) & ~3 :]


def _parsed(body: bytes) -> tuple[int, bytes, int | None]:
    (inode,) = struct.unpack_from("=I", body, 4)
    name, uid, rest = b"", None, body[_MESSAGE:]
    while len(rest) >= 4:
        length, kind = struct.unpack_from("=HH", rest)
        value = rest[4:length]
        if kind == _NAME:
            name = value
        elif kind == _UID:
            (uid,) = struct.unpack("=I", value)
        rest = rest[(length + 3) & ~3 :]
    return inode, name, uid


def _process(inode: int) -> int | None:
    """Return a process that has a socket open: of this user's, or of anybody's for root."""
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):
            if any(str(entry.readlink()) == f"socket:[{inode}]" for entry in folder.iterdir()):
                return int(folder.parent.name)
    return None
