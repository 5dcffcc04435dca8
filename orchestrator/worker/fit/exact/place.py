"""Loaders whose batches are a function of the position in the fit: no loader's state needs to be saved.

The order of samples depends on (seed, loader, epoch). Random numbers drawn for a batch, such as those of augmentation,
also depend on its position and the rank, never on the model's random numbers. The number of workers, and whether they
persist, therefore changes no result. The user's loader stays the same object, with a subclass of its class; a copy of
it has the dataset and the sampler wrapped.

A stream (an iterable dataset) is read from its beginning up to the position: the same result, but it takes time.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    IterDataPipe,
    MapDataPipe,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from orchestrator.worker.fit.exact.digest import digest
from orchestrator.worker.fit.exact.rng import Generator, Numbers, derived, held_by, reseed, seed_globals

_log = logging.getLogger(__name__)
_KNOWN = (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    DistributedSampler,
)
"""Samplers that draw only from their own generator."""
_SOURCE = "_orch_source"
_WORTH_LOGGING_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The position of a fit: its epoch, the next batch in it, the total of batches so far.

    `cycles`: whether loaders shorter than the longest one start over.
    """

    epoch: int
    batch: int
    total: int
    cycles: bool


Where = Callable[[], Place]
Last = tuple[int, int, int, str]
"""A batch: its epoch, cycle and position, and the digest of its content."""


def is_exact(loader: object) -> bool:
    """Whether the loader's batches are a function of the position in the fit."""
    return hasattr(loader, _SOURCE)


def can_be_exact(loader: object) -> bool:
    """Whether `make_exact` supports a loader. Loaders with their own state and `torchdata` pipelines are not."""
    return (
        isinstance(loader, DataLoader)
        and not hasattr(loader, "state_dict")
        and not isinstance(loader.dataset, IterDataPipe | MapDataPipe)
    )


def make_exact(loader: Any, source: Source) -> Any:
    """Make a user's loader exact, in place, and return it."""
    cls = type(loader)
    if is_exact(loader):  # the user returns the same loader again, as after a learning rate search
        cls = cls.__mro__[1]
    members = {"__iter__": lambda _: _Pass(source), "__module__": cls.__module__, _SOURCE: source}
    loader.__class__ = type(cls.__name__, (cls,), {**members, "__qualname__": cls.__qualname__})
    return loader


class Source:
    """The implementation behind one of the user's loaders: a copy with wrapped dataset and sampler."""

    def __init__(
        self, loader: DataLoader[object], *, name: tuple[str, int], seed: int, rank: int, where: Where
    ) -> None:
        """`name`: the stage, `train` or `val`, and the loader's number in it."""
        self._name, self._seed, self._rank, self._where = name, seed, rank, where
        self._loader = loader
        self._inner = copy.copy(loader)
        self._stream: _Stream | None = None
        self.batched = loader.batch_sampler is not None
        if isinstance(loader.dataset, IterableDataset):
            self._stream = _Stream(loader.dataset)
            self._replace("dataset", self._stream)
            self._replace("persistent_workers", False)  # workers learn the position of a pass when they start
        else:
            self._replace("dataset", _Seeded(loader.dataset))
            sampler = "batch_sampler" if self.batched else "sampler"
            self._replace(sampler, _Positioned(getattr(loader, sampler), self))
        self._inner.generator = torch.Generator()
        self._ended = (-1, 0)
        """The epoch and the cycle of the last pass that was read to its end."""
        self._cycle = self.epoch = self.skip = self._given = 0
        self.place: tuple[object, ...] = ()
        self.last: Last | None = None
        """The batch of the training that was given last."""

    def key(self, *more: object) -> int:
        return derived(self._seed, self.place, *more)

    def batch_key(self, number: int) -> int:
        return self.key(self._rank, number)

    def begin(self) -> Iterator[object]:
        """Begin a pass at the fit's current position."""
        where = self._where()
        self.epoch, self.skip = where.epoch, 0
        if self._name[0] == "train":
            self._cycle, self.skip = self._position(where)
            self.place = (*self._name, where.epoch, self._cycle)
        else:
            self.place = (*self._name, where.total)
        self._given = self.skip
        self._inner.generator.manual_seed(self.key("workers"))
        if self._stream is None:
            return iter(self._inner)
        self._stream.number, self._stream.epoch = self.batch_key(0), self.epoch
        return self._replayed(iter(self._inner))

    def gave(self, batch: object) -> None:
        """Note a batch that was given."""
        if self._name[0] == "train":
            self.last = (self.epoch, self._cycle, self._given, digest(batch))
            self._given += 1

    def differs(self, last: Last) -> bool:
        """Return whether a batch that an earlier attempt was given is another one now. A stream is not read for it."""
        if self._stream is not None:
            return False
        self.epoch, self._cycle, self.skip, expected = last
        self.place = (*self._name, self.epoch, self._cycle)
        again = copy.copy(self._inner)
        for name, value in {"num_workers": min(1, again.num_workers), "persistent_workers": False}.items():
            object.__setattr__(again, name, value)
        with Numbers(0).used():
            again.generator = torch.Generator()
            again.generator.manual_seed(self.key("workers"))
            return digest(next(iter(again), None)) != expected

    def end(self) -> None:
        """Note that the pass has been read to its end: another one in the same epoch is the next cycle."""
        self._ended = (self.epoch, self._cycle)

    def _position(self, where: Place) -> tuple[int, int]:
        """Return the cycle, and how many of its batches have been read."""
        epoch, cycle = self._ended
        if epoch == where.epoch:
            return cycle + 1, 0
        length = self._length() if where.cycles else 0
        return divmod(where.batch, length) if length else (0, where.batch)

    def _length(self) -> int:
        try:
            return len(self._loader)
        except TypeError:  # a stream without a length
            return 0

    def _replayed(self, iterator: Iterator[object]) -> Iterator[object]:
        began = time.monotonic()
        for _ in range(self.skip):
            next(iterator)
        if (took := time.monotonic() - began) > _WORTH_LOGGING_SECONDS:
            _log.info("the stream was read again up to batch %d, in %.0f s", self.skip, took)
        return iterator

    def _replace(self, name: str, value: object) -> None:
        object.__setattr__(self._inner, name, value)  # a DataLoader refuses to change these


