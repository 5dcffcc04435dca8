"""`orch status`: show experiments, or the runs of one."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from orchestrator.cli.arguments import add_hidden, add_json, add_selection, project_of
from orchestrator.cli.selection import select, shown
from orchestrator.cli.status_table import status_lines
from orchestrator.cli.text import print_json, print_lines, say, table
from orchestrator.project import Project
from orchestrator.records.experiment import ExperimentState
from orchestrator.refresh import count_states, read
from orchestrator.report.forecast import forecast
from orchestrator.report.summary import record_json
from orchestrator.report.usage import most


def add_arguments(parser: ArgumentParser) -> None:
    add_selection(parser)
    parser.add_argument("-w", "--watch", action="store_true", help="update live, until all runs have ended")
    add_hidden(parser)
    parser.add_argument("--all", action="store_true", help="list every run, however many")
    add_json(parser)


def handle(arguments: Namespace) -> int:
    project = project_of(arguments)
    if not arguments.words and len(list(project.runs.experiments())) != 1:
        return _overview(project, as_json=arguments.json)
    name, state, records = select(project, arguments.words)
    records = shown(state, records, arguments)
    if arguments.watch:
        return _watch(project, name)
    if arguments.json:
        runs = [record_json(record) for record in records]
        print_json({"experiment": name, **outlook_json(state, time.time()), "runs": runs})
    else:
        print_lines(status_lines(state, records, everything=arguments.all))
    return 0


def _watch(project: Project, name: str) -> int:
    from orchestrator.cli.ending import exit_status
    from orchestrator.cli.watch import Watch

    Watch(project, name).until_ended()
    return exit_status(read(project, name).records.values())


def _overview(project: Project, *, as_json: bool) -> int:
    found = {paths.name: count_states(project, paths) for paths in project.runs.experiments()}
    if as_json:
        print_json(found)
    elif not found:
        say(f"no experiments in {project.runs.path}", "start one: orch launch experiment=NAME")
    else:
        rows = [[name, ", ".join(f"{n} {state}" for state, n in counts.items())] for name, counts in found.items()]
        print_lines(table(["EXPERIMENT", "RUNS THAT HAVE STARTED"], rows))
    return 0


def outlook_json(state: ExperimentState, now: float) -> dict[str, object]:
    """Return the forecast and the usage of a whole experiment."""
    end = forecast(state.records.values(), now)
    at = now + end.seconds if end and end.seconds is not None else None
    return {
        "end": {**asdict(end), "at": at} if end else None,
        "usage": asdict(most(state.records.values(), now)),
    }
