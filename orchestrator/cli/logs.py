"""`orch logs`: show the log of runs."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace

from orchestrator.cli.arguments import add_selection, project_of
from orchestrator.cli.ending import say_how_it_ended
from orchestrator.cli.selection import one, select
from orchestrator.cli.tail import Tail
from orchestrator.cli.text import print_lines, print_log, say
from orchestrator.config.credentials import described
from orchestrator.errors import RequestError
from orchestrator.project import Project
from orchestrator.records.attempts import read_job_output
from orchestrator.records.experiment import ExperimentState
from orchestrator.records.record import Record, RunState
from orchestrator.refresh import refresher
from orchestrator.system.files import listed, read_text


def add_arguments(parser: ArgumentParser) -> None:
    add_selection(parser)
    parser.add_argument("-f", "--follow", action="store_true", help="follow until the run has ended, across attempts")
    parser.add_argument("--attempt", type=int, metavar="N", help="the log of one attempt (default: the latest)")


def handle(arguments: Namespace) -> int:
    project = project_of(arguments)
    name, state, records = select(project, arguments.words)
    begun = [record for record in records if record.attempts or _printed(state, record)]
    if not begun and not arguments.follow:
        say(f"{name}: none of {len(records)} chosen runs has started")
        return 0
    if arguments.follow:
        return _follow(project, name, one(records))
    for record in begun:
        number = arguments.attempt or (record.attempts[-1].number if record.attempts else record.planned.attempt)
        path = state.experiment.run(record.id).attempt(number).log
        if len(begun) > 1:
            print_lines([f"==> {record.id[:8]} {described(record.point)} (attempt {number}) <=="])
        text = read_text(path, errors="replace") if listed(path) else ""
        print_log(text or f"{_printed(state, record) or _without_log(record, number)}\n")
    return 0


def _printed(state: ExperimentState, record: Record) -> str:
    """Return the output of a job that has ended: the only trace of one that never started its run."""
    if not record.job or record.state.active or record.state is RunState.DONE:
        return ""
    launch = state.experiment.launch(record.task[0])
    return read_job_output(launch, record.job, processes=record.planned.resources.world_size)


def _without_log(record: Record, number: int) -> str:
    attempt = next((attempt for attempt in record.attempts if attempt.number == number), None)
    if attempt is None:
        raise RequestError(f"{record.id[:8]} has no attempt {number}", fix=f"it has 1 to {len(record.attempts)}")
    return attempt.failure.traceback if attempt.failure else f"no log: {attempt.reason or 'it has just begun'}"


def _follow(project: Project, name: str, record: Record) -> int:
    tails: dict[int, Tail] = {}
    told = ""
    refresh = refresher(project, name)
    while True:
        record = refresh().records[record.id]
        for attempt in record.history:
            path = project.runs.experiment(name).run(record.id).attempt(attempt.number).log
            tails.setdefault(attempt.number, Tail(path)).copy()
        if not tails and not told:
            told = f"{record.id[:8]}: {record.state.value}, {record.reason}"
            say(told)
        if not record.state.active:
            return say_how_it_ended(record)
        time.sleep(0.5)
