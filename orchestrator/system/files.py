"""Files of ours: private folders, files and folders that are whole or absent, and errors that name the file."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from orchestrator.errors import StateError

log = logging.getLogger(__name__)
_T = TypeVar("_T")

NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)
"""What the system says where a folder is not empty: some filesystems the one, some the other."""

NOT_JSON = (ValueError, RecursionError, LookupError, TypeError, AttributeError, OverflowError)
"""What reading a damaged JSON text raises, and taking values out of one of another shape."""

READABLE, PRIVATE = 0o644, 0o600
"""The modes of our files, of which the umask may take more: whatever it is, nobody else ever writes to them."""

PASSING = (errno.EIO, errno.ESTALE)
"""What a network filesystem may say for a moment: when a server is started again, or a file has been replaced."""
_PAUSES_SECONDS = (0.05, 0.25, 1.0)

_FOLDER = 0o755
_KEPT = 0o755  # of a file that is replaced
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def again(act: Callable[[], _T]) -> _T:
    """Do something to a file, and again where a network filesystem fails for a moment. It may be done already."""
    for pause in _PAUSES_SECONDS:
        try:
            return act()
        except OSError as error:
            if error.errno not in PASSING:
                raise
            log.debug("tried again in %s s: %s", pause, error)
        time.sleep(pause)
    return act()


def make_folder(folder: Path, *, exist_ok: bool = True) -> None:
    """Make a folder, and those above it, that nobody else may write, whatever the umask."""
    try:
        _make(folder, _FOLDER, exist_ok=exist_ok)
    except FileNotFoundError:
        make_folder(folder.parent)
        _make(folder, _FOLDER, exist_ok=exist_ok)


def _make(folder: Path, mode: int, *, exist_ok: bool = True) -> None:
    """Make a folder. An error may be a success, or come of what is remembered here: what a listing shows counts."""

    def act() -> None:
        try:
            folder.mkdir(mode)
        except FileNotFoundError:
            raise
        except OSError:
            if not (exist_ok and listed(folder) and folder.is_dir()):
                raise

    again(act)


def create(path: Path, mode: int = READABLE) -> None:
    """Make an empty file that was not there, not even as a link."""

    def act() -> None:
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode))
        except FileExistsError:
            raise
        except OSError:
            if not listed(path):  # else it was made, and only the answer was lost
                raise

    again(act)


def _create_own(path: Path, mode: int) -> None:
    """Make an empty file of a name that nobody else makes: an empty one that is there is ours, its answer was lost."""
    try:
        create(path, mode)
    except FileExistsError:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size or status.st_uid != os.getuid():
            raise


_CHOOSE = "choose another folder for runs with --runs or $ORCH_RUNS"


def make_private(folder: Path, *, choose: str = _CHOOSE) -> None:
    """Make a folder, and those above it, for this user alone. Raises StateError where that is impossible."""
    try:
        if not folder.is_dir():
            make_private(folder.parent, choose=choose)
            _make(folder, 0o700)
    except OSError as error:
        raise StateError(
            f"cannot make {folder}",
            why=error.strerror or str(error),
            fix=choose,
        ) from error


def user_of(uid: int) -> str:
    """Return who has a user id, for people: `ada (uid 1000)`."""
    import pwd

    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def doubt(folder: Path, owner: int) -> str:
    """Return why a folder in a place that others may write is not to be used; nothing where it is `owner`'s alone."""
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode):
        return f"it is a symbolic link of {user_of(status.st_uid)}, and could lead anywhere"
    if not stat.S_ISDIR(status.st_mode):
        return f"it is not a folder, and belongs to {user_of(status.st_uid)}"
    if status.st_uid != owner:
        return f"it belongs to {user_of(status.st_uid)}"
    if status.st_mode & _WRITABLE_BY_OTHERS:
        return f"others may write into it (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""


def make_own(folder: Path) -> None:
    """Make a folder of the user's state as `make_private` does. Raises StateError for one that is not their own."""
    choose = "set $XDG_STATE_HOME to a folder of your own"
    make_private(folder, choose=choose)
    if why := doubt(folder, os.getuid()):
        raise StateError(f"{folder} cannot be used", why=why, fix=f"move it away, or {choose}")


@contextmanager
def reporting_write_errors(folder: Path, *, choose: str = _CHOOSE) -> Iterator[None]:
    """Raise StateError where a file of ours cannot be written in a folder: a full disk, a quota, a lost mount."""
    try:
        yield
    except OSError as error:
        raise StateError(
            f"cannot write {folder}",
            why=error.strerror or str(error),
            fix=f"free some space there, or {choose}",
        ) from error


