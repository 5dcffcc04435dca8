"""`orch launch`: launch the missing runs of an experiment."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from orchestrator import api, clusters
from orchestrator.cli.arguments import add_consent_and_waiting, add_message, add_overrides, project_of
from orchestrator.cli.ending import exit_status
from orchestrator.cli.text import confirmed, say
from orchestrator.cli.watch import Watch, wait
from orchestrator.cluster import Waiting
from orchestrator.errors import RequestError
from orchestrator.launch.plan import Step, to_do
from orchestrator.project import Project
from orchestrator.report.summary import count, states
from orchestrator.spec.experiment import Experiment

if TYPE_CHECKING:
    from orchestrator.local.inline import Inline
    from orchestrator.prepare import Prepared


def add_arguments(parser: ArgumentParser) -> None:
    add_overrides(parser)
    add_message(parser)
    parser.add_argument("--tag", action="append", default=[], metavar="WORD", help="a word to find the launch by")
    parser.add_argument(
        "--canary", type=int, metavar="N", help="N runs first; the others once these are done, or never if one fails"
    )
    parser.add_argument(
        "--brake", type=int, metavar="K", help="after K failures with the same signature, start no more runs"
    )
    add_consent_and_waiting(parser)


def handle(arguments: Namespace) -> int:
    project = project_of(arguments)
    with api.prepare(project, [*arguments.words, *_let_loose(arguments)]) as prepared:
        say(*(f"note: {note}" for note in prepared.notes))
        return launch_prepared(project, api.tagged(prepared, arguments.tag), arguments, rerun=arguments.rerun)


def _let_loose(arguments: Namespace) -> list[str]:
    """Return the overrides that the options of a launch are short for."""
    given = {"canary": arguments.canary, "brake": arguments.brake}
    return [f"launch.{key}={value}" for key, value in given.items() if value is not None]


def launch_prepared(project: Project, prepared: Prepared, arguments: Namespace, *, rerun: Any) -> int:
    """Launch, print what was launched, and wait for it if requested; return the exit status."""
    from orchestrator.local.inline import Inline

    name = prepared.experiment.name
    cluster = clusters.cluster_for(prepared.experiment.cluster)
    launched = api.launch(
        project,
        prepared,
        cluster=cluster,
        message=arguments.message,
        rerun=rerun,
        confirm=_confirming(prepared.experiment, yes=arguments.yes),
    )
    say(*(f"note: {note}" for note in launched.notes))
    skipped = len(launched.steps) - len(to_do(launched.steps))
    if launched.paths is None:
        return _nothing_to_do(project, name, launched.steps, model=prepared.experiment.tracking.get("register"))
    number = launched.paths.number
    runs = len(to_do(launched.steps))
    say(f"{name}: launch {number:04d}, {count(runs)}, {skipped} already there or under way")
    if launched.waiting is not None:
        say(_submitted(runs, launched.waiting))
    if isinstance(cluster, Inline):
        _drive(project, name, number, cluster)
    elif arguments.wait or arguments.watch:
        wait(project, name, number, quiet=not arguments.watch)
    else:
        say(f"they run in the background: orch status {name} -w")
        return 0
    return _conclude(project, name, number)


def _nothing_to_do(project: Project, name: str, steps: Sequence[Step], *, model: str | None) -> int:
    """Print the states of the runs; return the exit status of the requested ones, not of the experiment's history.

    Registers the best one, since no job of these runs will: `model` may have been requested later.
    """
    state = api.read(project, name)
    say(f"{name}: nothing to do; {states(state)}")
    asked = (state.records[step.run.id] for step in steps if step.run.id in state.records)
    status, tracking = exit_status(asked), state.launches[-1].header.tracking
    if model and tracking["kind"] != "none" and tracking.get("register") != model:
        from orchestrator.cli.ui import sync

        status = max(status, sync(project, name, model=model))
    return status


def _confirming(experiment: Experiment, *, yes: bool) -> Callable[[Sequence[Step]], None]:
    """Return a function that shows the size of a planned launch, and raises RequestError unless it is confirmed."""
    asked = yes

    def confirm(steps: Sequence[Step]) -> None:
        nonlocal asked
        runs = len(to_do(steps))
        say(f"{experiment.name}: {count(len(steps))}, {runs:,} to submit")
        if runs > experiment.ask_above and not asked:
            _ask(runs, experiment.ask_above)
            asked = True  # if another process launches meanwhile, it is planned again

    return confirm


def _ask(runs: int, most: int) -> None:
    answer = confirmed(f"submit {runs:,} runs?")
    if answer is None:
        raise RequestError(
            f"{runs:,} runs are to be submitted",
            why=f"more than {most:,} (sweep.ask_above) need a yes",
            fix=f"check `orch plan`, then add --yes; or sweep.ask_above={runs}",
        )
    if not answer:
        raise RequestError(f"{runs:,} runs were not confirmed", why="nothing was submitted", fix="answer y, or --yes")


def _submitted(runs: int, waiting: Waiting) -> str:
    """Return how much of a launch was submitted, and what happens to the rest."""
    return f"{runs - waiting.tasks} of {runs} submitted, {waiting.tasks} waiting: {waiting.reason}; {waiting.later}"


def _drive(project: Project, name: str, number: int, cluster: Inline) -> None:
    watch = Watch(project, name, launch=number)
    try:
        cluster.run(until=lambda: not watch.tick() and False)
        watch.show()
    except KeyboardInterrupt:
        say("", f"stopped; `orch launch` continues where it stopped: orch status {name}")
        raise
    finally:
        cluster.close()


def _conclude(project: Project, name: str, number: int) -> int:
    state = api.read(project, name)
    say(f"{name}: {states(state)}", f"compare: orch compare {name}      MLflow: orch ui")
    return exit_status(record for record in state.records.values() if record.planned.launch == number)
