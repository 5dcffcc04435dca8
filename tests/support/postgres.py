"""A real PostgreSQL on loopback, with a folder of its own. It refuses to run as root: then it runs as another user."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PROGRAMS = (Path("/usr/lib/postgresql"), Path("/usr/local"))
_USERS = ("postgres", "nobody")
_SETTINGS = {"fsync": "off", "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}


@contextmanager
def postgresql() -> Iterator[str]:
    """Run a new server, and yield the address of its database for SQLAlchemy."""
    user = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # not below pytest's own, which only this user may enter
    data, port = folder / "data", _free_port()
    try:
        data.mkdir(mode=0o700)
        if user:
            shutil.chown(folder, user)
            shutil.chown(data, user)
        made = [str(_program("initdb")), "-D", str(data), "-U", "mlflow", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run([*made, "--no-instructions"], check=True, capture_output=True, user=user, cwd=folder)
        settings = [word for key, value in {**_SETTINGS, "port": port}.items() for word in ("-c", f"{key}={value}")]
        argv = [str(_program("postgres")), "-D", str(data), *settings]
        env = {**os.environ, "XDG_STATE_HOME": str(folder)}  # it outlives the test in which it is started
        with (
            (folder / "log").open("wb") as log,
            subprocess.Popen(argv, stderr=log, user=user, cwd=folder, env=env) as server,
        ):
            try:
                _wait(port, server, folder / "log")
                yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/postgres"
            finally:
                server.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged() -> str | None:
    """Return the user to run as; None for the current one."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(user for user in _USERS if user in known)


def _program(name: str) -> Path:
    found = sorted(path for top in _PROGRAMS for path in top.glob(f"**/bin/{name}"))
    if not found:
        raise RuntimeError(f"there is no {name}: apt-get install postgresql")
    return found[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    ready = [str(_program("pg_isready")), "-q", "-h", "127.0.0.1", "-p", str(port)]
    while subprocess.run(ready, check=False).returncode != 0:
        if server.poll() is not None:
            raise RuntimeError(log.read_text())
