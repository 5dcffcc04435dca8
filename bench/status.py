"""`orch status`, small and large, next to the bare reading of the same files: nothing that reads them is faster."""

from __future__ import annotations

from bench.measure import Row, in_turns, say
from bench.records import files_read, make_experiment
from bench.sandbox import PYTHON, Sandbox

_SIZES = {10: 0.15, 1_000: None, 10_000: 0.6}
_ROUNDS = 5
_READ = """
import json, sys
for path in sys.stdin.read().splitlines():
    with open(path, 'rb') as file:
        for line in file:
            json.loads(line)
"""


def rows(box: Sandbox) -> list[Row]:
    return [_row(box, count, budget) for count, budget in _SIZES.items()]


def _row(box: Sandbox, count: int, budget: float | None) -> Row:
    say(f"status: writing the records of {count:,} runs")
    runs = box.folder / f"runs-{count}"
    paths = make_experiment(runs, "sweep", count)
    listing = box.folder / f"files-{count}"
    listing.write_text("\n".join(map(str, files_read(paths))))
    box.settle()
    command = ["sh", "-c", 'exec "$0" -c "$1" < "$2"', PYTHON, _READ, str(listing)]
    sides = {
        "ours": lambda: box.seconds(box.orch("status", "sweep", "--runs", str(runs))),
        "peer": lambda: box.seconds(command),
    }
    found = in_turns(f"status of {count:,}", _ROUNDS, sides)
    return Row(
        what=f"orch status ({count:,} runs)", measured=found["ours"], budget=budget,
        peer="read and parse the same files, no more", peer_measured=found["peer"],
    )  # fmt: skip
