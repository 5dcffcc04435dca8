"""Where DVC keeps the object with a given checksum, in its cache and in remotes that are folders.

DVC 3 writes `files/md5/<first two digits>/<rest>`, DVC 2 wrote `<first two digits>/<rest>`; one cache
may hold both.
"""

from __future__ import annotations

from collections.abc import Iterable


def expected_paths(folders: Iterable[str], checksum: str) -> list[str]:
    """Return the object's path in each folder, in the layout that belongs to its algorithm."""
    return [_path(folder, checksum, legacy=checksum.startswith("md5-dos2unix:")) for folder in folders]


def other_paths(folders: Iterable[str], checksum: str) -> list[str]:
    """Return the object's path in each folder, in the other layout."""
    return [_path(folder, checksum, legacy=not checksum.startswith("md5-dos2unix:")) for folder in folders]


def _path(folder: str, checksum: str, *, legacy: bool) -> str:
    name = checksum.partition(":")[2]
    return f"{folder}/{name[:2]}/{name[2:]}" if legacy else f"{folder}/files/md5/{name[:2]}/{name[2:]}"
