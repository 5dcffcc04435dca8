"""Processes: told apart from later ones with their number, and asked for an answer."""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
from processes import wait_for

from orchestrator.system.processes import ProcessId, ProgramError, ask, python, start_detached


def test_a_detached_program_gets_no_terminal_and_leaves_no_zombie_with_a_parent_that_lives_on(tmp_path):
    program = "import os, sys; print(os.getpid(), os.getsid(0), flush=True); sys.stdin.read(); sys.exit(3)"
    (tmp_path / "log").write_text("before\n")
    start_detached([sys.executable, "-c", program], log=tmp_path / "log")
    wait_for(lambda: len((tmp_path / "log").read_text().split()) == 3, "the program to begin")
    before, pid, session = (tmp_path / "log").read_text().split()
    assert (before, session) == ("before", pid)
    wait_for(lambda: not psutil.pid_exists(int(pid)), "the program to be reaped")


# --- which process it was -------------------------------------------------------------------------------------


def test_a_process_is_known_again_from_what_was_written_of_it():
    process = ProcessId.current()
    assert ProcessId.from_json(process.to_json()) == process
    assert process.alive() is True


@pytest.mark.parametrize(
    ("change", "alive"),
    [
        ({"started": 1.0}, True),  # the clock was set
        ({"ticks": "1"}, False),  # a later process with the same number
        ({"boot": "another"}, False),
        ({"namespace": "another"}, None),  # its number is of another container
        ({"host": "elsewhere.example"}, None),
    ],
)
def test_only_the_start_since_the_boot_tells_a_process_from_a_later_one_with_its_number(change, alive):
    assert replace(ProcessId.current(), **change).alive() is alive


def test_a_claim_of_version_0_1_is_compared_by_its_seconds_since_the_epoch():
    written = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
    process = ProcessId.from_json(written)
    assert process.to_json() == written
    assert process.alive() is True
    assert replace(process, started=process.started + 1.5).alive() is True  # the boot time drifts
    assert replace(process, started=process.started - 60).alive() is False


def test_the_remains_of_a_process_are_not_alive():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = ProcessId.of(child.pid)
    old = replace(process, ticks="")
    assert (process.alive(), old.alive()) == (True, True)
    child.stdin.close()
    wait_for(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE, "the program to end")
    assert (process.alive(), old.alive()) == (False, False)
    child.wait()


# --- asking a program of ours ---------------------------------------------------------------------------------


def answers(code: str, question: object = None) -> object:
    return ask(["-c", code], question)


def test_a_program_reads_the_question_and_its_answer_is_read():
    assert answers("import json, sys; json.dump([json.load(sys.stdin)], sys.stdout)", {"a": "größe"}) == [
        {"a": "größe"}
    ]


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("import sys; sys.exit('first\\nlast line')", 1, "last line"),
        ("import os; os._exit(3)", 3, "exit status 3"),
        ("import os; os._exit(0)", 0, "it ended without an answer"),
        ("print('{')", 0, "it ended without an answer"),
    ],
)
def test_without_an_answer_the_last_line_of_the_program_is_the_reason(code, status, reason):
    with pytest.raises(ProgramError) as refusal:
        answers(code)
    assert (refusal.value.status, refusal.value.reason) == (status, reason)


def test_a_program_of_ours_takes_no_module_from_the_folder_that_it_is_started_in(tmp_path):
    """Somebody may have put one into a folder that is looked at."""
    (tmp_path / "orchestrator").mkdir()
    (tmp_path / "orchestrator" / "__init__.py").write_text("open('it ran', 'w').close()")
    for argv, ran in ((python("-c", "import orchestrator"), False), ([sys.executable, "-m", "orchestrator"], True)):
        subprocess.run(argv, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, check=False)
        assert (tmp_path / "it ran").exists() == ran
