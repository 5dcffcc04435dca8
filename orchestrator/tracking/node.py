"""The load of a node: CPU, memory, disk, network and GPUs, under the names of MLflow's own system metrics.

Read from the operating system, which takes well under a millisecond, and from NVIDIA's library where installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import psutil

_MEGA = 1e6


class Node:
    """Measures this machine. CPU percentages and network traffic cover the time since the previous measurement."""

    def __init__(self, disk: Path, gpus: ModuleType | None = None, visible: str | None = None) -> None:
        """`disk`: a folder on the disk to measure; `gpus`: NVML's bindings; `visible`: as CUDA_VISIBLE_DEVICES."""
        self._disk = disk
        self._received, self._sent = _network()
        self._gpus = [(gpus, handle) for handle in _handles(gpus, visible)] if gpus else []
        psutil.cpu_percent()  # the first call has nothing to compare with, and returns 0

    def measure(self) -> dict[str, float]:
        """Return the metrics that can be measured now; others are left out."""
        found: dict[str, float] = {}
        for part in (_cpu, self._disk_usage, self._network, self._gpu):
            with suppress(OSError, RuntimeError, psutil.Error):
                found |= part()
        return found

    def _disk_usage(self) -> Mapping[str, float]:
        disk = psutil.disk_usage(str(self._disk))
        return {
            "disk_usage_percentage": disk.percent,
            "disk_usage_megabytes": disk.used / _MEGA,
            "disk_available_megabytes": disk.free / _MEGA,
        }

    def _network(self) -> Mapping[str, float]:
        received, sent = _network()
        return {"network_receive_megabytes": received - self._received, "network_transmit_megabytes": sent - self._sent}

    def _gpu(self) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for number, (nvml, handle) in enumerate(self._gpus):
            for part in (_gpu_memory, _gpu_load, _gpu_power):
                with suppress(nvml.NVMLError):  # not every GPU supports every metric
                    found |= {f"gpu_{number}_{name}": value for name, value in part(nvml, handle).items()}
        return found


def _cpu() -> Mapping[str, float]:
    memory = psutil.virtual_memory()
    return {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / _MEGA,
        "system_memory_usage_percentage": memory.used / memory.total * 100,
    }


def _network() -> tuple[float, float]:
    found = psutil.net_io_counters()
    return (found.bytes_recv / _MEGA, found.bytes_sent / _MEGA) if found else (0.0, 0.0)


def _handles(nvml: ModuleType, visible: str | None) -> list[object]:
    """Return the GPUs visible to CUDA, in its order; `visible` names them by number or by a prefix of their UUID."""
    try:
        every = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        if visible is None:
            return every
        named = [_named(nvml, every, word.strip()) for word in visible.split(",") if word.strip()]
    except nvml.NVMLError:
        return []
    return [handle for handle in named if handle is not None]


def _named(nvml: ModuleType, every: list[object], word: str) -> object:
    if word.isdigit():
        return every[int(word)] if int(word) < len(every) else None
    return next((handle for handle in every if _text(nvml.nvmlDeviceGetUUID(handle)).startswith(word)), None)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _gpu_memory(nvml: ModuleType, handle: object) -> Mapping[str, float]:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {"memory_usage_percentage": memory.used / memory.total * 100, "memory_usage_megabytes": memory.used / _MEGA}


def _gpu_load(nvml: ModuleType, handle: object) -> Mapping[str, float]:
    return {"utilization_percentage": float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)}


def _gpu_power(nvml: ModuleType, handle: object) -> Mapping[str, float]:
    milliwatts = nvml.nvmlDeviceGetPowerUsage(handle)
    limit = nvml.nvmlDeviceGetEnforcedPowerLimit(handle)
    return {"power_usage_watts": milliwatts / 1000, "power_usage_percentage": milliwatts / limit * 100}
