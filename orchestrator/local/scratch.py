"""How much this machine's scratch holds, for the clusters that run on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

from orchestrator.cluster import Scratch, check_data
from orchestrator.errors import DataError
from orchestrator.system.units import size


def scratch(configured: str | None) -> Scratch:
    """Return what the scratch folder holds that runs on this machine use. Makes nothing."""
    from orchestrator.data import scratch_base

    try:
        base = scratch_base(configured, os.environ)
    except DataError as error:
        return Scratch(where=f"scratch {configured} cannot be used here ({error.why})")
    disk = shutil.disk_usage(base)
    return Scratch(where=f"scratch {base}", bytes=disk.total, least_bytes=disk.total, free_bytes=disk.free)


def check(data: Mapping[str, int], configured: str | None) -> tuple[str, ...]:
    """Refuse a data version that can never fit; return a note for one that does not fit now."""
    if not data:
        return ()
    found = scratch(configured)
    check_data(data, found, fix="name a folder on a larger disk with cluster.scratch, or choose a smaller version")
    from orchestrator.data.store.scratch import taken

    free = found.free_bytes
    squatted = taken(configured, os.environ) if found.bytes else ""
    return (*filter(None, [squatted]), *_does_not_fit(data, found, free))


def _does_not_fit(data: Mapping[str, int], found: Scratch, free: int | None) -> tuple[str, ...]:
    return tuple(
        f"data version {name} has {size(needed)}, and {found.where} has {size(free)} free: unless it is there already,"
        " its runs will fail"
        for name, needed in data.items()
        if free is not None and needed > free
    )
