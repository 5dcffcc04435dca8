"""Two runs side by side: what differs in config, code, data and environment."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator import ledger
from orchestrator.credentials import MASK, is_credential
from orchestrator.ledger import Launch, Ledger
from orchestrator.record import Record

_TEXT_LIMIT = 200_000


def lines(book_a: Ledger, a: Record, book_b: Ledger, b: Record) -> list[str]:
    """Return the differences as text, section by section; sections without any say so."""
    from orchestrator.environment import Environment, differences

    launch_a, launch_b = book_a.launch(a.planned.launch), book_b.launch(b.planned.launch)
    sections = {
        "config": list(_config(launch_a, a, launch_b, b)),
        "data": list(_data(launch_a, a, launch_b, b)),
        "environment": differences(
            Environment.from_json(launch_a.header["environment"]), Environment.from_json(launch_b.header["environment"])
        ),
        "code": list(_code(book_a, a, book_b, b)),
    }
    told = [f"- {a.id} ({a.state.value})", f"+ {b.id} ({b.state.value})"]
    for name, found in sections.items():
        told += [f"{name}:" if found else f"{name}: the same", *(f"  {line}" for line in found)]
    return told


def _line(launch: Launch, record: Record) -> dict[str, Any]:
    return ledger.read_line(launch.paths, record.planned.index)


def _config(launch_a: Launch, a: Record, launch_b: Launch, b: Record) -> Iterator[str]:
    line_a, line_b = _line(launch_a, a), _line(launch_b, b)
    one = dict(leaves({**ledger.read_config(launch_a.paths, line_a, a.given), "resources": line_a["resources"]}))
    two = dict(leaves({**ledger.read_config(launch_b.paths, line_b, b.given), "resources": line_b["resources"]}))
    for key in dict.fromkeys([*one, *two]):
        if one.get(key) != two.get(key) or (key in one) != (key in two):
            yield f"{key}: {one.get(key, '(not there)')} -> {two.get(key, '(not there)')}"


def leaves(tree: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a configuration by their dotted keys; an empty mapping is a leaf."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, f"{at}.{key}" if at else str(key))
    else:
        yield at, MASK if is_credential(at, tree) else tree


def _data(launch_a: Launch, a: Record, launch_b: Launch, b: Record) -> Iterator[str]:
    one, two = _line(launch_a, a)["data"], _line(launch_b, b)["data"]
    if one != two:
        yield f"{one or 'no data version'} -> {two or 'no data version'}"


def _code(book_a: Ledger, a: Record, book_b: Ledger, b: Record) -> Iterator[str]:
    if a.code == b.code:
        return
    yield f"tree {a.code[:12]} -> {b.code[:12]}"
    one = _files(book_a.experiment.code(a.code.split("+")[0]).tree)
    two = _files(book_b.experiment.code(b.code.split("+")[0]).tree)
    for name in sorted(one.keys() | two.keys()):
        old, new = _text(one.get(name)), _text(two.get(name))
        if old != new:
            yield from difflib.unified_diff(old, new, f"a/{name}", f"b/{name}", lineterm="", n=2)


def _files(root: Path) -> dict[str, Path]:
    return {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}


def _text(path: Path | None) -> list[str]:
    if path is None:
        return []
    if path.stat().st_size > _TEXT_LIMIT:
        return [f"({path.stat().st_size} bytes)"]
    return path.read_text(errors="replace").splitlines()
