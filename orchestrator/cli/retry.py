"""`orch retry`: start failed runs again from scratch, with your current code; resume interrupted ones."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from orchestrator import api
from orchestrator.cli.arguments import add_consent_and_waiting, add_message, add_selection, project_of
from orchestrator.cli.launch import launch_prepared
from orchestrator.cli.selection import select
from orchestrator.cli.text import say
from orchestrator.records.record import RunState


def add_arguments(parser: ArgumentParser) -> None:
    add_selection(parser)
    add_message(parser)
    add_consent_and_waiting(parser)


def handle(arguments: Namespace) -> int:
    project = project_of(arguments)
    name, _, records = select(project, arguments.words)
    stopped = {RunState.FAILED, RunState.INTERRUPTED, RunState.CANCELLED}
    chosen = [record for record in records if record.state in stopped]
    if not chosen:
        say(f"{name}: none of {len(records)} chosen runs is failed, interrupted or cancelled")
        return 0
    with api.prepare_again(project, chosen, name) as prepared:
        return launch_prepared(project, prepared, arguments, rerun="never")
