"""Which kind of filesystem a folder lies on, as Linux tells it. Elsewhere nothing is known, nor concluded."""

from __future__ import annotations

import re
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = frozenset(
    {
        "9p", "afs", "beegfs", "ceph", "cifs", "cvmfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2",
        "orangefs", "panfs", "pvfs2", "smb3", "smbfs", "virtiofs", "wekafs",
    }
)  # fmt: skip
_OCTAL = re.compile(r"\\([0-7]{3})")


def is_network(folder: Path, *, mounts: str | None = None) -> bool:
    """Return whether a folder, or the nearest above it that exists, lies on a filesystem that other machines share.

    What FUSE serves counts: where its bytes are, nobody can tell. `mounts` is the text of /proc/self/mountinfo.
    """
    kind = kind_of(folder, mounts=mounts)
    return kind in _NETWORK or kind.startswith("fuse")


def kind_of(folder: Path, *, mounts: str | None = None) -> str:
    """Return the kind of filesystem that a folder lies on, such as `ext4`; empty where that is not known."""
    return _mount_of(folder, mounts)[1]


def described(folder: Path, *, mounts: str | None = None) -> str:
    """Return where the filesystem is mounted that a folder lies on, and its kind: `/home (nfs4)`."""
    point, kind = _mount_of(folder, mounts)
    return f"{point} ({kind})" if kind else "an unknown filesystem"


def _mount_of(folder: Path, mounts: str | None) -> tuple[Path, str]:
    try:
        text = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape") if mounts is None else mounts
    except OSError:
        return folder, ""
    at, found = folder.resolve(), (folder, "")
    longest = -1
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) > 4 and after:
            point = Path(_OCTAL.sub(lambda found: chr(int(found[1], 8)), fields[4]))
            depth = len(point.parts)
            if depth >= longest and (point == at or point in at.parents):  # of two at one place the later one counts
                longest, found = depth, (point, after.split(" ")[0])
    return found
