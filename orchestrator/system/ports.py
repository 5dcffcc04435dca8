"""A port of ours on loopback: bound and listening before anybody is given its number."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import RequestError
from orchestrator.system.files import user_of

HOST = "127.0.0.1"
_FIRST, _USERS, _TRIES = 20000, 10000, 50
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_LISTENING = "0A"
_LAST = 65_535


def usual_port(uid: int) -> int:
    """Return the port that a user's UI has: the same every day, below those that the system gives out."""
    return _FIRST + uid % _USERS


def listen(port: int | None = None) -> socket.socket:
    """Return a socket that listens on loopback: on this port, or else on the user's usual one or the next free.

    It never shares its port (no SO_REUSEPORT), and it listens already: another user's process that has bound the port
    before us, or tries afterwards, gets an error or gives us one. Raises RequestError.
    """
    if port is not None:
        return _listen(port)
    first = usual_port(os.getuid())
    for candidate in range(first, first + _TRIES):
        with suppress(RequestError):
            return _listen(candidate)
    raise RequestError(
        f"the ports {first} to {first + _TRIES - 1} are all taken", why=taken(first), fix="choose one with --port"
    )


def _listen(port: int) -> socket.socket:
    if not 0 <= port <= _LAST:
        raise RequestError(f"port {port} cannot be used", why=f"ports end at {_LAST}", fix="choose one up to that")
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        why = taken(port) if error.errno == errno.EADDRINUSE else str(error)
        raise RequestError(
            f"port {port} cannot be used", why=why, fix="leave out --port: orch chooses a free one"
        ) from error


def taken(port: int) -> str:
    """Say whose process listens on a port, as far as the system shows it."""
    users = [user_of(uid) for uid in holders(port)]
    return f"a process of {' and '.join(users)} listens there" if users else "another process has it"


def holders(port: int) -> list[int]:
    """Return the users whose processes listen on a port of this machine, as far as the system shows them."""
    return sorted({uid for table in _TABLES for uid in _holders(table, port)})


def _holders(table: Path, port: int) -> Iterator[int]:
    with suppress(OSError):  # no such table, as on other systems
        for line in table.read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                yield int(fields[7])
