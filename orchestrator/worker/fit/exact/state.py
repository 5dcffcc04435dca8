"""The state of one rank that Lightning does not save: random numbers, running metrics, changed attributes.

It is a block of bytes in the checkpoint, so that the file can still be loaded with `weights_only`.
"""

from __future__ import annotations

import collections
import io
import logging
import pickle
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torchmetrics

from orchestrator.worker.fit.exact import lightning, rng

_log = logging.getLogger(__name__)
_PLAIN = (
    int,
    float,
    bool,
    str,
    bytes,
    type(None),
    list,
    tuple,
    dict,
    set,
    collections.deque,
    np.ndarray,
    np.generic,
    torch.Tensor,
    torch.Generator,
    np.random.Generator,
    np.random.RandomState,
    random.Random,
)
_METRIC = ("_update_count", "_computed", "_forward_cache")
_MOST_BYTES, _MOST_BYTES_OF_DATA = 64_000_000, 1_000_000
"""Larger attributes are not saved. The limit is lower for datasets and data modules, which hold the data itself."""

Name = tuple[object, ...]
Attributes = dict[tuple[Name, str], bytes]


def save(trainer: pl.Trainer, changed: Attributes) -> bytes:
    """Return the state of this rank as bytes, which later changes do not affect."""
    state = {
        "rng": rng.saved(trainer.strategy.root_device),
        "results": lightning.results(trainer),
        "metrics": _metrics(trainer.lightning_module),
        "connector": lightning.connector(trainer),
        "loops": lightning.loops(trainer),
        "attributes": changed,
    }
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def read(block: bytes, device: torch.device) -> dict[str, Any]:
    """Return a saved state, with its tensors on a device. It unpickles: the checkpoint must be trusted."""
    state: dict[str, Any] = torch.load(io.BytesIO(block), map_location=device, weights_only=False)
    return state


def restore(trainer: pl.Trainer, state: Mapping[str, Any], objects: Mapping[Name, object]) -> None:
    """Restore a saved state; random numbers come last."""
    lightning.load_results(trainer, state["results"])
    _load_metrics(trainer.lightning_module, state["metrics"])
    lightning.load_connector(trainer, state["connector"])
    lightning.load_loops(trainer, state["loops"])
    for (name, attribute), value in state["attributes"].items():
        if name in objects:
            object.__setattr__(objects[name], attribute, pickle.loads(value))  # noqa: S301 - the run's own checkpoint
    rng.restore(dict(state["rng"]), trainer.strategy.root_device)


def objects_of(trainer: pl.Trainer, datasets: Mapping[Name, object]) -> dict[Name, object]:
    """Return, by name, the objects whose plain attributes are saved: users keep lists and counters in them."""
    found: dict[Name, object] = {("module", name): one for name, one in trainer.lightning_module.named_modules()}
    numbers: collections.Counter[str] = collections.Counter()
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning's connector sets it
        cls = type(callback)
        if cls.__module__.split(".")[0] not in {"pytorch_lightning", "lightning", "orchestrator"}:
            found["callback", cls.__qualname__, numbers[cls.__qualname__]] = callback
            numbers[cls.__qualname__] += 1
    if trainer.datamodule is not None:  # type: ignore[attr-defined]  # as above
        found["data",] = trainer.datamodule  # type: ignore[attr-defined]  # as above
    return {**found, **datasets}


def attributes(objects: Mapping[Name, object]) -> Attributes:
    """Return the plain attributes of objects, pickled."""
    ignored = {*vars(pl.LightningModule()), *vars(pl.LightningDataModule()), "training"}
    found: Attributes = {}
    for name, one in objects.items():
        most = _MOST_BYTES if name[0] in {"module", "callback"} else _MOST_BYTES_OF_DATA
        for attribute, value in getattr(one, "__dict__", {}).items():
            if attribute in ignored or not isinstance(value, _PLAIN) or _of_metric(one, attribute):
                continue
            if (pickled := _pickled(value, most)) is not None:
                found[name, attribute] = pickled
    return found


def _of_metric(one: object, attribute: str) -> bool:
    return isinstance(one, torchmetrics.Metric | torchmetrics.MetricCollection) and (
        attribute.startswith("_") or attribute in getattr(one, "_defaults", {})
    )


class _TooLargeError(Exception):
    pass


class _Limited(io.BytesIO):
    """A buffer that raises _TooLargeError beyond `most` bytes."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self._most:
            raise _TooLargeError
        return super().write(data)


class _Pickler(pickle.Pickler):
    def __init__(self, file: _Limited, most: int) -> None:
        super().__init__(file)
        self._most = most

    def reducer_override(self, value: Any) -> Any:
        size = value.untyped_storage().nbytes() if isinstance(value, torch.Tensor) else getattr(value, "nbytes", 0)
        if isinstance(size, int) and size > self._most:
            raise _TooLargeError
        return NotImplemented


def _pickled(value: object, most: int) -> bytes | None:
    file = _Limited(most)
    try:
        _Pickler(file, most).dump(value)
    except Exception:  # noqa: BLE001 - users keep arbitrary objects; those that cannot be pickled are not saved
        return None
    return file.getvalue()


def _metrics(module: torch.nn.Module) -> dict[str, dict[str, Any]]:
    for one in module.modules():
        if isinstance(one, torchmetrics.MetricCollection):
            list(one.values(copy_state=False))  # metrics that share a state get it only when they are accessed
    return {
        name: {
            "state": {key: getattr(metric, key) for key in metric._defaults},  # noqa: SLF001 - it has no public name
            "own": {key: getattr(metric, key) for key in _METRIC},
        }
        for name, metric in _named_metrics(module)
    }


def _load_metrics(module: torch.nn.Module, saved: Mapping[str, Mapping[str, Any]]) -> None:
    for name, metric in _named_metrics(module):
        for key, value in {**saved[name]["state"], **saved[name]["own"]}.items() if name in saved else ():
            setattr(metric, key, value)


def _named_metrics(module: torch.nn.Module) -> Iterator[tuple[str, torchmetrics.Metric]]:
    return ((name, one) for name, one in module.named_modules() if isinstance(one, torchmetrics.Metric))
