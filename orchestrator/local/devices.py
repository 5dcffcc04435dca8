"""Which GPUs this machine has, and which of them a launch may use. No driver's library is loaded for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import RequestError
from orchestrator.local.schedule import Device

_NVIDIA = Path("proc/driver/nvidia/gpus")
_AMD = Path("sys/class/kfd/kfd/topology/nodes")
_UUID = re.compile(r"^GPU UUID:\s*(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Present:
    device: Device
    uuid: str = ""


def find(
    chosen: Sequence[int | str] | None, environ: Mapping[str, str], *, root: Path = Path("/")
) -> tuple[Device, ...]:
    """Return the devices that are `chosen`, else those of CUDA_VISIBLE_DEVICES, else all that there are.

    On a machine without any the chosen ones are taken as they are: so is a schedule tried out without GPUs.
    Raises RequestError for a number that the machine has not.
    """
    present = _nvidia(root / _NVIDIA) or _amd(root / _AMD)
    if chosen is not None:
        return tuple(_named(str(name), present, strict=True) for name in chosen)
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not present:
        return tuple(each.device for each in present)
    names = [name.strip() for name in visible.split(",")]
    return tuple(_named(name, present, strict=False) for name in names if name not in ("", "-1", "NoDevFiles"))


def _nvidia(folder: Path) -> list[_Present]:
    """Return NVIDIA's GPUs by their PCI addresses, the order that CUDA_DEVICE_ORDER=PCI_BUS_ID numbers them in."""
    found = []
    for number, gpu in enumerate(sorted(folder.iterdir()) if folder.is_dir() else ()):
        try:
            uuid = _UUID.search((gpu / "information").read_text())
        except OSError:
            uuid = None
        found.append(_Present(device=Device(id=str(number), address=gpu.name), uuid=uuid[1] if uuid else ""))
    return found


def _amd(folder: Path) -> list[_Present]:
    """Return AMD's GPUs: the nodes of the driver's topology that are not CPUs."""
    nodes = sorted(folder.iterdir(), key=lambda node: int(node.name)) if folder.is_dir() else []
    gpus = [node for node in nodes if _text(node / "gpu_id") not in ("", "0")]
    return [_Present(device=Device(id=str(i), address=f"kfd-{node.name}")) for i, node in enumerate(gpus)]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _named(name: str, present: Sequence[_Present], *, strict: bool) -> Device:
    """Return the device that a number or the beginning of a UUID names; else that which is called so: a MIG slice."""
    for number, each in enumerate(present):
        if name == str(number) or (name.startswith("GPU-") and each.uuid.startswith(name)):
            return each.device
    if strict and present and name.isdigit():
        raise RequestError(
            f"cluster.devices names GPU {name}",
            why=f"this machine has {len(present)}, numbered from 0",
            fix=f"cluster.devices=[{','.join(each.device.id for each in present)}], or null for all of them",
        )
    return Device(id=name, address=name)
