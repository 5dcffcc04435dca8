"""The size of a launch, shown before it is submitted; above a number of runs a person says yes to it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from orchestrator.cli.render import count
from orchestrator.errors import RequestError
from orchestrator.plan import Step, to_do
from orchestrator.spec import Experiment


def confirming(experiment: Experiment, *, yes: bool) -> Callable[[Sequence[Step]], None]:
    """Return what shows the size of a planned launch, and raises RequestError where nobody wants it."""
    asked = yes

    def confirm(steps: Sequence[Step]) -> None:
        nonlocal asked
        runs = len(to_do(steps))
        print(f"{experiment.name}: {count(len(steps))}, {runs:,} to submit", file=sys.stderr)
        if runs > experiment.ask_above and not asked:
            _ask(runs, experiment.ask_above)
            asked = True  # others may launch meanwhile, and it is planned again

    return confirm


def _ask(runs: int, most: int) -> None:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise RequestError(
            f"{runs:,} runs are to be submitted", why=f"more than {most:,} (sweep.ask_above) need a yes",
            fix=f"look at `orch plan`, then add --yes; or sweep.ask_above={runs}",
        )  # fmt: skip
    print(f"submit {runs:,} runs? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise RequestError(f"{runs:,} runs were not confirmed", why="nothing was submitted", fix="answer y, or --yes")
