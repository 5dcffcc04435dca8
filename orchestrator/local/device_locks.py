"""Which GPUs of this machine are taken, for all its users: a device is held by the process that has bound its name.

The name is an abstract Unix socket (unix(7)): no file that another user may own, link or clean up, no permission to
give, and the kernel lets go of it when the last process that has the descriptor open ends, however it ends. A run's
processes have it open, too: a device stays held as long as one of them lives, also when the supervisor has died.
Linux only; elsewhere nothing is held, and two users may get the same device.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Collection, Iterable

from orchestrator.local.schedule import Device
from orchestrator.local.socket_owners import owner

_LINUX = sys.platform == "linux"


class DeviceLocks:
    """The devices that this process holds. One that a former supervisor's run still holds can be had by nobody."""

    def __init__(self) -> None:
        self._sockets: dict[str, socket.socket] = {}

    def take(self, devices: Iterable[Device]) -> frozenset[str]:
        """Hold all of these devices, or no further one; return the addresses of those that somebody else holds."""
        fresh = [device.address for device in devices if device.address not in self._sockets]
        bound = {name: _bind(name) for name in fresh} if _LINUX else {}
        refused = frozenset(name for name, found in bound.items() if found is None)
        for name, found in bound.items():
            if found is not None and refused:
                found.close()
            elif found is not None:
                self._sockets[name] = found
        return refused

    def descriptors(self, devices: Iterable[Device]) -> tuple[int, ...]:
        """Return what a process must keep open to hold these devices, too."""
        return tuple(self._sockets[device.address].fileno() for device in devices if device.address in self._sockets)

    def release(self, *, but: Collection[str]) -> frozenset[str]:
        """Let go of all devices but some; return which those are."""
        freed = frozenset(self._sockets.keys() - but)
        for name in freed:
            self._sockets.pop(name).close()
        return freed


def describe_holder(address: str) -> str:
    """Return who holds a device, for people."""
    return f"held by {owner(_name(address)) or 'another run'}"


def held_by_others(devices: Iterable[Device]) -> dict[str, str]:
    """Return of the devices that other users hold, by id, who that is. Nothing is taken for it."""
    owners = {device.id: owner(_name(device.address)) for device in devices}
    return {name: str(found) for name, found in owners.items() if found and found.uid not in {None, os.getuid()}}


def _name(address: str) -> str:
    return f"orchestrator/gpu/{address}"


def _bind(name: str) -> socket.socket | None:
    """Return the bound name of a device; None if it is bound already."""
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        held.bind(f"\0{_name(name)}")
    except OSError as error:
        held.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    return held
