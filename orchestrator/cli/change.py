"""`orch change`: change the limits of runs that wait in Slurm's queue."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from functools import partial

from orchestrator import api
from orchestrator.cli.arguments import add_selection
from orchestrator.cli.waiting import act_on_waiting
from orchestrator.cluster import Change
from orchestrator.config import fields
from orchestrator.errors import RequestError

_HOURS = replace(fields.hours(), fix="--hours 8, or --hours 8:00:00")


def _number(text: str | None) -> str | float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def add_arguments(parser: ArgumentParser) -> None:
    add_selection(parser)
    parser.add_argument("--hours", metavar="H", help="the time limit of an attempt: 8, or 8:00:00, or 1-12")
    parser.add_argument("--throttle", type=int, metavar="N", help="at most N tasks of an array at once; 0: no limit")
    for name in ("partition", "account", "qos"):
        parser.add_argument(f"--{name}", metavar="NAME", help=f"another {name}")


def handle(arguments: Namespace) -> int:
    options = {key: value for key in ("partition", "account", "qos") if (value := getattr(arguments, key)) is not None}
    hours = _HOURS.check("--hours", _number(arguments.hours))
    wanted = Change(hours=hours, throttle=arguments.throttle, options=options)
    if wanted == Change():
        raise RequestError("no change is given", fix="orch change NAME --hours 8 --partition long --throttle 4")
    if arguments.throttle is not None and arguments.throttle < 0:
        raise RequestError(
            f"--throttle is {arguments.throttle}", why="it is at least 0", fix="--throttle 0 for no limit"
        )
    return act_on_waiting(arguments, "changed", partial(api.change, wanted=wanted))
