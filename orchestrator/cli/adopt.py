"""`orch adopt`: make copied runs your own: those that wait can then be submitted."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from orchestrator.cli.arguments import project_of
from orchestrator.cli.text import confirmed, say
from orchestrator.errors import RequestError
from orchestrator.launch import adoption
from orchestrator.refresh import read


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("experiment", metavar="EXPERIMENT", help="its name")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def handle(arguments: Namespace) -> int:
    project, name = project_of(arguments), arguments.experiment
    state = read(project, name)
    if not state.launches:
        raise RequestError(f"there is no experiment {name} in {project.runs.path}", fix="orch status lists them")
    launches = adoption.foreign(state)
    if not launches:
        say(f"{name}: it is your own already")
        return 0
    say(f"{name}: {len(launches)} of {len(state.launches)} launches were not made here. Once they are yours:")
    say(*(f"  {line}" for line in adoption.consequences(state, launches) or ["none of them can act"]))
    if not (arguments.yes or confirmed(f"adopt {name}?")):
        raise RequestError(f"{name} was not adopted", why="it needs a yes", fix="read the list, then add --yes")
    adoption.adopt(launches)
    say(f"{name}: it is your own now; nothing was submitted")
    return 0
