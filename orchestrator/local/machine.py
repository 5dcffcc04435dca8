"""What this machine has for a launch, by the options of its `cluster:` section; and what fits there."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict, cast

from orchestrator.errors import RequestError
from orchestrator.spec import Resources
from orchestrator.system.extras import installing

if TYPE_CHECKING:
    from orchestrator.local.schedule import Terms

_GB = 10**9


class Options(TypedDict, total=False):
    """The `cluster:` section's keys, as far as they say what runs may take. None, too, means: as the machine has."""

    cpus: int | None
    mem_gb: float | None
    devices: Sequence[int | str] | None
    runs_per_gpu: int | None
    avoid_busy_gpus: bool | None
    priority: int | None
    grace_seconds: float | None


def given(section: Mapping[str, object]) -> Options:
    """Return what a `cluster:` section says of the machine."""
    return cast("Options", {key: section[key] for key in Options.__annotations__ if key in section})


def terms(options: Options) -> Terms:
    """Return the terms of a launch on this machine."""
    import psutil

    from orchestrator.local import devices
    from orchestrator.local.schedule import Terms

    return Terms(
        cpus=options.get("cpus") or own_cpus(),
        mem_gb=options.get("mem_gb") or psutil.virtual_memory().total / _GB,
        devices=devices.find(options.get("devices"), os.environ),
        runs_per_gpu=options.get("runs_per_gpu") or 1,
        avoid_busy=bool(options.get("avoid_busy_gpus")),
        priority=options.get("priority") or 0,
        grace_seconds=options.get("grace_seconds") or 30.0,
    )


def own_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check(shapes: Collection[Resources], given: Terms, *, cluster: str) -> None:
    """Refuse runs that can never start on these terms."""
    for shape in shapes:
        _check_nodes(shape, cluster)
        _check_gpus(shape, given)


def notes(given: Terms) -> tuple[str, ...]:
    """Return what a person should know of the machine."""
    from orchestrator.local import nvml

    if not given.avoid_busy or not (why := nvml.missing()):
        return ()
    needed = f"NVIDIA's driver and `{installing('gpu')}` are needed"
    return (f"cluster.avoid_busy_gpus: other people's processes cannot be seen ({why}): {needed}",)


def held(shapes: Collection[Resources], given: Terms) -> tuple[str, ...]:
    """Return which GPUs other users hold, so that nobody waits for them without knowing."""
    from orchestrator.local.device_locks import held_by_others

    found = held_by_others(given.devices) if any(shape.gpus_per_node for shape in shapes) else {}
    way_out = "ask them, or choose other ones with cluster.devices"
    return tuple(
        f"GPU {name} is held by {who}: runs wait for it while that lasts; {way_out}" for name, who in found.items()
    )


def check_slots(shapes: Collection[Resources], given: Terms) -> None:
    """Refuse runs that are wider than all CPUs, or need more than all memory."""
    for shape in shapes:
        if shape.cpus_per_node > given.cpus:
            raise RequestError(
                f"resources.cpus_per_node is {shape.cpus_per_node}",
                why=f"there are {given.cpus} CPU slots",
                fix=f"resources.cpus_per_node={given.cpus}, or a larger cluster.cpus",
            )
        if given.mem_gb and (shape.mem_gb_per_node or 0) > given.mem_gb:
            raise RequestError(
                f"resources.mem_gb_per_node is {shape.mem_gb_per_node:g}",
                why=f"there are {given.mem_gb:.1f} GB",
                fix=f"resources.mem_gb_per_node={int(given.mem_gb)}, or a larger cluster.mem_gb",
            )


def _check_nodes(shape: Resources, cluster: str) -> None:
    if shape.nodes > 1:
        raise RequestError(
            f"resources.nodes is {shape.nodes}", why=f"cluster={cluster} is one machine", fix="resources.nodes=1"
        )


def _check_gpus(shape: Resources, given: Terms) -> None:
    if given.devices and shape.gpus_per_node > len(given.devices):
        ids = ", ".join(device.id for device in given.devices)
        raise RequestError(
            f"resources.gpus_per_node is {shape.gpus_per_node}",
            why=f"the GPUs to give are {ids}",
            fix=f"resources.gpus_per_node={len(given.devices)}, or name more with cluster.devices",
        )
