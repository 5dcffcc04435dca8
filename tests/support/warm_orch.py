"""`python -m orchestrator`, with local one-process runs forked from the tests' warm parent (warm_parent.py).

    python warm_orch.py launch ...                                   `orch launch ...`
    python warm_orch.py -m orchestrator.local.workstation FOLDER     the supervisor that such a command starts

Otherwise they are equivalent to `python -m orchestrator.worker`: they are forked like packed runs.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from warm_parent import WarmProcess

sys.path[0] = str(Path.cwd())  # as with -m

from orchestrator.local import prefork, workstation  # noqa: E402 - from the path of the one that is played
from orchestrator.local.launcher import Handle, Start  # noqa: E402 - as above
from orchestrator.spec import Pack  # noqa: E402 - as above

ALONE = Pack(runs=1)


class Warm(prefork.PreforkLauncher):
    """Forks every run of one process, as if it were packed."""

    def __call__(self, start: Start) -> Handle:
        resources = replace(start.task.resources, pack=start.task.resources.pack or ALONE)
        return super().__call__(replace(start, task=replace(start.task, resources=resources)))


prefork.PreforkLauncher = Warm
prefork.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": WarmProcess})
start_detached = workstation.start_detached


def start_warm(argv: list[str], **options: Any) -> None:
    before = [word for word in argv[: argv.index("-m")] if word != "-P"]  # this file's own folder is needed
    start_detached([*before, __file__, *argv[argv.index("-m") :]], **options)


workstation.start_detached = start_warm
module = "orchestrator"
if sys.argv[1:2] == ["-m"]:
    module = sys.argv.pop(2)
    del sys.argv[1]
runpy.run_module(module, run_name="__main__", alter_sys=True)
