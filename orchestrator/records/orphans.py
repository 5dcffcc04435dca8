"""Record, at the next refresh, attempts that ended without a final event: killed, out of memory, node lost.

A supervisor does so for its own runs; a scheduler that no `orch` process watches does not. What is written is what
the record already says, so that it is still known when the scheduler has forgotten, and in the index.
"""

from __future__ import annotations

import logging
from dataclasses import asdict

from orchestrator.cluster import Observation
from orchestrator.errors import StateError
from orchestrator.layout import ExperimentPaths, RunPaths
from orchestrator.records.attempts import mark_state, read_marks, strength_of, write_observed
from orchestrator.records.experiment import ExperimentState
from orchestrator.records.record import Attempt, Record, RunState

_log = logging.getLogger(__name__)
_ENDED = frozenset({RunState.FAILED, RunState.INTERRUPTED, RunState.CANCELLED})
_AT_ONCE = 500
"""Looking stays quick where many have died at once; the next look goes on."""


def record_orphans(state: ExperimentState) -> list[Record]:
    """Write down how attempts ended where that is known and not yet written; returns the records that is new for.

    A user who may not write can still read.
    """
    news = [record for record in _ended(state) if record.begun][:_AT_ONCE]
    replaced = [record for record in state.records.values() if any(map(_replaced, record.attempts[:-1]))][:_AT_ONCE]
    try:
        for record in news:
            _write(state.experiment, record)
        for record in replaced:
            _write_replaced(state.experiment, record)
    except (OSError, StateError) as error:
        _log.info("not written down: %s", error)
        return []
    return list({record.id: record for record in (*news, *replaced)}.values())


def _ended(state: ExperimentState) -> list[Record]:
    """Return the records of runs that have ended while nobody watched, where the index does not say so."""
    candidates = [record for record in state.records.values() if record.state in _ENDED and _unattended(record)]
    known = read_marks(state.experiment) if candidates else {}
    return [record for record in candidates if _differs(record, known.get(record.id))]


def _unattended(record: Record) -> bool:
    return record.observation is not None and record.observation.unattended


def _differs(record: Record, mark: tuple[int, str] | None) -> bool:
    """Return whether a mark of the record's would change what the index says."""
    number = record.last.number if record.last else 0
    if mark is None or mark[0] != number:
        return True
    return strength_of(mark[1]) < strength_of(record.state.value)


def _replaced(attempt: Attempt) -> bool:
    return attempt.claim is not None and not attempt.final


def _write(experiment: ExperimentPaths, record: Record) -> None:
    """Write the event before the mark: the mark says that both are there."""
    last, seen = record.last, record.observation
    if last is None or seen is None:
        return
    if last.ended is None:
        run, kind = experiment.run(record.id), "failed" if last.failure else "interrupted"
        write_observed(run, last.number, kind, reason=seen.reason, **_failure(last), ended=_end(last, seen))
    mark_state(experiment, record.id, last.number, record.state.value)


def _write_replaced(experiment: ExperimentPaths, record: Record) -> None:
    """Record the end of attempts that were killed so suddenly that only the next attempt is evidence of it."""
    for attempt in filter(_replaced, record.attempts[:-1]):
        record_replaced(experiment.run(record.id), attempt)


def record_replaced(run: RunPaths, attempt: Attempt) -> None:
    """Record the end of an attempt whose job was started again before it could write a final event."""
    ending = "killed with its node, or by Slurm; its job was started again"
    write_observed(run, attempt.number, "interrupted", reason=ending, cause="node_failed", ended=_end(attempt, None))


def _failure(last: Attempt) -> dict[str, object]:
    return asdict(last.failure) if last.failure else {}


def _end(attempt: Attempt, seen: Observation | None) -> float | None:
    """Return when an attempt ended, as far as that is known: at the latest when it was last heard of."""
    return (seen.ended if seen else None) or attempt.heard or (attempt.claim.time if attempt.claim else None)
