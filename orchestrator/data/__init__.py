"""Data versions: the exact files a run sees, and how they come to its node.

`resolve` turns what an experiment names into a `Manifest` (on the login node, at launch); a `Store` on
the node's scratch turns a manifest into a folder with exactly these files, verified by their hashes.
Nothing here knows of runs, schedulers or configuration. Only `dvc_probe` and `dvc_remote`, programs of their own,
import DVC, and only `bucket` knows S3.
"""

from orchestrator.data.manifest import Entry, Manifest
from orchestrator.data.options import Staging
from orchestrator.data.sources.resolve import fetcher_of, resolve
from orchestrator.data.store.progress import Progress
from orchestrator.data.store.scratch import scratch_base, scratch_dir
from orchestrator.data.store.store import Staged, Store
from orchestrator.data.store.versions import Version

__all__ = [
    "Entry",
    "Manifest",
    "Progress",
    "Staged",
    "Staging",
    "Store",
    "Version",
    "fetcher_of",
    "resolve",
    "scratch_base",
    "scratch_dir",
]
