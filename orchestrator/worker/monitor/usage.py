"""The memory that an attempt uses on the node of its rank 0, sampled and recorded as it grows, in case it is killed.

It is the resident memory of all the run's processes on that node, counted as Slurm does: pages shared by several
processes count for each of them. A peak shorter than the sampling period is seen only in rank 0's own process.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import psutil

from orchestrator.records.attempts import EventWriter
from orchestrator.worker.context import ProcessContext

_PERIOD_SECONDS = 1.0
_LOOK_EVERY = 5  # samples
_GROWTH = 1.2  # a peak is recorded when it has grown by this factor: some 75 events from 1 MB to 1 TB
_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


class Usage:
    """The peak of memory so far; `sample` updates it."""

    def __init__(self, *, siblings: bool, group: int | None = None) -> None:
        """`siblings`: other children of this process's parent belong to the run, too; `group`: only if in this one."""
        self._top = os.getppid() if siblings else os.getpid()
        self._group = group
        self._processes: list[psutil.Process] = []
        self._samples = self._memory_bytes = 0

    def sample(self) -> int:
        """Return the peak in bytes. The list of processes is refreshed only now and then: it is slow on a busy node."""
        if self._samples % _LOOK_EVERY == 0:
            self._processes = [each for each in _descendants(self._top) if self._is_ours(each)]
        self._samples += 1
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES
        self._memory_bytes = max(self._memory_bytes, own, sum(map(_resident_bytes, self._processes)))
        return self._memory_bytes

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return self._group is None or os.getpgid(process.pid) == self._group
        except OSError:  # it has ended
            return False

    def to_json(self) -> dict[str, object]:
        gpu = _gpu_bytes()
        return {"memory_bytes": self.sample(), **({"gpu_bytes": gpu} if gpu else {})}

    @classmethod
    def of(cls, context: ProcessContext) -> Self:
        """Return the usage of a run's processes on this node.

        srun's tasks on a node share a slurmstepd as parent. A local supervisor also has other runs as children; each
        run's ranks are one process group.
        """
        siblings = context.processes > 1
        return cls(siblings=siblings, group=context.leader if siblings and not context.job else None)

    @contextmanager
    def followed(self, events: EventWriter) -> Iterator[None]:
        """Sample from a thread while the body runs; record a peak that has grown much at once."""
        ended = threading.Event()
        thread = threading.Thread(target=self._follow, args=(events, ended), name="usage", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _follow(self, events: EventWriter, ended: threading.Event) -> None:
        written = self._memory_bytes
        while not ended.wait(_PERIOD_SECONDS):
            if self.sample() > written * _GROWTH:
                written = self._memory_bytes
                _quietly(lambda: events.write("usage", usage=self.to_json()))


def _quietly(write: Callable[[], object]) -> None:
    try:
        write()
    except OSError:  # the run itself will report a full disk
        return


def _descendants(pid: int) -> list[psutil.Process]:
    """Return the descendants of a process, and this process itself."""
    try:
        found = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        found = []
    return found if any(each.pid == os.getpid() for each in found) else [psutil.Process(), *found]


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it has ended
        return 0


def _gpu_bytes() -> int:
    """Return the peak of bytes that torch has reserved on this process's GPU; 0 without torch or CUDA."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    try:
        return int(cuda.max_memory_reserved()) if cuda is not None and cuda.is_initialized() else 0
    except RuntimeError:  # the device has failed, and the run with it, which reports it
        return 0
