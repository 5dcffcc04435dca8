"""Bytes, durations and times as people read them."""

from __future__ import annotations

import re
import time

_SLURM_TIME = re.compile(r"(?:([0-9]+)-)?([0-9]+)(?::([0-9]+))?(?::([0-9]+))?")


def hours_of(text: str) -> float | None:
    """Return a time in Slurm's format in hours: MIN, MIN:SEC, H:MIN:SEC, DAYS-H, DAYS-H:MIN, DAYS-H:MIN:SEC.

    None for another text.
    """
    found = _SLURM_TIME.fullmatch(text.strip())
    if found is None:
        return None
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return int(days or 0) * 24 + hours + minutes / 60 + seconds / 3600


def size(count: float) -> str:
    """Return bytes in the unit that fits: `1.7 MB`."""
    number = float(count)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if abs(number) < 999.5 or unit == "TB":  # 999.9 would be shown as 1e+03
            break
        number /= 1000
    return f"{number:.3g} {unit}" if abs(number) < 999.5 else f"{number:,.0f} {unit}"


def about(seconds: float) -> str:
    """Return a duration in two units at most: `3 h 20 min`."""
    minutes = round(seconds / 60)
    if not minutes:
        return f"{max(1, round(seconds))} s"
    hours, days = minutes // 60, minutes // 1440
    parts = [(days, "d"), (hours % 24, "h")] if days else [(hours, "h"), (minutes % 60, "min")]
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


def clock(seconds: float) -> str:
    """Return a duration as m:ss or h:mm:ss."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def local(seconds: float | None) -> str | None:
    """Return a time, in seconds since the epoch, as local time with its zone: `2026-11-29 17:21:08 +0100`."""
    return None if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(seconds))
