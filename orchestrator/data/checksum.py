"""Checksums of file contents, written `algorithm:hexadecimal`, as DVC computes them.

`md5-dos2unix` is what DVC 2 used: the MD5 after CRLF became LF in each MiB that looks like text. Its
cache is still read by DVC 3, so it is by us. `md5-parts-<bytes>` is what S3 says of an object that was uploaded in
parts of that size: the MD5 of the parts' MD5s, the part before `-<count>` in its ETag.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

CHUNK = 2**20
"""Bytes read at once. Part of the definition of md5-dos2unix: do not change."""

PATTERN = re.compile(r"(md5|md5-dos2unix|md5-parts-[1-9]\d{0,12}):[0-9a-f]{32}|sha256:[0-9a-f]{64}")
"""The checksums a manifest may hold."""

_TEXT = bytes(range(32, 127)) + b"\n\r\t\f\b"


def _looks_like_text(block: bytes) -> bool:
    """Follow dvc_data.hashfile.istextfile: no NUL, and at most 30 % unusual bytes."""
    return b"\x00" not in block and len(block.translate(None, _TEXT)) <= 0.30 * len(block)


class _Md5OfParts:
    """The MD5 of the MD5s of parts of `part_bytes`; what hashlib's objects do, as far as it is used here."""

    def __init__(self, part_bytes: int) -> None:
        self._part_bytes, self._left = part_bytes, part_bytes
        self._part, self._parts = hashlib.md5(usedforsecurity=False), b""

    def update(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            self._part.update(view[: self._left])
            taken = min(self._left, len(view))
            view, self._left = view[taken:], self._left - taken
            if not self._left:
                self._parts += self._part.digest()
                self._part, self._left = hashlib.md5(usedforsecurity=False), self._part_bytes

    def hexdigest(self) -> str:
        last = self._part.digest() if self._left < self._part_bytes else b""
        return hashlib.md5(self._parts + last, usedforsecurity=False).hexdigest()


def _running(algorithm: str) -> hashlib._Hash | _Md5OfParts:
    if algorithm.startswith("md5-parts-"):
        return _Md5OfParts(int(algorithm.removeprefix("md5-parts-")))
    return hashlib.new("md5" if algorithm == "md5-dos2unix" else algorithm, usedforsecurity=False)


class Checksum:
    """A running checksum, fed with chunks of CHUNK bytes."""

    def __init__(self, algorithm: str) -> None:
        self._algorithm = algorithm
        self._hash = _running(algorithm)

    def update(self, chunk: bytes) -> None:
        if self._algorithm == "md5-dos2unix" and _looks_like_text(chunk[:512]):
            chunk = chunk.replace(b"\r\n", b"\n")
        self._hash.update(chunk)

    def __str__(self) -> str:
        return f"{self._algorithm}:{self._hash.hexdigest()}"


def chunks(file: BinaryIO) -> Iterator[bytes]:
    """Yield a buffered file's content, every chunk but the last with CHUNK bytes."""
    while chunk := file.read(CHUNK):
        yield chunk


def checksum_of(path: Path, algorithm: str) -> str:
    """Return the checksum of a file's content."""
    checksum = Checksum(algorithm)
    with path.open("rb") as file:
        for chunk in chunks(file):
            checksum.update(chunk)
    return str(checksum)
