"""A launch that nobody has asked for: runs that are to start again, and whose own jobs could not be requeued.

So it is where nodes may not submit, where the batch script was killed, and where Slurm may not requeue. The next `orch`
command publishes a launch of these runs, as they were launched, with what `recovery` decides. Two commands at the same
moment plan the same number, and one of them publishes it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from orchestrator.cluster import Cluster, JobState
from orchestrator.errors import OrchError
from orchestrator.launch import recovery
from orchestrator.launch.plan import Action
from orchestrator.launch.recovery import Again, Room
from orchestrator.records.experiment import ExperimentState
from orchestrator.records.header import LaunchHeader
from orchestrator.records.launches import Launch, publish_launch
from orchestrator.records.planned import PlannedRun
from orchestrator.records.record import Record, RunState
from orchestrator.spec import Resources
from orchestrator.system.files import read_json
from orchestrator.system.processes import ProcessId

_log = logging.getLogger(__name__)
_LATEST_SECONDS = 7 * 86_400.0
"""What ended longer ago is left to the user: nobody expects a look at an old experiment to start its runs."""


def may_start_again(record: Record) -> bool:
    """Return whether a run is worth asking `recovery` about: interrupted, by its own job's end, on a scheduler."""
    seen, last = record.observation, record.last
    return (
        record.state is RunState.INTERRUPTED
        and record.planned.resources.attempts is not None
        and record.planned.search is None
        and record.begun
        and last is not None
        and last.claim is not None
        and last.claim.job != ""
        and last.claim.launch == record.planned.launch
        and seen is not None
        and seen.state is JobState.ENDED
    )


def relaunch(state: ExperimentState, cluster_of: Mapping[str, Cluster]) -> int:
    """Launch the runs of an experiment that are to start again; return how many."""
    due = [(record, decision) for record in state.records.values() if (decision := _decision(record)) is not None]
    for launch in state.launches:
        mine = [(record, decision) for record, decision in due if record.planned.launch == launch.number]
        if mine:
            return _launch(state, launch, mine, cluster_of[launch.header.cluster_kind])  # the others come next
    return 0


def _decision(record: Record) -> Again | None:
    if not may_start_again(record):
        return None
    endings = [recovery.ending(each) for each in recovery.of_launch(record.attempts, record.planned.launch)]
    if record.last and not record.last.final:  # only its scheduler has said how it ended
        endings[-1] = replace(endings[-1], cause=recovery.cause_in(record.reason), reason=record.reason)
    need = record.planned.resources
    decision = recovery.decide(need.attempts, endings, Room(mem_gb=need.mem_gb_per_node))
    if not isinstance(decision, Again):
        return None
    ended = record.ended or (record.observation.ended if record.observation else None) or time.time()
    waited = time.time() - ended
    return decision if decision.after_minutes * 60 <= waited < _LATEST_SECONDS else None


def _launch(state: ExperimentState, launch: Launch, due: Sequence[tuple[Record, Again]], cluster: Cluster) -> int:
    try:
        bases = sorted({record.planned.base for record, _ in due})
        planned = [_planned(index, bases, *each, number=state.next_number) for index, each in enumerate(due)]
        contents = [read_json(launch.paths.base(base)) for base in bases]
        published = publish_launch(state.experiment, state.next_number, _header(launch), contents, planned)
        if published is None:
            return 0
        try:
            cluster.submit(published)
        finally:
            with suppress(OSError):
                published.complete.touch(mode=0o600)
    except OrchError as error:
        _log.warning("%s: not all runs that were interrupted start again: %s", state.experiment.name, error)
        return 0
    return len(planned)


def _header(launch: Launch) -> LaunchHeader:
    return replace(
        launch.header,
        token=os.urandom(16).hex(),
        time=time.time(),
        process=ProcessId.current(),
        message=f"runs of launch {launch.number:04d} start again by themselves",
        argv=(),
        launch=replace(launch.header.launch, canary=0),
        after=(),
    )


def _planned(index: int, bases: Sequence[int], record: Record, again: Again, *, number: int) -> PlannedRun:
    claim = record.last.claim if record.last else None
    before = record.planned
    return replace(
        before,
        launch=number,
        index=index,
        action=Action.RESUME.value,
        reason=f"interrupted: {record.reason}",
        attempt=(record.last.number if record.last else 0) + 1,
        history=claim.history if claim else before.history,
        generation=claim.generation if claim else before.generation,
        code=claim.code if claim else before.code,
        base=bases.index(before.base),
        resources=_resources(before.resources, again),
    )


def _resources(need: Resources, again: Again) -> Resources:
    """Return what the run is launched with: each on its own, with the attempts that are left."""
    found = recovery.resources(need, again)
    left = replace(need.attempts, of=again.left) if need.attempts else None
    return replace(found, pack=None, attempts=left)
