"""Writes a run's checkpoints: each whole or not at all, and beside the training where memory allows a copy."""

from __future__ import annotations

import copy
import hashlib
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO

from orchestrator.config.credentials import Redact, unchanged
from orchestrator.config.secrets import redact_argument
from orchestrator.layout import BEST, AttemptPaths
from orchestrator.records.checkpoints import Checkpoint, write_latest
from orchestrator.system.files import make_folder, replacing
from orchestrator.system.memory import free_bytes
from orchestrator.worker.cause import full_disk

_log = logging.getLogger(__name__)
_ARGUMENTS = ("hyper_parameters", "datamodule_hyper_parameters")
_ROOM = 1.5
"""How much memory has to be free for a copy, in copies: pickling takes some, too."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints by temporary file, fsync and rename, in the target's own folder.

    Lightning writes to $TMPDIR and moves the file, which is not atomic across filesystems and is never synced (FACTS
    19). It keeps the arguments of a model in them: what may not be written is redacted there. Of the file `foreign`
    only weights and plain values are loaded.
    """

    def __init__(self, redact: Redact = unchanged, *, foreign: Path | None = None) -> None:
        self._redact, self._foreign = redact, foreign

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if self._foreign is not None and Path(path) == self._foreign:
            loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return loaded
        return super().load_checkpoint(path, *args, **kwargs)

    def save_checkpoint(self, checkpoint: Mapping[str, object], path: Any, storage_options: object = None) -> None:
        self.write(checkpoint, Path(path))

    def write(self, checkpoint: Mapping[str, object], target: Path) -> tuple[int, str]:
        """Write a checkpoint; return its bytes and SHA-256."""
        make_folder(target.parent)
        with replacing(target, sync=True) as temporary, temporary.open("wb") as file:
            hashed = _Hashed(file)
            torch.save({key: self._kept(key, value) for key, value in checkpoint.items()}, hashed)  # type: ignore[arg-type]  # it is only written
        return hashed.bytes, hashed.sha256

    def _kept(self, key: str, value: object) -> object:
        if key not in _ARGUMENTS or not isinstance(value, Mapping):
            return value
        if self._redact is unchanged:
            return value
        kept: Any = copy.copy(value)  # Lightning's own type, not a plain dict; the run keeps using the original
        kept.update({name: redact_argument(self._redact, name, one) for name, one in value.items()})
        return kept


class _Hashed:
    """A file that is written from its beginning to its end, and hashed on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash = file, hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        self._hash.update(data)
        self.bytes += memoryview(data).nbytes
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


class CheckpointWriter:
    """Writes the checkpoints of an attempt, one at a time, names the latest, and removes those that are not kept.

    A full disk does not end the training: the checkpoints before stay, and `refused` is called with the reason, and
    with nothing once one has been written again. Any other error is raised by the next call.
    """

    def __init__(
        self,
        attempt: AttemptPaths,
        io: AtomicCheckpointIO,
        *,
        keep: int,
        asynchronous: bool,
        force_metrics: Callable[[], object] = lambda: None,
        refused: Callable[[str], object] = lambda _: None,
    ) -> None:
        """`force_metrics` forces the metric log to the disk, before a checkpoint that counts on it is named."""
        self._attempt, self._io, self._keep = attempt, io, keep
        self._asynchronous, self._force_metrics, self._refused = asynchronous, force_metrics, refused
        self._latest: list[Checkpoint] = []
        self._best: Path | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._is_refused = self._said = False
        self.size = 0
        """The bytes of the checkpoint that was written last."""

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def wait(self) -> None:
        """Wait until what is being written is safe; raise what has gone wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if error := self._error:
            self._error = None
            raise error

    def write(self, state: Mapping[str, object], found: Checkpoint, *, latest: bool, best: bool, now: bool) -> None:
        """Write a state, to be resumed from if it is the `latest`; `now`: do not return before it is safe."""
        self.wait()
        copied = None if now or not self._asynchronous else self._copied(state)
        if copied is None:
            self._write(state, found, latest=latest, best=best)
            self.wait()
            return
        self._thread = threading.Thread(
            target=self._write, args=(copied, found), kwargs={"latest": latest, "best": best}, name="checkpoint"
        )
        self._thread.start()

    def written(self, found: Checkpoint, *, latest: bool, best: bool) -> None:
        """Take a checkpoint that is safe already, in a file or a folder that others have written."""
        self._force_metrics()
        if latest:
            self._latest = [found, *self._latest]
            write_latest(self._attempt, self._latest[: self._keep])
        before, self._best = self._best, found.path if best else self._best
        kept = {one.path for one in self._latest[: self._keep]} | {self._best}
        for path in {one.path for one in self._latest} | {before} - {None}:
            if path is not None and path not in kept:
                _remove(path)
        self._latest = self._latest[: self._keep]
        if best:
            _link(found.path, found.path.with_name(BEST))

    def _write(self, state: Mapping[str, object], found: Checkpoint, *, latest: bool, best: bool) -> None:
        try:
            size, sha256 = self._io.write(state, found.path)
            self.size = size
            done = Checkpoint(
                path=found.path,
                step=found.step,
                epoch=found.epoch,
                bytes=size,
                sha256=sha256,
                metrics_bytes=found.metrics_bytes,
            )
            self.written(done, latest=latest, best=best)
            self._say_refused("")
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread of the training
            if full := full_disk(error):
                self._say_refused(f"step {found.step} was not saved: {full}")
            else:
                self._error = error

    def _say_refused(self, reason: str) -> None:
        if bool(reason) != self._is_refused:
            self._is_refused = bool(reason)
            _log.warning("%s; the training goes on", reason) if reason else _log.info("checkpoints are saved again")
            with suppress(OSError):  # of the same disk
                self._refused(reason)

    def _copied(self, state: Mapping[str, object]) -> Mapping[str, object] | None:
        """Return a copy that nothing changes any more, in the host's memory; None where it cannot be made."""
        size = sum(one.untyped_storage().nbytes() for one in _tensors(state))
        room = free_bytes()
        if room < _ROOM * size:
            if not self._said:
                self._said = True
                _log.info("checkpoints are written while the training waits: too little memory for a copy")
            return None
        moved = {id(one): one.detach().cpu() for one in _tensors(state) if one.device.type != "cpu"}
        try:
            return copy.deepcopy(dict(state), dict(moved))
        except Exception:  # noqa: BLE001 - users keep all sorts of things in a checkpoint; it may still be pickled
            return None


def _tensors(node: object) -> Iterator[torch.Tensor]:
    if isinstance(node, torch.Tensor):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _tensors(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _tensors(value)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except IsADirectoryError:  # of a sharded strategy
        shutil.rmtree(path)


def _link(path: Path, name: Path) -> None:
    """Give a checkpoint another name, for people; where the filesystem has no links it goes without."""
    with suppress(OSError), replacing(name) as temporary:
        temporary.unlink()
        temporary.hardlink_to(path)
