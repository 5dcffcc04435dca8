"""`orch diff`: compare two runs: config, code, data, environment."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from orchestrator.cli.arguments import add_selection, project_of
from orchestrator.cli.selection import one, select
from orchestrator.cli.text import print_lines
from orchestrator.errors import RequestError
from orchestrator.project import Project
from orchestrator.report.difference import lines
from orchestrator.report.summary import count


def add_arguments(parser: ArgumentParser) -> None:
    add_selection(parser, "two runs by id prefix, optionally after their experiment")


def handle(arguments: Namespace) -> int:
    project = project_of(arguments)
    ids = [word for word in arguments.words if not _is_experiment(project, word)]
    names = [word for word in arguments.words if _is_experiment(project, word)]
    if len(ids) != 2:
        raise RequestError(
            f"{count(len(ids))} given",
            why="a comparison needs two runs",
            fix="orch diff 3fa2 77c1, or orch diff NAME 3fa2 77c1",
        )
    found = []
    for word in ids:
        _, state, records = select(project, [*names, word])
        found.append((state, one(records)))
    print_lines(lines(*found[0], *found[1]))
    return 0


def _is_experiment(project: Project, word: str) -> bool:
    return any(paths.name == word for paths in project.runs.experiments())
