import sys

import psutil
from processes import wait_for

from orchestrator.process import start_detached


def test_a_detached_program_gets_no_terminal_and_leaves_no_zombie_with_a_parent_that_lives_on(tmp_path):
    program = "import os, sys; print(os.getpid(), os.getsid(0), flush=True); sys.stdin.read(); sys.exit(3)"
    (tmp_path / "log").write_text("before\n")
    start_detached([sys.executable, "-c", program], cwd=tmp_path, log=tmp_path / "log")
    wait_for(lambda: len((tmp_path / "log").read_text().split()) == 3, "the program to begin")
    before, pid, session = (tmp_path / "log").read_text().split()
    assert (before, session) == ("before", pid)
    wait_for(lambda: not psutil.pid_exists(int(pid)), "the program to be reaped")
