"""What a loader gives, as a function of its place: no loader is saved, and none draws from the model's numbers.

The order of samples depends on (seed, loader, epoch); random numbers of a sample's batch, such as augmentation draws,
on its position and the rank besides. So workers, and whether they persist, change no result. The user's loader stays
the same object, of a subclass of its own class; a copy behind it has the dataset and the sampler wrapped.

A stream is read again up to the position, which gives the same but takes its time.
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
"""They draw from nothing but their own generator."""
_SOURCE = "_orch_source"
_WORTH_A_WORD_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a fit is: the epoch, the next batch in it, the batches trained in all, and whether loaders are cycled."""

    epoch: int
    batch: int
    total: int
    cycles: bool


Where = Callable[[], Place]


def is_exact(loader: object) -> bool:
    """Whether what the loader gives is a function of its place."""
    return hasattr(loader, _SOURCE)


def can_be_exact(loader: object) -> bool:
    """Whether `make_exact` takes a loader: not one that keeps its own state, nor a pipeline of `torchdata`."""
    return (
        isinstance(loader, DataLoader)
        and not hasattr(loader, "state_dict")
        and not isinstance(loader.dataset, IterDataPipe | MapDataPipe)
    )


def make_exact(loader: Any, source: Source) -> Any:
    """Make a user's loader exact, in place."""
    cls = type(loader)
    if is_exact(loader):  # the user gives the same loader again, as after a search for a learning rate
        cls = cls.__mro__[1]
    members = {"__iter__": lambda _: _Pass(source), "__module__": cls.__module__, _SOURCE: source}
    loader.__class__ = type(cls.__name__, (cls,), {**members, "__qualname__": cls.__qualname__})
    return loader


class Source:
    """What stands behind one of the user's loaders."""

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
            self._replace("persistent_workers", False)  # a worker learns the place of a pass when it starts
        else:
            self._replace("dataset", _Seeded(loader.dataset))
            sampler = "batch_sampler" if self.batched else "sampler"
            self._replace(sampler, _Positioned(getattr(loader, sampler), self))
        self._inner.generator = torch.Generator()
        self._ended = (-1, 0)
        """The epoch and the cycle of the last pass that has given all it had."""
        self._cycle = self.epoch = self.skip = 0
        self.place: tuple[object, ...] = ()

    def key(self, *more: object) -> int:
        return derived(self._seed, self.place, *more)

    def batch_key(self, number: int) -> int:
        return self.key(self._rank, number)

    def begin(self) -> Iterator[object]:
        """Begin a pass where the fit is now."""
        where = self._where()
        self.epoch, self.skip = where.epoch, 0
        if self._name[0] == "train":
            self._cycle, self.skip = self._position(where)
            self.place = (*self._name, where.epoch, self._cycle)
        else:
            self.place = (*self._name, where.total)
        self._inner.generator.manual_seed(self.key("workers"))
        if self._stream is None:
            return iter(self._inner)
        self._stream.number, self._stream.epoch = self.batch_key(0), self.epoch
        return self._replayed(iter(self._inner))

    def end(self) -> None:
        """Note that the pass has given all it has: another one in the same epoch is the next cycle."""
        self._ended = (self.epoch, self._cycle)

    def _position(self, where: Place) -> tuple[int, int]:
        """Return the cycle, and how many batches of it have been given."""
        epoch, cycle = self._ended
        if epoch == where.epoch:
            return cycle + 1, 0
        length = self._length() if where.cycles else 0
        return divmod(where.batch, length) if length else (0, where.batch)

    def _length(self) -> int:
        try:
            return len(self._loader)
        except TypeError:  # a stream without one
            return 0

    def _replayed(self, iterator: Iterator[object]) -> Iterator[object]:
        began = time.monotonic()
        for _ in range(self.skip):
            next(iterator)
        if (took := time.monotonic() - began) > _WORTH_A_WORD_SECONDS:
            _log.info("the stream was read again up to batch %d, in %.0f s", self.skip, took)
        return iterator

    def _replace(self, name: str, value: object) -> None:
        object.__setattr__(self._inner, name, value)  # a DataLoader refuses to change these


class _Pass:
    """One pass over a loader. It begins at its first batch: only then is it known where the fit resumes."""

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
                return next(self._iterator)
            except StopIteration:
                self._source.end()
                raise


class _At(list[object]):
    """The indices of a batch, and the number that its random numbers begin with."""

    number = 0


class _Wrapped:
    """Stands for another object: what it does not have itself is that one's."""

    def __init__(self, inner: Any) -> None:
        self.__dict__["_inner"] = inner

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_inner" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["_inner"], name)


class _Seeded(_Wrapped, Dataset[object]):
    """A dataset whose random numbers depend on the batch's place alone, in whatever process it is read."""

    _own: list[Generator] | None = None

    def __setattr__(self, name: str, value: object) -> None:
        """Set what a `worker_init_fn` sets on the user's dataset."""
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
        """Return one sample where the loader makes no batches."""
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
    """A stream whose random numbers depend on the epoch, the rank and the worker alone."""

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
    """A batch sampler, or a sampler, whose order depends on (seed, epoch) alone, from any position on.

    What was given before the position is passed over here: no data is read for it.
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
        numbers = Numbers(number)  # it may draw from the global ones, at any time
        with numbers.used():
            iterator = iter(self._inner)
        while True:
            with numbers.used():
                try:
                    indices = next(iterator)
                except StopIteration:
                    return
            yield indices
