"""`orch release`: let held runs start, and those that wait for a canary."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from orchestrator import api
from orchestrator.cli.arguments import add_selection
from orchestrator.cli.waiting import act_on_waiting


def add_arguments(parser: ArgumentParser) -> None:
    add_selection(parser)


def handle(arguments: Namespace) -> int:
    return act_on_waiting(arguments, "released", api.release)
