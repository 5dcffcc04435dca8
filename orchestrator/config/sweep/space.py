"""The distributions that `sweep.random` draws from, and the points of a seed. Pure.

A value depends on the seed, its key and the point's number alone, through SHA-256: it is the same on every machine and
with every Python. So a larger `n` only adds points, and neither another key nor the order of keys changes a value.
Floats are rounded to six significant digits: they are readable, can be given on the command line as they are shown,
and do not depend on how a C library rounds.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from decimal import Context, Decimal
from statistics import NormalDist
from typing import Any

from orchestrator.errors import ConfigError, nearest
from orchestrator.spec.search import Distribution

_DIGITS = 6
_EXACT = Context(prec=40)  # its exp and ln round correctly; those of C libraries differ in the last bit
_STEPS = 2**52

EXAMPLES: Mapping[str, str] = {
    "uniform": "uniform(0, 0.5)",
    "loguniform": "loguniform(1e-4, 1e-1)",
    "int": "int(16, 256)",
    "choice": "choice(relu, gelu)",
    "normal": "normal(0, 1)",
}
"""An example of how each kind is written."""


def distribution(key: str, kind: str, arguments: Sequence[object], *, where: str = "sweep.random") -> Distribution:
    """Return the distribution of a key. Raises ConfigError for an unknown kind, or arguments that break its rule."""
    if kind not in EXAMPLES:
        raise ConfigError(
            f"{where}: {key} is drawn from {kind}(){nearest(kind, EXAMPLES)}",
            why=f"known are {', '.join(EXAMPLES)}",
            fix=f'{key}: "{EXAMPLES["uniform"]}"',
        )
    if rule := _broken_rule(kind, arguments):
        written = ", ".join(map(str, arguments))
        raise ConfigError(f"{where}: {key} is drawn from {kind}({written})", why=rule, fix=f'{key}: "{EXAMPLES[kind]}"')
    return Distribution(kind=kind, arguments=tuple(arguments))


def at(distribution: Distribution, share: float) -> object:
    """Return the quantile of a distribution: the value below which a share of it lies; 0 < share < 1."""
    return _DRAW[distribution.kind](share, *distribution.arguments)


def drawn(space: Mapping[str, Distribution], *, n: int, seed: int) -> list[dict[str, object]]:
    """Return the points of n draws, without repeated ones."""
    points: dict[str, dict[str, object]] = {}
    for index in range(n):
        point = {key: at(each, _share(seed, key, index)) for key, each in space.items()}
        points.setdefault(json.dumps(point), point)
    return list(points.values())


def _share(seed: int, key: str, index: int) -> float:
    digest = hashlib.sha256(json.dumps([seed, key, index]).encode()).digest()
    return (int.from_bytes(digest[:8], "big") % _STEPS + 0.5) / _STEPS


def _broken_rule(kind: str, arguments: Sequence[Any]) -> str:
    """Return the rule that arguments break; empty if they break none."""
    if kind == "choice":
        return "" if arguments else "it needs values to choose from"
    numbers = (2, 3) if kind == "int" else (2,)
    if len(arguments) not in numbers or not all(map(_is_finite, arguments)):
        return "it takes two numbers" + ", or three with a step" * (kind == "int")
    low, high, *step = arguments
    if kind == "normal":
        return "" if high > 0 else "it takes a mean, and a standard deviation above zero"
    if kind == "int" and not all(isinstance(bound, int) for bound in arguments):
        return "it takes whole numbers"
    if step and step[0] < 1:
        return "its step is at least 1"
    if kind == "loguniform" and low <= 0:
        return "only positive numbers have a logarithm"
    return "" if low < high else "it takes a lower and a higher bound"


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _uniform(share: float, low: float, high: float) -> float:
    exact = _EXACT.add(Decimal(low), _EXACT.multiply(Decimal(share), _EXACT.subtract(Decimal(high), Decimal(low))))
    return _readable(exact, low, high)


def _loguniform(share: float, low: float, high: float) -> float:
    start, end = _EXACT.ln(Decimal(low)), _EXACT.ln(Decimal(high))
    exact = _EXACT.exp(_EXACT.add(start, _EXACT.multiply(Decimal(share), _EXACT.subtract(end, start))))
    return _readable(exact, low, high)


def _readable(exact: Decimal, low: float, high: float) -> float:
    return min(max(float(f"{exact:.{_DIGITS}g}"), float(low)), float(high))


def _int(share: float, low: int, high: int, step: int = 1) -> int:
    return low + step * math.floor(_EXACT.multiply(Decimal(share), Decimal((high - low) // step + 1)))


def _choice(share: float, *values: object) -> object:
    return values[int(share * len(values))]


def _normal(share: float, mean: float, deviation: float) -> float:
    return float(f"{NormalDist(float(mean), float(deviation)).inv_cdf(share):.{_DIGITS}g}")


_DRAW: Mapping[str, Callable[..., object]] = {
    "uniform": _uniform,
    "loguniform": _loguniform,
    "int": _int,
    "choice": _choice,
    "normal": _normal,
}