class _Pass:
    """One pass over a loader. It begins with its first batch: only then is the position known at which to resume."""

    def __init__(self, source: Source) -> None:
        self._source, self._numbers = source, Numbers(0)
        self._iterator: Iterator[object] | None = None

    def __iter__(self) -> _Pass:
        return self

    def __next__(self) -> object:
        with self._numbers.used():
            if self._iterator is None:
                self._iterator = self._source.begin()
            try:
                batch = next(self._iterator)
            except StopIteration:
                self._source.end()
                raise
            self._source.gave(batch)
            return batch


class _At(list[object]):
    """The indices of a batch, and the seed (`number`) of its random numbers."""

    number = 0


class _Wrapped:
    """A proxy for another object: attributes that it does not have itself are read from that object."""

    def __init__(self, inner: Any) -> None:
        self.__dict__["_inner"] = inner

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_inner" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["_inner"], name)


class _Seeded(_Wrapped, Dataset[object]):
    """A dataset whose random numbers depend only on the batch's position, in whichever process it is read."""

    _own: list[Generator] | None = None

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute on the user's dataset, as a `worker_init_fn` may do."""
        if name == "_own":
            self.__dict__[name] = value
        else:
            setattr(self._inner, name, value)

    def __len__(self) -> int:
        return len(self._inner)

    def __getitems__(self, at: _At) -> object:
        self._seed(at.number)
        get = getattr(self._inner, "__getitems__", None)
        return get(list(at)) if callable(get) else [self._inner[index] for index in at]

    def __getitem__(self, at: object) -> object:
        """Return one sample, for a loader without batches."""
        if not isinstance(at, _At):
            return self._inner[at]
        self._seed(at.number)
        return self._inner[at[0]]

    def _seed(self, number: int) -> None:
        if self._own is None:
            self._own = held_by(self._inner)
        seed_globals(number)
        reseed(self._own, number)


class _Stream(_Wrapped, IterableDataset[object]):
    """A stream whose random numbers depend only on the epoch, the rank and the worker."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.number = self.epoch = 0

    def __iter__(self) -> Iterator[object]:
        info = get_worker_info()
        number = derived(self.number, info.id if info else 0)
        if callable(set_epoch := getattr(self._inner, "set_epoch", None)):
            set_epoch(self.epoch)
        seed_globals(number)
        reseed(held_by(self._inner), number)
        return iter(self._inner)


class _Positioned(_Wrapped):
    """A sampler or batch sampler whose order depends only on (seed, epoch), and which can start at any position.

    It skips the indices before that position, without reading any data.
    """

    def __init__(self, inner: Any, source: Source) -> None:
        super().__init__(inner)
        self._source = source
        self._levels = [level for level in (inner, getattr(inner, "sampler", None)) if level is not None]
        self._own = held_by(inner)

    def __len__(self) -> int:
        return len(self._inner)

    def __iter__(self) -> Iterator[_At]:
        source, skip = self._source, self._source.skip
        number = source.key("order")
        for level in self._levels:
            if callable(set_epoch := getattr(level, "set_epoch", None)):
                set_epoch(source.epoch)
            if type(level) in _KNOWN and getattr(level, "generator", 0) is None:
                level.generator = torch.Generator()
                self._own.append(level.generator)
        reseed(self._own, number)
        for position, indices in enumerate(self._indices(number)):
            if position >= skip:
                at = _At(indices if source.batched else [indices])
                at.number = source.batch_key(position)
                yield at

    def _indices(self, number: int) -> Iterator[Any]:
        if all(type(level) in _KNOWN for level in self._levels):
            yield from self._inner
            return
        numbers = Numbers(number)  # the sampler may draw from the global generators at any time
        with numbers.used():
            iterator = iter(self._inner)
        while True:
            with numbers.used():
                try:
                    indices = next(iterator)
                except StopIteration:
                    return
            yield indices
