"""Making an experiment one's own whose launches were made elsewhere, or by an older version. It submits nothing."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence

from orchestrator.config.credentials import masked_url
from orchestrator.errors import StateError
from orchestrator.records.experiment import ExperimentState
from orchestrator.records.launches import Launch, remember, was_made_here
from orchestrator.records.ownership import unprotected
from orchestrator.records.record import RunState


def foreign(state: ExperimentState) -> list[Launch]:
    """Return the launches that were not made here. Raises StateError where the folders are not this user's alone."""
    if why := unprotected(state.experiment, state.launches):
        raise StateError(
            f"{state.experiment.name} cannot be adopted",
            why=why,
            fix=f"copy it into a folder of yours, or: chmod -R go-w {state.experiment.path}",
        )
    return [launch for launch in state.launches if not was_made_here(launch)]


def consequences(state: ExperimentState, launches: Sequence[Launch]) -> list[str]:
    """Return what launches could do once they are adopted, each with what it names."""
    numbers = {launch.number for launch in launches}
    records = [record for record in state.records.values() if record.planned.launch in numbers]
    waiting = Counter(state.launch(r.planned.launch).header.cluster_kind for r in records if _can_start(r.state))
    commands = {shlex.join(launch.header.launch.notify): None for launch in launches if launch.header.launch.notify}
    lines = {str(line): None for launch in launches for line in _setup(launch)}
    uris = [launch.header.tracking.get("uri") for launch in launches]
    servers = {masked_url(str(uri)): None for uri in uris if uri}
    trees = {str(header.get("tree")): None for launch in launches for header in launch.header.code}
    return [
        *(f"{number} runs that wait can be submitted to {kind}" for kind, number in sorted(waiting.items())),
        *(f"notify command: {command!r}" for command in commands),
        *(f"setup line of jobs: {line!r}" for line in lines),
        *(f"metrics and files are sent to {uri}, with your credentials" for uri in servers),
        *([f"frozen code can be run, {len(trees)} trees: {state.experiment.path / 'code'}"] if trees else []),
    ]


def adopt(launches: Sequence[Launch]) -> None:
    """Remember launches as made here."""
    for launch in launches:
        remember(launch.token, launch.paths.path)


def _can_start(state: RunState) -> bool:
    return state in {RunState.WAITING, RunState.INTERRUPTED, RunState.UNKNOWN}


def _setup(launch: Launch) -> Sequence[object]:
    lines = launch.header.cluster.get("setup")
    return lines if isinstance(lines, list | tuple) else [lines] if lines else []