def check_private(folder: Path) -> None:
    """Refuse a folder that others may write: they could make this user's jobs run their code."""
    status = folder.stat()
    if status.st_uid not in {os.getuid(), 0}:
        raise StateError(
            f"{folder} belongs to another user: {user_of(status.st_uid)}",
            why="its owner could change what your jobs run",
            fix="choose another folder for runs with --runs or $ORCH_RUNS",
        )
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise StateError(
            f"others may write {folder} (mode {stat.S_IMODE(status.st_mode):04o})",
            why="they could change what your jobs run",
            fix=f"chmod go-w {folder}",
        )


def temporary_beside(path: Path, *, suffix: str = "") -> Path:
    """Return a name in the same folder that no other process or host will choose."""
    import uuid

    return path.with_name(f".tmp-{uuid.uuid4().hex}{suffix}")


@contextmanager
def replacing(path: Path, *, sync: bool = False, suffix: str = "", mode: int = READABLE) -> Iterator[Path]:
    """Yield an empty file beside `path`; what is written to it becomes `path` at the end, or leaves nothing.

    A reader of `path` sees the earlier file or the new one, whole. `sync`: the file and its name are forced to the
    disk. `suffix`: what the name ends with, for a writer that reads it. `mode` is that of a new file; an earlier one's
    is kept, but for what lets others write.
    """
    temporary = temporary_beside(path, suffix=suffix)
    try:
        _create_like(path, temporary, mode)
        yield temporary
        _check_written(temporary)
        if sync:
            _sync(temporary)
        _replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if sync:
        sync_folder(path.parent)


def _replace(temporary: Path, path: Path) -> None:
    """Rename a file of a name that nobody else has: where that name is gone it was done, whatever the answer says."""

    def act() -> None:
        try:
            temporary.replace(path)
        except OSError:
            if listed(temporary) or not listed(path):
                raise

    again(act)


def _create_like(path: Path, temporary: Path, mode: int) -> None:
    """Make an empty file with the mode of an earlier one, if there is any."""
    _create_own(temporary, mode)
    with suppress(FileNotFoundError):
        earlier = path.lstat().st_mode
        if stat.S_ISREG(earlier):
            temporary.chmod(earlier & _KEPT | stat.S_IWUSR)
    os.utime(temporary, ns=(0, 0))


def _check_written(temporary: Path) -> None:
    """Raise FileNotFoundError where nothing was written, not even that a file is empty."""
    status = temporary.stat()
    if not status.st_size and not status.st_mtime_ns:
        raise FileNotFoundError(errno.ENOENT, "nothing was written", str(temporary))


def replace_text(path: Path, text: str, *, sync: bool = False, mode: int = READABLE) -> None:
    """Write a file so that a reader sees it whole or not at all."""
    replace_bytes(path, text.encode(), sync=sync, mode=mode)


def replace_bytes(path: Path, content: bytes, *, sync: bool = False, mode: int = READABLE) -> None:
    """Write a file as `replace_text` does. Raises OSError where that is impossible, and then leaves nothing."""
    with replacing(path, sync=sync, mode=mode) as temporary:
        temporary.write_bytes(content)
        if not content:
            os.utime(temporary)


def close_to_others(folder: Path) -> None:
    """Let nobody else write the files of a folder: another's code has made them, by the umask."""
    with os.scandir(folder) as entries:
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISREG(mode) and mode & _WRITABLE_BY_OTHERS:
                Path(entry.path).chmod(stat.S_IMODE(mode) & ~_WRITABLE_BY_OTHERS)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, where its filesystem can do that: some network filesystems cannot."""
    try:
        _sync(folder)
    except OSError as error:
        log.debug("cannot force the folder %s to the disk: %s", folder, error)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` for a folder to fill and then to rename; what is left there at the end is removed."""
    draft = temporary_beside(path)
    try:
        yield draft
    finally:
        _remove_draft(draft)


def _remove_draft(draft: Path) -> None:
    """Remove a draft if a listing still shows it.

    The rename of one may be done though it is reported as failed: then the draft's name, which is still known here,
    leads to what was published.
    """
    with suppress(OSError):
        if listed(draft):
            shutil.rmtree(draft, ignore_errors=True)


