"""Whose processes use a GPU, as NVML tells it through its own bindings (`nvidia-ml-py`, optional).

The one module that loads the driver's library, and only where `cluster.avoid_busy_gpus` asks for it, or a run on GPUs
has its node measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import ModuleType

from orchestrator.local.schedule import Device

_KEEP_SECONDS = 2.0
"""An answer serves for so long: the supervisor looks several times a second."""


def missing() -> str:
    """Return why NVML cannot be asked; nothing if it can."""
    try:
        library()
    except (ImportError, OSError) as error:
        return str(error)
    return ""


class Users:
    """Who computes on which device. Where NVML cannot be asked nobody is seen."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, str]] = {}

    def __call__(self, devices: Iterable[Device]) -> dict[str, str]:
        """Return by the device's address who uses it, such as `pid 4711 of alice`; only devices that are used."""
        found = {device.address: self._user(device) for device in devices}
        return {address: users for address, users in found.items() if users}

    def _user(self, device: Device) -> str:
        now = time.monotonic()
        at, users = self._known.get(device.address, (-_KEEP_SECONDS, ""))
        if now - at >= _KEEP_SECONDS:
            at, users = now, _ask(device)
        self._known[device.address] = (at, users)
        return users


def _ask(device: Device) -> str:
    try:
        nvml = library()
        processes = nvml.nvmlDeviceGetComputeRunningProcesses(_handle(nvml, device))
    except (ImportError, OSError):
        return ""
    except nvml.NVMLError:  # no such device, or it is lost: the run that is given it will report it
        return ""
    return ", ".join(_owner(process.pid) for process in processes)


def library() -> ModuleType:
    """Return NVML, ready to be asked. Raises ImportError without its bindings, OSError without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise OSError(f"NVML: {error}") from error
    bindings: ModuleType = pynvml
    return bindings


def _handle(nvml: ModuleType, device: Device) -> object:
    if ":" in device.address:
        return nvml.nvmlDeviceGetHandleByPciBusId(device.address)
    return nvml.nvmlDeviceGetHandleByUUID(device.id)  # a slice of a GPU


def _owner(pid: int) -> str:
    import psutil

    try:
        return f"pid {pid} of {psutil.Process(pid).username()}"
    except psutil.Error:  # in another container, or gone
        return f"pid {pid}"
