"""`orch show`: show everything known about a run."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import Any

from orchestrator.cli.arguments import add_json, add_selection, project_of
from orchestrator.cli.selection import one, select
from orchestrator.cli.text import print_json, print_lines
from orchestrator.cli.yaml_text import yaml_lines
from orchestrator.config.credentials import masked, masked_override
from orchestrator.records.launches import read_run_config
from orchestrator.records.planned import read_planned_run
from orchestrator.records.record import Attempt
from orchestrator.report.summary import duration, record_json
from orchestrator.spec import Attempts
from orchestrator.system.units import local


def add_arguments(parser: ArgumentParser) -> None:
    add_selection(parser, "an experiment and/or an id prefix: one run")
    add_json(parser)


def handle(arguments: Namespace) -> int:
    project = project_of(arguments)
    name, state, records = select(project, arguments.words)
    record = one(records)
    launch = state.launch(record.planned.launch)
    planned = read_planned_run(launch.paths, record.planned.index)
    config = read_run_config(launch.paths, planned, record.given)
    document = masked(
        {
            "experiment": name,
            **record_json(record),
            "folder": str(state.experiment.run(record.id).path),
            "config": config,
            "resources": {**planned.resources.to_json(), **_policy(planned.resources.attempts)},
            "data": {"digest": planned.data, **launch.header.data.get(planned.data or "", {})},
            "frozen": list(launch.header.code),
            "cluster": launch.header.cluster,
            "launched": {
                "by": launch.header.user,
                "time": launch.header.time,
                "why": launch.header.message,
                "command": f"orch launch {' '.join(map(masked_override, launch.header.overrides))}",
            },
            "attempts": [_attempt_json(attempt) for attempt in record.attempts],
        }
    )
    if arguments.json:
        print_json(document)
    else:
        print_lines(yaml_lines(_for_people(json.loads(json.dumps(document)), duration(record))))
        if record.failure:
            print_lines(["", record.failure.traceback])
    return 0


def _for_people(document: dict[str, Any], took: str) -> dict[str, object]:
    """Return the document with local times in place of seconds since 1970, and with the run's duration."""
    launched = {**document["launched"], "time": local(document["launched"]["time"])}
    times = {key: local(document[key]) for key in ("started", "ended")}
    attempts = [
        {**each, "started": local(each["started"]), "ended": local(each["ended"])} for each in document["attempts"]
    ]
    return {**document, **times, "took": took or None, "launched": launched, "attempts": attempts}


def _policy(attempts: Attempts | None) -> dict[str, object]:
    """Return when the run is started again by itself, with all keys."""
    return {"attempts": asdict(attempts)} if attempts else {}


def _attempt_json(attempt: Attempt) -> dict[str, object]:
    claim = attempt.claim
    return {
        "attempt": attempt.number,
        "state": attempt.state.value,
        "reason": attempt.reason,
        "cause": attempt.cause or None,
        "started": claim.time if claim else None,
        "ended": attempt.ended,
        "step": attempt.progress.get("step"),
        "launch": claim.launch if claim else None,
        "code": claim.code if claim else None,
        "host": claim.process.host if claim else None,
        "pid": claim.process.pid if claim else None,
        "staged": dict(attempt.data),
        "usage": dict(attempt.usage),
    }
