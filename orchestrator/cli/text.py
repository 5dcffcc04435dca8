"""Text for people and programs: lines, tables, colours, JSON."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import IO

ROWS = 50
"""How many rows a verb lists before it asks for --all."""

_CODES = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "grey": "90", "bold": "1"}


_OURS = re.compile(r"\x1b\[(?:0|1|3[1-4]|90)m")
_COLOURS = re.compile(r"\x1b\[[0-9;:]*m")
_HIDES = re.compile(r"(?:\[|;)0*8(?:;|m)")  # SGR 8: invisible text
_TURNS = "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"  # they reorder the text of a line
_CONTROL = re.compile(rf"\r\n|\x1b\[[0-9;:]*m|[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff{_TURNS}]")


def harmless(text: str, *, log: bool = False) -> str:
    """Return text that is safe to show on a terminal: control characters are written as escapes.

    Tabs, line ends and the colours of `orch` stay; with `log`, so do other colours and the carriage returns of
    progress bars.
    """

    def neutral(found: re.Match[str]) -> str:
        part = found[0]
        kept = (_COLOURS.fullmatch(part) and not _HIDES.search(part)) if log else _OURS.fullmatch(part)
        if kept or part == "\r\n" or (log and part == "\r"):
            return part
        return "".join(_escaped(character) for character in part)

    return _CONTROL.sub(neutral, text)


def _escaped(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def paint(text: str, colour: str, stream: IO[str]) -> str:
    """Return text in a colour if the stream is a terminal and NO_COLOR is not set."""
    if os.environ.get("NO_COLOR") or not stream.isatty():
        return text
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m"


class Formatter(logging.Formatter):
    """Formats log records for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return harmless(super().format(record))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return aligned lines; columns without any content are left out."""
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    columns = [[header[i], *(harmless(row[i]).replace("\n", "\\n") for row in rows)] for i in kept]
    widths = [max(map(len, column)) for column in columns]
    aligned = ([cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in zip(*columns, strict=True))
    return ["  ".join(cells).rstrip() for cells in aligned]


def say(*lines: str) -> None:
    """Print to standard error."""
    for line in lines:
        print(harmless(line), file=sys.stderr, flush=True)


def confirmed(question: str) -> bool | None:
    """Ask for a yes at the terminal; None if there is no terminal."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    print(f"{harmless(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def print_lines(lines: Iterable[str]) -> None:
    """Print a result."""
    for line in lines:
        print(harmless(line))


def print_log(text: str) -> None:
    """Print a run's log, or a part of it, as it is."""
    sys.stdout.write(harmless(text, log=True))


def print_json(document: object) -> None:
    """Print a result as JSON."""
    print(json.dumps(document, indent=1, default=str))
