"""Copy claims: which process copies a version to this node, so that the others can wait for it instead.

    copiers/<digest>/<holder>      an empty file in a folder: the claim
    work/<holder>/                 what a process has not finished; swept once that is dead
    work/<holder>/progress.json    how far it is

A claim saves work, and nothing is wrong if two processes hold it: that happens only if one seems dead, or has stood
still for STALLED_SECONDS. The claim of a dead copier is removed by its own name, which is never used again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from orchestrator.data.store.holder import Ask, Holder
from orchestrator.data.store.progress import Progress, Report
from orchestrator.data.store.versions import names_in, remove_tree
from orchestrator.system.files import create, make_folder, replace_text, take_by_rename

log = logging.getLogger(__name__)

STALLED_SECONDS = 600.0
_LOOK_SECONDS = (0.02, 0.5)
_REPORT_SECONDS = 1.0
_LOG_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class CopyClaims:
    """The copy claims of the store at `root`."""

    root: Path
    ask: Ask | None = None

    def work(self, holder: Holder) -> Path:
        return self.root / "work" / holder.name

    def begin(self, holder: Holder) -> Path:
        """Return a new folder for what a process has not finished yet."""
        make_folder(self.work(holder), exist_ok=False)
        return self.work(holder)

    def claim(self, digest: str, holder: Holder) -> bool:
        """Claim a version, unless somebody has; `begin` comes before."""
        draft, claim = self.work(holder) / "claim", self._claim(digest)
        try:
            make_folder(draft, exist_ok=False)
            create(draft / holder.name)
            make_folder(claim.parent)
            return take_by_rename(draft, claim, mine=(claim / holder.name).exists)
        except OSError:
            remove_tree(draft)
            raise

    def copier(self, digest: str) -> Holder | None:
        return next(iter(_holders(self._claim(digest))), None)

    def release(self, digest: str, holder: Holder) -> None:
        """Give a claim back, or take it from a copier that is no more."""
        try:
            (self._claim(digest) / holder.name).unlink(missing_ok=True)
            self._claim(digest).rmdir()
        except OSError:
            return  # somebody has claimed it since

    def release_dead(self) -> None:
        """Take all claims from processes that are no more."""
        for digest in names_in(self.root / "copiers"):
            if (copier := self.copier(digest)) and copier.alive(self.ask) is False:
                self.release(digest, copier)

    def dead(self) -> list[Holder]:
        """Return the dead processes whose unfinished work is still there."""
        return [holder for holder in _holders(self.root / "work") if holder.alive(self.ask) is False]

    def others(self, holder: Holder | None) -> list[Holder]:
        """Return who else is, or may be, at work in this store."""
        found = _holders(self.root / "work")
        return [other for other in found if other != holder and other.alive(self.ask) is not False]

    def at_work(self, nonce: str) -> bool:
        """Return whether the process of that nonce has unfinished work here, dead or alive."""
        return any(holder.nonce == nonce for holder in _holders(self.root / "work"))

    def write_progress(self, holder: Holder, progress: Progress) -> None:
        try:
            replace_text(self.work(holder) / "progress.json", json.dumps(asdict(progress)))
        except OSError:
            log.debug("no progress could be written", exc_info=True)  # a full disk: the copying itself will say so

    def progress(self, holder: Holder) -> Progress:
        try:
            return Progress(**json.loads((self.work(holder) / "progress.json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return Progress(files=0, bytes=0, total_files=0, total_bytes=0, seconds=0.0)

    def _claim(self, digest: str) -> Path:
        return self.root / "copiers" / digest


def _holders(folder: Path) -> list[Holder]:
    return [holder for name in sorted(names_in(folder)) if (holder := Holder.parse(name))]


class Wait:
    """One process's wait for a version that others copy: look, say whom it waits for, and take over from the dead."""

    def __init__(self, claims: CopyClaims, digest: str, report: Report | None) -> None:
        self._claims, self._digest, self._report = claims, digest, report
        self._started = self._moved = time.monotonic()
        self._seen: tuple[Holder, int, int] | None = None
        self._reported = self._logged = float("-inf")
        self._pause = _LOOK_SECONDS[0]

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def refresh(self) -> None:
        """Look at who copies, then sleep for a moment."""
        copier = self._claims.copier(self._digest)
        if copier is None:
            time.sleep(_LOOK_SECONDS[0])
            return
        progress = self._claims.progress(copier)
        if (seen := (copier, progress.bytes, progress.beats)) != self._seen:
            self._seen, self._moved = seen, time.monotonic()
        if copier.alive(self._claims.ask) is False:
            self._take_over(copier, "has died")
        elif time.monotonic() - self._moved > STALLED_SECONDS:
            self._take_over(copier, f"has copied nothing for {STALLED_SECONDS:.0f} s")
        else:
            self._notify(replace(progress, seconds=self.seconds, waiting_for=str(copier)))
            time.sleep(self._pause)
            self._pause = min(self._pause * 1.5, _LOOK_SECONDS[1])

    def _take_over(self, copier: Holder, why: str) -> None:
        log.warning("%s, which was to copy data version %s, %s: taking over", copier, self._digest[:12], why)
        self._claims.release(self._digest, copier)

    def _notify(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._logged >= _LOG_SECONDS:
            log.info("data version %s: %s", self._digest[:12], progress)
            self._logged = now
        if self._report and now - self._reported >= _REPORT_SECONDS:
            self._report(progress)
            self._reported = now


def outstanding_bytes(claims: CopyClaims, holder: Holder) -> int:
    """Return what other copiers have yet to write."""
    return sum(_left(progress) for progress in _each_progress(claims, holder))


def _each_progress(claims: CopyClaims, holder: Holder) -> Iterator[Progress]:
    return (claims.progress(other) for other in claims.others(holder))


def _left(progress: Progress) -> int:
    return max(0, progress.total_bytes - progress.bytes)
