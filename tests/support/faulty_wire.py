"""A connection to a real server that breaks, or falls silent, in the middle of an answer on request."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK = 2**14


class Wire:
    """Forwards data between a client, which connects to `endpoint`, and a server.

    The next `cuts` connections break once `bytes` of an answer have passed. While `silent`, nothing passes after that;
    `fell_silent` is then set.
    """

    def __init__(self, target: str) -> None:
        host, port = target.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self.bytes, self.cuts, self.connections = 2**16, 0, 0
        self.silent = False
        self.fell_silent, self._closing = threading.Event(), threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = [self._server]
        self.endpoint = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(self._target)
                self._open += [client, server]
                self.connections += 1
                threading.Thread(target=self._pass, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answer, args=(server, client), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(_CHUNK):
                target.sendall(chunk)
        self._end(source, target)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        """Forward the server's data. Connections are reused, so an answer is recognised by its first line."""
        passed = 0
        with suppress(OSError):
            while chunk := server.recv(_CHUNK):
                passed = len(chunk) if chunk.startswith(b"HTTP/1.1 ") else passed + len(chunk)
                if passed > self.bytes and self.cuts > 0:
                    self.cuts -= 1
                    break
                if passed > self.bytes and self.silent:
                    self.fell_silent.set()
                    self._closing.wait()
                client.sendall(chunk)
        self._end(server, client)

    @staticmethod
    def _end(*connections: socket.socket) -> None:
        for each in connections:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._closing.set()
        self._end(*self._open)
        for each in self._open:
            each.close()


@contextmanager
def wire_to(endpoint: str) -> Iterator[Wire]:
    wire = Wire(endpoint)
    try:
        yield wire
    finally:
        wire.close()
