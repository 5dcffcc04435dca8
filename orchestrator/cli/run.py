"""`orch run`: run one run in the foreground, its output in the terminal."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from orchestrator import api, clusters
from orchestrator.cli.arguments import add_message, add_overrides, project_of
from orchestrator.cli.ending import say_how_it_ended
from orchestrator.cli.foreground import launch_and_follow
from orchestrator.cli.tail import Tail
from orchestrator.cli.text import say
from orchestrator.errors import RequestError
from orchestrator.launch.plan import Rerun
from orchestrator.project import Project
from orchestrator.system.files import listed

if TYPE_CHECKING:
    from orchestrator.prepare import Prepared


def add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)
    add_message(parser)
    parser.add_argument(
        "--on",
        metavar="CLUSTER",
        help="do a debug run there, of a few batches on one node: slurm, workstation, inline, or your own profile",
    )
    parser.add_argument(
        "--batches", type=int, metavar="N", help=f"the length of a debug run, with --on (default: {api.DEBUG_BATCHES})"
    )


def handle(arguments: Namespace) -> int:
    project = project_of(arguments)
    words, batches = _where(arguments)
    with api.prepare(project, words, batches=batches) as prepared:
        if len(prepared.experiment.runs) != 1:
            raise RequestError(
                f"{prepared.experiment.name} has {len(prepared.experiment.runs)} points",
                why="`orch run` runs a single one",
                fix="give each swept key one value, or sweep=none; or use orch launch",
            )
        say(*(f"note: {note}" for note in prepared.notes))
        cluster = clusters.cluster_for(prepared.experiment.cluster)
        if batches and cluster.background:
            record = launch_and_follow(project, prepared, cluster, message=arguments.message)
            return say_how_it_ended(record)
        rerun: Rerun = "anew" if batches else arguments.rerun
        return _run_here(project, prepared, message=arguments.message, rerun=rerun)


def _where(arguments: Namespace) -> tuple[list[str], int | None]:
    """Return the overrides, and the number of batches of a debug run; None if it is not a debug run."""
    if arguments.on is None and arguments.batches is not None:
        raise RequestError(
            "--batches is given, but --on is not",
            why="only a debug run is limited to a few batches",
            fix="orch run --on inline --batches 3 ..., or trainer.limit_train_batches=3",
        )
    if arguments.on is None:
        return arguments.words, None
    if chosen := [word for word in arguments.words if word.startswith("cluster=")]:
        raise RequestError(f"--on {arguments.on} and {chosen[0]} are given", why="each names a cluster", fix="give one")
    batches = api.DEBUG_BATCHES if arguments.batches is None else arguments.batches
    if batches < 1:
        raise RequestError(f"--batches is {batches}", why="it is at least 1", fix=f"--batches {api.DEBUG_BATCHES}")
    return [*arguments.words, f"cluster={arguments.on}"], batches


def _run_here(project: Project, prepared: Prepared, *, message: str, rerun: Rerun) -> int:
    name = prepared.experiment.name
    cluster = clusters.in_foreground(prepared.experiment.cluster)
    launched = api.launch(project, prepared, cluster=cluster, message=message, rerun=rerun)
    say(*(f"note: {note}" for note in launched.notes))
    only = launched.steps[0]
    if launched.paths is None:
        say(f"{only.run.id[:8]}: {only.reason}; --rerun always runs it again")
        return 0
    attempt = project.runs.experiment(name).run(only.run.id).attempt(only.attempt)
    tail = Tail(attempt.log)
    try:
        cluster.run(until=tail.copy)
    finally:
        tail.copy(ended=True)
        cluster.close()
    record = api.read(project, name).records[only.run.id]
    if record.failure and not listed(attempt.log):  # it died before its log was created
        say(record.failure.traceback)
    return say_how_it_ended(record)
