"""`orch ui`: bring MLflow up to date and open its UI on loopback."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from orchestrator.cli.arguments import project_of
from orchestrator.cli.text import print_lines, say
from orchestrator.errors import OrchError, RequestError
from orchestrator.project import Project
from orchestrator.records.ownership import why_read_only
from orchestrator.system.extras import require
from orchestrator.tracking import stores


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="only bring MLflow up to date")
    parser.add_argument("--port", type=int, help="the port (default: 20000 + your user id, or the next free one)")
    parser.add_argument("--open", action="store_true", help="open it in your browser")


def handle(arguments: Namespace) -> int:
    from orchestrator.cli.server import serve

    project = project_of(arguments)
    names = [paths.name for paths in project.runs.experiments()]
    if not names:
        raise RequestError(f"no experiments in {project.runs.path}", fix="start one: orch launch experiment=NAME")
    servers = {name: uri for name in names if (uri := stores.server_of(project, name))}
    own = [name for name in names if not _is_read_only(project, name)]
    local = [name for name in own if name not in servers]
    if local and not arguments.once:
        require("mlflow", "the MLflow UI")
        return serve(project, own, port=arguments.port, browse=arguments.open)
    status = 0
    for name in own:
        status = max(status, sync(project, name))
    print_lines(f"{name}: {uri}" for name, uri in servers.items())
    return status


def _is_read_only(project: Project, name: str) -> bool:
    """Return whether an experiment is read only, so that nothing of it may be sent; print why."""
    why = why_read_only(project.runs.experiment(name))
    if why:
        say(f"{name}: read only: {why}")
    return bool(why)


def sync(project: Project, name: str, *, model: str | None = None) -> int:
    """Sync one experiment and print the result. A server that is down does not hold up the others."""
    try:
        report = stores.sync(project, name)
        say(f"{name}: {report.created} runs made, {report.metrics_sent} values sent")
        if done := stores.register(project, name, model=model):
            say(f"{name}: {done}")
    except OrchError as error:
        say(f"error: {error}")
        return 1
    return 0