def take_by_rename(draft: Path, path: Path, *, mine: Callable[[], bool]) -> bool:
    """Rename a filled folder to a name that only one can have; return False if somebody else has it.

    `mine` looks at `path`, and says whether what lies there is ours: over NFS an answer can be lost and the rename
    repeated, which then fails although it has succeeded. An empty folder is nobody's, and is replaced.
    Raises OSError where the rename fails for another reason. The draft is gone after a failure, unless its folder
    cannot be listed.
    """
    try:
        again(lambda: draft.rename(path))
    except OSError as error:
        _remove_draft(draft)
        if listed(path) and mine():  # the listing first: the name may be remembered here as missing
            return True
        if error.errno in NOT_EMPTY or names_in(path):
            return False
        raise
    return True


def try_lock(descriptor: int) -> bool:
    """Lock an open file for this process with flock(2); return False if another one has. For a local disk only.

    Raises OSError where its filesystem has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def locks_work(path: Path) -> bool:
    """Return whether flock(2) keeps others out of a file that this process has locked: not so on all filesystems."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, *, mode: int = READABLE) -> None:
    """Write a new file. Raises FileExistsError where there is one that is not empty."""
    write_bytes(path, text.encode(), mode=mode)


def write_bytes(path: Path, content: bytes, *, mode: int = READABLE) -> None:
    """Write a new file as `write_text` does."""
    _create_own(path, mode)
    path.write_bytes(content)


def lies_in(path: Path, folder: Path) -> bool:
    """Return whether a path leads into a folder, whatever links are on the way."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # links in a circle, or a NUL
        return False


def open_file(path: Path) -> BinaryIO:
    """Open a file of ours to be read, which others may have put there: a file, no link to one, nor what would hang.

    Raises OSError.
    """
    descriptor = again(lambda: os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENXIO, "it is not a regular file", str(path))  # as open(2) says of a socket
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path) -> bytes:
    """Return the content of a file as `open_file` opens it."""

    def act() -> bytes:
        with open_file(path) as file:
            return file.read()

    return again(act)


def read_text(path: Path, *, errors: str = "strict") -> str:
    """Return the text of a file as `open_file` opens it."""
    return read_bytes(path).decode(errors=errors)


def read_json(path: Path) -> dict[str, object]:
    try:
        value = json.loads(read_bytes(path))
    except (OSError, *NOT_JSON) as error:
        raise unreadable(path, error) from error
    return as_object(path, value)


@contextmanager
def parsing(path: Path) -> Iterator[None]:
    """Raise StateError where a file of ours is not what was written; FileNotFoundError where there is none."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (OSError, *NOT_JSON) as error:
        raise unreadable(path, error, f"{type(error).__name__}: {error!s:.200}") from error


def as_object(path: Path, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise damaged(path, f"it holds {str(value)[:40]!r} instead of a JSON object")
    return value


def unreadable(path: Path, error: Exception, why: str = "") -> StateError:
    """Return the error of a file that cannot be read: damaged, unless it is its filesystem that fails."""
    if not isinstance(error, OSError) or error.errno not in PASSING:
        return damaged(path, why or str(error))
    return StateError(
        f"cannot read {path}",
        why=f"its filesystem fails: {error.strerror}",
        fix="try again; if it lasts, ask who runs that filesystem. Nothing shows that the file is damaged",
    )


def damaged(path: Path, why: str) -> StateError:
    return StateError(
        f"{path} is damaged",
        why=why,
        fix=f"restore it from a backup, or move {path.parent} away; the runs' own folders stay as they are",
    )


def listed(path: Path) -> bool:
    """Return whether a name is there, by listing its folder: the one way to find out what others have made.

    A client of a network filesystem believes for up to a minute that a name is missing, though another makes it in the
    meantime. A folder that is opened to be listed is asked for at the server, unless it is itself believed missing.
    Raises OSError where it cannot be listed.
    """
    return path.name in names_in(path.parent)


def inodes(folder: Path) -> dict[str, int]:
    """Return what lies in a folder, by name, each with its inode; no more than one listing."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry.inode() for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return {}


def names_in(folder: Path) -> list[str]:
    """Return the names of what lies in a folder; none where there is no such folder."""
    try:
        return os.listdir(folder)
    except NotADirectoryError:
        return []
    except FileNotFoundError:
        if folder == folder.parent or not listed(folder):
            return []
    try:
        return os.listdir(folder)  # it was only believed to be missing
    except (FileNotFoundError, NotADirectoryError):
        return []
