"""Data versions that are a prefix of a bucket, as it is now.

Every file is pinned by a hash of its content; where the bucket keeps versions, by its version as well, so that it can
be read after it was overwritten or deleted. The hashes cost nothing to read where the ETag is one: the MD5 of the
object, or of the MD5s of its parts. Where it is not (encrypted with a key of KMS, parts of several sizes), a SHA-256
that the store keeps is taken; what has none is read once, at launch. All that is remembered by key, ETag, size and
version. Keys that end with `/` are not files.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Self

from orchestrator.data.checksum import CHUNK, Checksum
from orchestrator.data.fetch import Arrival
from orchestrator.data.manifest import Entry, Manifest
from orchestrator.data.sources.bucket import (
    AT_ONCE,
    Address,
    Bucket,
    Listed,
    UnreadableError,
    listing_command,
    parse,
    refusal,
)
from orchestrator.data.sources.git import some_of
from orchestrator.errors import ConfigError, OrchError, RequestError, nearest
from orchestrator.system.cache import Answers
from orchestrator.system.threads import map_in_threads

_HASHES = ("etag", "content")
_MD5 = re.compile(r"[0-9a-f]{32}")
_PARTS = re.compile(r"([0-9a-f]{32})-([1-9]\d*)")
_TRIES = 3
_LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Version:
    """The keys of a data version with `source: s3`.

    `hash: content` trusts no ETag: for a store whose ETags look like MD5s and are none.
    """

    url: str
    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    hash: str = "etag"


def resolve(version: S3Version, *, cache: Path) -> Manifest:
    """Return the objects below the prefix with their hashes.

    Raises RequestError if the bucket cannot be read, or has nothing there.
    """
    if version.hash not in _HASHES:
        raise ConfigError(
            f"the data version has `hash: {version.hash}`{nearest(version.hash, _HASHES)}",
            why=f"known are {', '.join(_HASHES)}",
            fix="set `hash` to one of them",
        )
    name, prefix = parse(version.url)
    address = Address(
        bucket=name, prefix=prefix, endpoint_url=version.endpoint_url, region=version.region, profile=version.profile
    )
    bucket = Bucket(address)
    try:
        versioned = bucket.versioned()
        found = _found(bucket, prefix, versions=versioned)
        hashes = _Hashes(bucket, Answers(cache / "s3"), trusting=version.hash == "etag").of([row for _, row in found])
    except UnreadableError as error:
        raise refusal(bucket, address, error) from error
    origin = {
        "source": "s3",
        "url": version.url,
        "endpoint_url": bucket.endpoint_url,
        "region": version.region,
        "profile": version.profile,
        "versioned": versioned,
        "repair": listing_command(address),
    }
    entries = [
        Entry(path=path, hash=checksum, size=row.size, sources=(), remote=(row.key, row.version))
        for (path, row), checksum in zip(found, hashes, strict=True)
    ]
    return Manifest.of(entries, origin={key: value for key, value in origin.items() if value is not None})


def _found(bucket: Bucket, prefix: str, *, versions: bool) -> list[tuple[str, Listed]]:
    """Return the files below a prefix with their paths from there; a prefix that is a key is one file."""
    folder = f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""
    rows = [row for row in bucket.objects(folder, versions=versions) if not row.key.endswith("/")]
    if rows:
        return [(row.key.removeprefix(folder), row) for row in rows]
    exact = [row for row in bucket.objects(prefix, versions=versions) if row.key == prefix] if folder else []
    if exact:
        return [(prefix.rpartition("/")[2], exact[0])]
    near = bucket.neighbours(prefix)
    raise RequestError(
        f"{bucket.address.url} holds no files{nearest(prefix, near)}",
        why=f"beside it are {some_of(near, prefix)}" if near else "the bucket has nothing there",
        fix="correct the data version's `url`",
    )


class _Hashes:
    """The content hashes of objects: from their ETags if `trusting`, else as the store or their bytes say."""

    def __init__(self, bucket: Bucket, answers: Answers, *, trusting: bool) -> None:
        self._bucket, self._answers, self._trusting = bucket, answers, trusting

    def of(self, rows: Sequence[Listed]) -> list[str]:
        question = (str(self._bucket.endpoint_url), self._bucket.address.url, str(self._trusting))
        kept = self._answers.read(*question)
        known: dict[str, str] = kept if isinstance(kept, dict) else {}
        plain = self._trusting and self._bucket.ask(rows[0]).md5_in_etag
        hashes = map_in_threads(lambda row: self._one(row, known.get(_stamp(row)), plain=plain), rows, threads=AT_ONCE)
        new = {_stamp(row): found for row, found in zip(rows, hashes, strict=True) if found != f"md5:{row.etag}"}
        if new and new != known:
            self._answers.write(new, *question)
        return hashes

    def _one(self, row: Listed, known: str | None, *, plain: bool) -> str:
        if plain and _MD5.fullmatch(row.etag):
            return f"md5:{row.etag}"
        return known or self._asked(row) or self._read(row)

    def _asked(self, row: Listed) -> str | None:
        answer = self._bucket.ask(row)
        parts, size = _PARTS.fullmatch(row.etag), answer.first_part_bytes
        if self._trusting and answer.md5_in_etag and parts and size and -(-row.size // size) == int(parts[2]):
            return f"md5-parts-{size}:{parts[1]}"
        return f"sha256:{answer.sha256}" if answer.sha256 else None

    def _read(self, row: Listed) -> str:
        checksum = Checksum("md5")  # as of the same files in a folder
        for chunk in self._bucket.read(row.key, row.version, CHUNK):
            checksum.update(chunk)
        return str(checksum)


def _stamp(row: Listed) -> str:
    return "\n".join((row.key, row.etag, str(row.size), row.version))


# --- on the node ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Fetcher:
    """A bucket as a fetcher of the objects of a manifest."""

    address: Address

    @classmethod
    def of(cls, origin: Mapping[str, Any]) -> Self:
        bucket, prefix = parse(str(origin["url"]))
        given = {key: origin.get(key) for key in ("endpoint_url", "region", "profile")}
        return cls(address=Address(bucket=bucket, prefix=prefix, **given))

    @property
    def name(self) -> str:
        at = f" at {self.address.endpoint_url}" if self.address.endpoint_url else ""
        return f"the bucket {self.address.url}{at}"

    def fetch(self, entries: Sequence[Entry], folder: Path, stop: threading.Event) -> Iterator[Arrival]:
        try:
            bucket = Bucket(self.address)
        except OrchError as error:
            yield from (Arrival(entry=entry, problem=str(error)) for entry in entries)
            return
        transfers = _Transfers(bucket=bucket, folder=folder, stop=stop)
        try:
            yield from transfers.run(entries)
        finally:
            transfers.closed.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Transfers:
    """Downloads in threads that nobody has to wait for: one that a silent server keeps would keep the whole process."""

    bucket: Bucket
    folder: Path
    stop: threading.Event
    closed: threading.Event = field(default_factory=threading.Event)
    _todo: SimpleQueue[tuple[int, Entry]] = field(default_factory=SimpleQueue)
    _done: SimpleQueue[Arrival | OSError] = field(default_factory=SimpleQueue)

    def over(self) -> bool:
        return self.stop.is_set() or self.closed.is_set()

    def run(self, entries: Sequence[Entry]) -> Iterator[Arrival]:
        for each in enumerate(entries):
            self._todo.put(each)
        for _ in range(min(AT_ONCE, len(entries))):
            threading.Thread(target=self._work, daemon=True).start()
        left = len(entries)
        while left and not self.over():
            with suppress(Empty):
                done = self._done.get(timeout=_LOOK_SECONDS)
                if isinstance(done, OSError):
                    raise done
                left -= 1
                yield done

    def _work(self) -> None:
        with suppress(Empty):
            while not self.over():
                number, entry = self._todo.get_nowait()
                try:
                    self._done.put(_arrive(self.bucket, entry, self.folder / str(number), self.over))
                except OSError as error:
                    self._done.put(error)


def _arrive(bucket: Bucket, entry: Entry, path: Path, over: Callable[[], bool]) -> Arrival:
    """Download one object; a connection that breaks is tried again."""
    key, version = entry.remote
    where = f"s3://{bucket.address.bucket}/{key}"
    problem = f"{where}: nobody waits for it any more"
    for _ in range(_TRIES):
        if over():
            break
        try:
            found = _download(bucket.read(key, version, CHUNK), Checksum(entry.algorithm), path, over)
        except UnreadableError as error:
            problem = f"{where}: {error}"
            if error.gone or error.refused:
                break
            continue
        if found == entry.hash:
            return Arrival(entry=entry, path=path)
        if over():
            break
        return Arrival(entry=entry, problem=f"{where} has {found}, not {entry.hash}: it was changed after the launch")
    return Arrival(entry=entry, problem=problem)


def _download(chunks: Iterator[bytes], checksum: Checksum, path: Path, over: Callable[[], bool]) -> str:
    with path.open("wb") as file:
        for chunk in chunks:
            if over():
                break
            checksum.update(chunk)
            file.write(chunk)
    return str(checksum)
