"""Streams that are closed, full or ASCII, and Ctrl-C at any moment: an exit status, and no traceback."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from campaigns import SEED, amount

ORCH = (sys.executable, "-m", "orchestrator")
WORDS = (
    ("--help",),
    ("plan", "experiment=digits_lr", "--json"),
    ("status", "x" * 300),
    ("status", "--runs", "r" * 5000),
)
REDIRECTS = (">&-", ">/dev/full", "2>/dev/full", "| head -c 1", "<&- >&- 2>&-")
CASES = [
    (words, each)
    for words in WORDS
    for each in REDIRECTS
    if words[0] != "plan" or each in {">/dev/full", "| head -c 1"}
]


def shell(redirect: str, words: tuple[str, ...], **environ: str) -> subprocess.CompletedProcess[str]:
    command = f'"$@" {redirect}'
    argv = ["bash", "-o", "pipefail", "-c", command, "bash", *ORCH, *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, **environ})


@pytest.mark.parametrize(("words", "redirect"), CASES)
def test_a_stream_that_takes_nothing_makes_no_traceback(words, redirect):
    done = shell(redirect, words)
    assert done.returncode in {0, 1, 2}
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if redirect == ">/dev/full" and words[0] in {"plan", "--help"}:
        assert (done.returncode, "No space left" in done.stderr) == (1, True)


def test_what_an_encoding_cannot_say_is_escaped():
    done = shell("", ("status", "größe"), PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 2, done.stderr
    assert "gr\\xf6\\xdfe" in done.stderr


def test_an_interrupt_while_modules_are_imported_makes_no_traceback():
    chance = random.Random(SEED)
    for _ in range(amount(4, 40)):
        process = subprocess.Popen([*ORCH, *WORDS[1]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(0.25 + chance.random())  # Python itself takes the first tenth, and says what it likes
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert "Traceback" not in said or "site.py" in said
        assert process.returncode in {0, 130, -signal.SIGINT}
