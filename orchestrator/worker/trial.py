"""A trial of an adaptive sweep: its values, suggested once, and its reports to the pruner, which may end it early."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.errors import ClusterError, OrchError
from orchestrator.records.attempts import EventWriter
from orchestrator.records.searches import read_trial, read_trial_values, write_trial_values
from orchestrator.spec import Point
from orchestrator.spec.search import Trial
from orchestrator.system.files import listed
from orchestrator.worker.assignment import Assignment

if TYPE_CHECKING:
    from orchestrator.search.study import Study

_log = logging.getLogger(__name__)
_LEADER_SECONDS = 300.0

Report = Callable[[int, float], bool]
"""Takes the number of a validation, from 1, and the objective's value; returns whether to stop the trial."""


def given(assignment: Assignment, events: EventWriter) -> Point | None:
    """Return the values that a trial trains with; None if the run is not a trial.

    Rank 0 asks the search for them when the trial first begins, and writes them down before anything is built. Later
    attempts use the same values. The other ranks wait for rank 0; raises ClusterError if they wait too long.
    """
    trial = read_trial(assignment.launch, assignment.planned)
    if trial is None:
        return None
    if not assignment.leads:
        return _await(assignment)
    found = read_trial_values(assignment.run)
    if found is None:
        found = _study(assignment, trial).ask().to_json()
        write_trial_values(assignment.run, found)
    events.write("trial", **found)
    _log.info("trial %s: %s", trial.number, " ".join(f"{k}={v}" for k, v in found["point"].items()))
    point: Point = found["point"]
    return point


def reporter(assignment: Assignment, events: EventWriter) -> Report | None:
    """Return the function that decides whether to prune a trial; None if the run is not a trial or has no pruner."""
    trial = read_trial(assignment.launch, assignment.planned)
    if trial is None or trial.search.pruner is None:
        return None
    if not assignment.leads:
        return lambda *_: False  # rank 0 decides for all
    from orchestrator.search.study import Asked

    study, values = _study(assignment, trial), read_trial_values(assignment.run)
    if values is None:
        raise ClusterError("the trial has lost its values", why=f"{assignment.run.trial} is gone", fix="orch retry")
    try:
        study.resume(Asked(**values))
    except (OrchError, OSError) as error:
        _log.warning("the trial's earlier reports cannot be read: %s", error)

    def report(validation: int, value: float) -> bool:
        try:
            stop, attrs = study.report(validation, value)
        except Exception as error:  # noqa: BLE001 - a pruner, or other trials' records, may not end a training
            _log.warning("the pruner has failed, the trial continues: %r", error)
            stop, attrs = False, {}
        finite = value if math.isfinite(value) else None
        events.write("report", validation=validation, value=finite, **({"attrs": attrs} if attrs else {}))
        return stop

    return report


def _study(assignment: Assignment, trial: Trial) -> Study:
    from orchestrator.search.study import Study

    return Study(assignment.experiment, trial.search, trial.number)


def _await(assignment: Assignment) -> Point:
    """Return the values that rank 0 has written down."""
    deadline = time.monotonic() + _LEADER_SECONDS
    while time.monotonic() < deadline:
        if listed(assignment.run.trial) and (found := read_trial_values(assignment.run)):
            point: Point = found["point"]
            return point
        time.sleep(0.1)
    raise ClusterError(
        f"rank {assignment.context.rank} has waited {_LEADER_SECONDS:.0f} s for the trial's values",
        why="rank 0 has not written them",
        fix="see the log of rank 0",
    )
