"""Imports torch, Lightning and what of ours needs them, in four fifths of the time that it takes otherwise."""

from __future__ import annotations

import gc

from orchestrator.config.lightning_names import unite


def load() -> None:
    """Import what training needs. Libraries become no garbage: nothing looks for it until they are there, or in them.

    Of the nine CPU-seconds that torch and Lightning took on a slow core, the garbage collector took two.
    """
    unite()
    gc.disable()
    try:
        import orchestrator.tracking.logger
        import orchestrator.worker.fit.checkpoints
        import orchestrator.worker.fit.trainer  # noqa: F401 - it is to be there
    finally:
        gc.enable()
    gc.freeze()
