"""`python -m bench [NAME...] [--json]`: measure, then print one table on standard output.

Exit status: 0 ok; 1 a budget was missed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
from collections.abc import Sequence

from bench import table
from bench.measure import Row, say
from bench.sandbox import sandbox

# Benchmarks that load torch or MLflow into this process come last.
BENCHMARKS = (
    "startup",
    "status",
    "plan",
    "launch",
    "stage",
    "stage_scale",
    "job_start",
    "pack",
    "search",
    "steps",
    "checkpoints",
    "uploaders",
    "metric",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the budgets next to their peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)} (default: all)")
    parser.add_argument("--json", action="store_true", help="as JSON: all samples, in seconds")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(BENCHMARKS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    logging.disable(logging.WARNING)  # messages of libraries
    rows = [row for name in BENCHMARKS if name in (arguments.names or BENCHMARKS) for row in _rows(name)]
    lines = [json.dumps([table.to_json(row) for row in rows], indent=1)] if arguments.json else table.lines(rows)
    print("\n".join(lines))
    return exit_status(rows)


def exit_status(rows: Sequence[Row]) -> int:
    """Return 1 if a budget was missed, otherwise 0."""
    return 1 if any(row.kept is False for row in rows) else 0


def _rows(name: str) -> list[Row]:
    say(f"{name} ...")
    with sandbox() as box:
        found: list[Row] = importlib.import_module(f"bench.{name}").rows(box)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
