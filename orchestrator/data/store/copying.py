"""Copying: the objects that a node lacks, from paths and then from a fetcher, in a bounded number of threads.

Large files come first, each for itself, so that none is begun last; small ones in batches. The first error ends all.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from orchestrator.data.fetch import Arrival, Fetcher
from orchestrator.data.manifest import Entry
from orchestrator.data.store.objects import Objects, WrongBytesError
from orchestrator.data.store.progress import Meter
from orchestrator.errors import DataError
from orchestrator.system.files import make_folder

log = logging.getLogger(__name__)

_BATCH_FILES, _BATCH_BYTES = 64, 8 * 2**20
_REPORT_SECONDS = 1.0


@dataclass(slots=True, kw_only=True)
class Copy:
    """One copy of missing objects into `objects`, by the process `taker`; what a fetcher brings comes by way of `work`.

    `tell` is called about once a second, in the caller's thread; `repair` is the command to put into an error.
    """

    objects: Objects
    taker: str
    work: Path
    threads: int
    meter: Meter
    report: Callable[[], None]
    repair: str
    fetcher: Fetcher | None = None
    _problems: dict[str, list[str]] = field(default_factory=dict)
    _boots: list[str] = field(default_factory=list)

    def run(self, missing: Sequence[Entry]) -> None:
        """Copy all; raises DataError if an object's right bytes are nowhere, OSError if scratch fails."""
        self._boots = self.objects.earlier_boots()
        here = [entry for entry in missing if not self.fetcher or entry.sources or self._earlier(entry)]
        known = {entry.hash for entry in here}
        remote = [entry for entry in missing if entry.hash not in known]
        with ThreadPoolExecutor(self.threads) as pool:
            copies = [pool.submit(self._fetch_batch, batch) for batch in _batches(here)]
            try:
                self._follow(copies)
                absent = [*remote, *(entry for entry in here if entry.hash in self._problems)]
                if absent and self.fetcher:
                    self._follow([pool.submit(self._ask, self.fetcher, absent)])
            finally:
                self.meter.ended.set()
                pool.shutdown(cancel_futures=True)
        self.meter.arriving(0)
        self.report()

    def _follow(self, copies: Sequence[Future[None]]) -> None:
        left = set(copies)
        while left:
            done, left = wait(left, timeout=_REPORT_SECONDS, return_when=FIRST_EXCEPTION)
            for copy in done:
                copy.result()
            if left:
                self.meter.arriving(_bytes_in(self._fetched))
                self.report()

    @property
    def _fetched(self) -> Path:
        """Where what a fetcher brings arrives."""
        return self.work / "fetched"

    def _earlier(self, entry: Entry) -> list[Path]:
        """Return where an earlier boot has left the object."""
        return self.objects.of_boots(self._boots, entry.hash)

    def _fetch_batch(self, batch: Sequence[Entry]) -> None:
        for entry in batch:
            if self.meter.ended.is_set():
                return
            if self.objects.has(entry.hash):  # another version's copier was faster
                self.meter.add(files=1, bytes=entry.size)
            else:
                self._fetch(entry)

    def _fetch(self, entry: Entry) -> None:
        """Take the object from the first path that has the right bytes; what an earlier boot left may be one."""
        problems: list[str] = []
        adopt, take = self.objects.adopt, self.objects.take
        tries = [(str(path), partial(adopt, path, entry, self.meter)) for path in self._earlier(entry)]
        tries += [(source, partial(take, source, entry, self.taker, self.meter)) for source in entry.sources]
        for source, bring in tries:
            try:
                bring()
            except WrongBytesError as error:
                problems.append(str(error))
                continue
            self._arrived(entry, problems, source)
            return
        if not self.fetcher:
            raise self._nowhere(entry, problems)
        self._problems[entry.hash] = problems

    def _ask(self, fetcher: Fetcher, absent: Sequence[Entry]) -> None:
        """Have the fetcher bring what no path had."""
        make_folder(self._fetched, exist_ok=False)
        arrivals = fetcher.fetch(absent, self._fetched, self.meter.ended)
        try:
            for arrival in arrivals:
                if self.meter.ended.is_set():
                    return
                self._check(arrival, fetcher)
        finally:
            getattr(arrivals, "close", lambda: None)()
            shutil.rmtree(self._fetched, ignore_errors=True)

    def _check(self, arrival: Arrival, fetcher: Fetcher) -> None:
        entry = arrival.entry
        problems = self._problems.get(entry.hash, [])
        if arrival.path is None:
            raise self._nowhere(entry, [*problems, f"{fetcher.name}: {arrival.problem}"])
        try:
            self.objects.adopt(arrival.path, entry, self.meter)
        except WrongBytesError as error:
            raise self._nowhere(entry, [*problems, f"{fetcher.name}: {error}"]) from error
        finally:
            arrival.path.unlink(missing_ok=True)
        self._arrived(entry, problems, fetcher.name)

    def _arrived(self, entry: Entry, problems: Sequence[str], source: str) -> None:
        self.meter.add(files=1)
        for problem in problems:
            log.warning("%s; took %s instead; to mend it: %s", problem, source, self._fix(entry))

    def _nowhere(self, entry: Entry, problems: Sequence[str]) -> DataError:
        return DataError(
            f"no right copy of {entry.path!r} ({entry.hash}, {entry.size} bytes)",
            why="; ".join(problems) or "it has no source",
            fix=self._fix(entry),
        )

    def _fix(self, entry: Entry) -> str:
        damaged = any(Path(source).is_file() for source in entry.sources)
        return f"remove the damaged file, then: {self.repair}" if damaged else self.repair


def _bytes_in(folder: Path) -> int:
    """Return how much the files of a folder have, while they come and go."""
    found = 0
    with suppress(FileNotFoundError), os.scandir(folder) as files:
        for file in files:
            with suppress(FileNotFoundError):
                found += file.stat(follow_symlinks=False).st_size
    return found


def _batches(entries: Sequence[Entry]) -> Iterator[list[Entry]]:
    """Yield what one thread copies at a time: the large files, the largest first, then some small ones each."""
    large = [entry for entry in entries if entry.size >= _BATCH_BYTES]
    yield from ([entry] for entry in sorted(large, key=lambda entry: -entry.size))
    batch: list[Entry] = []
    size = 0
    for entry in (entry for entry in entries if entry.size < _BATCH_BYTES):
        batch.append(entry)
        size += entry.size
        if len(batch) == _BATCH_FILES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
