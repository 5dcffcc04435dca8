"""What a run imports is there, and garbage is looked for again: after a failure to import it, too."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest
from processes import ROOT

from orchestrator.worker.fit import libraries

LOAD = """
import gc, sys
from orchestrator.worker.fit import libraries

libraries.load()
looked_through = len(gc.get_objects())
print(gc.isenabled(), "pytorch_lightning" in sys.modules, looked_through < 10_000 < gc.get_freeze_count())
"""


def test_what_was_imported_is_not_looked_through_again():
    done = subprocess.run([sys.executable, "-c", LOAD], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 3


def test_garbage_is_looked_for_again_when_a_library_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "orchestrator.worker.fit.trainer", None)
    with pytest.raises(ImportError, match="trainer"):
        libraries.load()
    assert gc.isenabled()
