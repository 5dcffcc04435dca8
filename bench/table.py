"""Rows -> text and JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from bench.measure import Row

HEADER = (
    "WHAT",
    "MEDIAN (MIN..MAX)",
    "CPU",
    "PEAK",
    "PEER",
    "ITS MEDIAN (MIN..MAX)",
    "CPU",
    "PEAK",
    "PEER/OURS",
    "BUDGET",
    "READ",
    "",
)


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the table as aligned lines."""
    cells = [HEADER, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def to_json(row: Row) -> dict[str, Any]:
    return {
        "what": row.what,
        "unit": row.unit,
        "seconds": list(row.measured),
        "at_least": row.at_least,
        "at_most": row.at_most,
        "limit": row.limit,
        "kept": row.kept,
        "peer": row.peer or None,
        "peer_seconds": list(row.peer_measured),
        "ratio": row.ratio,
        "cpu_seconds": list(row.cpu),
        "peer_cpu_seconds": list(row.peer_cpu),
        "peak_bytes": list(row.peak),
        "peer_peak_bytes": list(row.peer_peak),
    }


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.what,
        _spread(row.measured, row.unit),
        _least(row.cpu),
        _most(row.peak),
        row.peer,
        _spread(row.peer_measured, row.unit),
        _least(row.peer_cpu),
        _most(row.peer_peak),
        "" if row.ratio is None else f"{row.ratio:.3g}x",
        *_budget(row),
    )


def _budget(row: Row) -> tuple[str, str, str]:
    """Return the budget, the measured value, and the verdict: `ok`, `not ok`, or empty without a budget."""
    verdict = {None: "", True: "ok", False: "not ok"}[row.kept]
    if row.limit is not None:
        return f"<= {_amount(row.limit, row.unit)}", _amount(median(row.measured), row.unit), verdict
    if row.ratio is None or row.kept is None:
        return "", "", verdict
    if row.at_least is not None:
        return f"peer/ours >= {row.at_least:g}x", f"{row.ratio:.3g}x", verdict
    return f"ours/peer <= {row.at_most:g}x", f"{1 / row.ratio:.3g}x", verdict


def _spread(measured: Sequence[float], unit: str) -> str:
    middle, least, most = (_amount(each(measured), unit) if measured else "" for each in (median, min, max))
    return f"{middle} ({least}..{most})" if measured else ""


def _amount(value: float, unit: str) -> str:
    return _time(value) if unit == "s" else f"{value:.3g} {unit}"


def _least(seconds: Sequence[float]) -> str:
    return _time(min(seconds)) if seconds else ""


def _most(sizes: Sequence[int]) -> str:
    return f"{max(sizes) / 1e6:.0f} MB" if sizes else ""


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
