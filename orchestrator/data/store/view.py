"""View builder: makes a view, from objects that anybody may remove meanwhile.

A file is linked first and looked at afterwards: once the link is there, its bytes stay, even if the object is removed.
What is not there, or has been written to, is for the caller to copy, and to link again.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.data.manifest import Entry
from orchestrator.data.store.objects import READ_ONLY, WRITTEN_NS, Objects, untouched
from orchestrator.data.store.versions import File
from orchestrator.errors import DataError
from orchestrator.system.files import create, make_folder

Link = Callable[[str, str], None]
"""Make a hard link, as os.link does."""

NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a filesystem says that cannot make this link: the file is then copied."""

_NAMES = (errno.EEXIST, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
"""What a filesystem says that cannot have this name, or takes it for another one's."""

_READ_ONLY_FOLDER = 0o555


@dataclass(slots=True, kw_only=True)
class ViewBuilder:
    """The files linked so far into `view`, and how: `copies` had to be copied."""

    view: Path
    objects: Objects
    make_link: Link
    copies: int = 0
    files: list[File] = field(default_factory=list)
    _folders: set[str] = field(default_factory=set)

    def link(self, entries: Iterable[Entry]) -> list[Entry]:
        """Link what is there; returns the entries of which there is no object, or none as we wrote it."""
        return [entry for entry in entries if not self._link(entry)]

    def can_link(self) -> bool:
        """Return whether the filesystem knows hard links at all."""
        probe, other = self.view.with_name("probe"), self.view.with_name("probe-2")
        create(probe)
        try:
            self.make_link(str(probe), str(other))
        except OSError:
            return False
        else:
            other.unlink()
            return True
        finally:
            probe.unlink()

    def close(self) -> None:
        """Make the folders read-only: what would write into them fails at once, and in its own code."""
        for folder in self._folders:
            os.chmod(folder, _READ_ONLY_FOLDER)

    @property
    def primitive(self) -> str:
        return "copy" if self.copies else "hardlink"

    def _link(self, entry: Entry) -> bool:
        source, target = self.objects.place(entry.hash), f"{self.view}/{entry.path}"
        try:
            self._make_folder(os.path.dirname(target))
            self._link_or_copy(source, target)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno in _NAMES:
                raise _unnameable(entry, error) from error
            raise
        status = untouched(target)
        if status is None:
            os.unlink(target)
            self.objects.remove(entry.hash, used=True)
            return False
        self.files.append(File(path=entry.path, hash=entry.hash, size=status.st_size))
        return True

    def _link_or_copy(self, source: str, target: str) -> None:
        try:
            self.make_link(source, target)
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            if untouched(source) is None:
                raise FileNotFoundError(source) from error
            create(Path(target))  # where case does not count, it could be another file's
            shutil.copyfile(source, target)
            os.chmod(target, READ_ONLY)
            os.utime(target, ns=(WRITTEN_NS, WRITTEN_NS))
            self.copies += 1

    def _make_folder(self, folder: str) -> None:
        if folder not in self._folders:
            make_folder(Path(folder))
            while folder not in self._folders and len(folder) >= len(str(self.view)):
                self._folders.add(folder)
                folder = os.path.dirname(folder)


def _unnameable(entry: Entry, error: OSError) -> DataError:
    return DataError(
        f"scratch cannot have a file {entry.path!r}",
        why=f"{error.strerror}: its filesystem has no such name, or takes it for another file's (upper and lower case)",
        fix="rename the file in the data, or set cluster.scratch to another filesystem",
    )
