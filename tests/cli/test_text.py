"""What reaches the terminal: nothing in a record, a name or a log may steer it."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import cli
from orchestrator.cli.text import Formatter, harmless, paint, print_lines, say, table

CLEAR, TITLE, LINK = "\x1b[2J\x1b[H", "\x1b]0;owned\x07", "\x1b]8;;http://evil\x1b\\here"
STEERS = [
    CLEAR,
    TITLE,
    LINK,
    "ok\rno",
    "\x9b2J",
    "\x1bc",
    "\x08\x08",
    "\u202egnp",
    "\x1b[8mhidden",
    "\x1b[?1049h",
    "\x00",
]


class Terminal:
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("text", STEERS, ids=ascii)
def test_what_would_steer_a_terminal_is_shown_as_text(text: str) -> None:
    shown = harmless(f"a {text} b")
    assert shown.isprintable()
    assert shown.startswith("a ")
    assert shown.endswith(" b")


def test_tabs_lines_and_our_own_colours_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    painted = paint("failed", "red", Terminal())  # type: ignore[arg-type]  # it is only asked that
    assert harmless(f"{painted}\tünïcode 漢字\n") == f"{painted}\tünïcode 漢字\n"


def test_a_log_keeps_its_colours_and_progress_bars_but_moves_no_cursor() -> None:
    kept = "10%\r\x1b[38;5;12m20%\x1b[0m\n"
    assert harmless(kept, log=True) == kept
    for text in (CLEAR, TITLE, LINK, "\x1b[8mhidden", "\x1b[1A"):
        assert "\x1b" not in harmless(text, log=True)


@given(st.text())
def test_no_text_steers_a_terminal(text: str) -> None:
    left = re.sub(r"\x1b\[(?:0|1|3[1-4]|90)m", "", harmless(text)).replace("\r\n", "")
    assert all(character in "\t\n" or (ord(character) >= 32 and not 127 <= ord(character) < 160) for character in left)
    assert harmless(harmless(text)) == harmless(text)


def test_a_cell_makes_no_row_of_its_own() -> None:
    assert table(["A", "B"], [["x\nfake", f"y{CLEAR}"]])[1:] == ["x\\nfake  y\\x1b[2J\\x1b[H"]


def test_all_outputs_go_through_it(capsys: pytest.CaptureFixture[str]) -> None:
    say(CLEAR)
    print_lines([CLEAR])
    with pytest.raises(SystemExit):
        cli.parse([f"sta{CLEAR}"])
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "read %s", (CLEAR,), None)
    seen = capsys.readouterr()
    assert "\x1b" not in seen.out + seen.err + Formatter().format(record)
    assert "\\x1b[2J" in seen.out


def test_no_verb_prints_past_it() -> None:
    """What is written otherwise is an address, the redrawing of `watch`, or CSV for a program."""
    known = {"server.py": 1, "watch.py": 2, "compare.py": 1}
    writes = re.compile(r"\bprint\(|std(?:out|err)\.write\(|_stream\.write\(")
    found = {path.name: len(writes.findall(path.read_text())) for path in Path(cli.__file__).parent.glob("*.py")}
    assert {name: count for name, count in found.items() if count and name != "text.py"} == known
