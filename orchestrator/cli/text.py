"""Text for people and programs: lines, tables, colours, JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import IO

ROWS = 50
"""How many rows a verb lists before it asks for --all."""

_CODES = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "grey": "90", "bold": "1"}


def paint(text: str, colour: str, stream: IO[str]) -> str:
    """Return text in a colour, where the stream is a terminal and NO_COLOR is not set."""
    if os.environ.get("NO_COLOR") or not stream.isatty():
        return text
    return f"\x1b[{_CODES[colour]}m{text}\x1b[0m"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return aligned lines; columns without any content are left out."""
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    columns = [[header[i], *(row[i] for row in rows)] for i in kept]
    widths = [max(map(len, column)) for column in columns]
    aligned = ([cell.ljust(w) for cell, w in zip(row, widths, strict=True)] for row in zip(*columns, strict=True))
    return ["  ".join(cells).rstrip() for cells in aligned]


def say(*lines: str) -> None:
    """Print to standard error."""
    for line in lines:
        print(line, file=sys.stderr)


def print_lines(lines: Iterable[str]) -> None:
    """Print a result."""
    for line in lines:
        print(line)


def print_json(document: object) -> None:
    """Print a result as JSON."""
    print(json.dumps(document, indent=1, default=str))
