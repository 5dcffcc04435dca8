"""One attempt, from its claim to its final event. Torch and Lightning are imported only after the data is staged."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from orchestrator.config.credentials import masked
from orchestrator.config.secrets import Secrets
from orchestrator.errors import OrchError, StateError
from orchestrator.launch import dependencies, recovery, starts
from orchestrator.records.attempts import EventWriter, mark_state, read_attempts, read_claim
from orchestrator.records.checkpoints import to_resume
from orchestrator.records.launches import read_run_config
from orchestrator.records.record import RunState
from orchestrator.records.searches import read_trial
from orchestrator.snapshot import environment
from orchestrator.spec import PROJECT, STARTS, VIEW, Objective, Point
from orchestrator.system.files import listed, replace_text
from orchestrator.tracking import SpoolWriter
from orchestrator.tracking.fluent import fluent
from orchestrator.worker import cause, log, on_run_end, requeue, staging, superseded, trial
from orchestrator.worker.assignment import Assignment
from orchestrator.worker.fit import libraries
from orchestrator.worker.monitor import heartbeat
from orchestrator.worker.monitor.node import measured
from orchestrator.worker.monitor.usage import Usage
from orchestrator.worker.signals import InterruptedByInfrastructureError, StopSignal
from orchestrator.worker.upload import Uploader

_log = logging.getLogger(__name__)


Work = Callable[[Assignment, dict[str, Any], EventWriter, StopSignal], dict[str, Any]]
"""The work of a run after staging: takes the config with this node's folders, returns the data of `done`."""


def run(assignment: Assignment, stop: StopSignal, work: Work | None = None) -> int:
    """Run a claimed attempt to its final event and return the exit status: 0 done, 1 failed, 143 interrupted."""
    attempt = assignment.attempt
    events = EventWriter(attempt.events if assignment.leads else Path(os.devnull))
    usage = Usage.of(assignment.context)
    uploader = Uploader.beside(assignment)
    leave = partial(_leave, assignment, events, usage)
    with usage.followed(events) if assignment.leads else nullcontext(), superseded.watched(assignment, leave):
        try:
            with heartbeat.watched(assignment):
                status = _run(assignment, events, usage, stop, work or _train)
        except InterruptedByInfrastructureError as error:
            status = 143
            if uploader:
                uploader.release()  # it sends the rest while this process waits to be killed
            requeue.after_interruption(assignment, error)
    if uploader:  # the final event has been written
        uploader.close(float(assignment.header.tracking["end_seconds"]))
    return status


def _run(assignment: Assignment, events: EventWriter, usage: Usage, stop: StopSignal, work: Work) -> int:
    try:
        attempt = assignment.attempt.number
        events.write("started", launch=assignment.planned.launch, attempt=attempt, usage=usage.to_json())
        _mark(assignment, RunState.RUNNING)
        requeue.check(assignment)
        dependencies.require(assignment.launch)
        _check_environment(assignment)
        with measured(assignment), staging.staged(assignment, events, stop) as view:
            superseded.check(assignment)
            config = _place(assignment, view, trial.given(assignment, events))
            secrets = Secrets.of(config)
            if secrets:
                events.redact = secrets.redact
                log.redact(secrets.redact)
            if stop.received:
                raise InterruptedByInfrastructureError(stop.received)
            result = work(assignment, secrets.placed(config), events, stop)
        superseded.check(assignment)
        events.write("done", **result, usage=usage.to_json())
    except InterruptedByInfrastructureError as error:
        _say_interrupted(assignment, events, usage, error)
        raise
    except BaseException as error:
        if stopped := _cause(assignment, stop, error):
            _show(events.redact("".join(traceback.format_exception(error))))
            _say_interrupted(assignment, events, usage, stopped)
            raise stopped from error
        _fail(assignment, events, usage, error)
        return 1
    _mark(assignment, RunState.DONE)
    _log.info("done")
    if assignment.leads:
        on_run_end.ended(assignment)
    return 0


def _cause(assignment: Assignment, stop: StopSignal, error: BaseException) -> InterruptedByInfrastructureError | None:
    """Return the interruption that an error is a symptom of; None if the error itself is the cause."""
    if assignment.superseded:
        return superseded.error()
    if stop.received and not isinstance(error, OrchError) and _by_stopping(assignment, stop.received):
        # An error after a request to stop is not a failure: data loaders, for one, get the same signal.
        return InterruptedByInfrastructureError(stop.received)
    found = cause.infrastructure(error, assignment.attempt.path)
    if found:
        name, text = found
        return InterruptedByInfrastructureError(_described(assignment, name, text)[0], asked=False, cause=name)
    return _excused(assignment, error)


def _excused(assignment: Assignment, error: BaseException) -> InterruptedByInfrastructureError | None:
    """Return the interruption that an exception of the user's is, if the run is to be started again after it."""
    if assignment.rank_failed or not recovery.excused(assignment.planned.resources.attempts, error):
        return None
    reason, decision = _described(assignment, recovery.EXCEPTION, f"exception: {signature(error, assignment.code)}")
    if isinstance(decision, recovery.Stop):
        return None
    return InterruptedByInfrastructureError(reason, asked=False, cause=recovery.EXCEPTION)


def _described(assignment: Assignment, cause: str, reason: str) -> tuple[str, recovery.Again | recovery.Stop]:
    """Return why this attempt ends, with what that means for the run, and the decision."""
    *earlier, last = recovery.of_launch(read_attempts(assignment.run), assignment.planned.launch)
    this = replace(recovery.ending(last), cause=cause, reason=reason)
    endings = [*map(recovery.ending, earlier), this]
    decision = recovery.decide(assignment.planned.resources.attempts, endings, recovery.Room())
    return recovery.described(reason, decision), decision


def _leave(assignment: Assignment, events: EventWriter, usage: Usage) -> None:
    """End this process from another thread: the training may hang, and its results are no longer needed."""
    try:
        _say_interrupted(assignment, events, usage, superseded.error())
    finally:
        os._exit(143)


def _say_interrupted(
    assignment: Assignment, events: EventWriter, usage: Usage, error: InterruptedByInfrastructureError
) -> None:
    _log.warning("stopped by %s", error)
    more: dict[str, object] = {"together": True} if error.together else {}
    if error.cause:
        more["cause"] = error.cause
        if not assignment.leads:
            events = EventWriter(assignment.attempt.rank_events(assignment.context.rank), redact=events.redact)
    try:
        events.write("interrupted", reason=_why(assignment, error), usage=usage.to_json(), **more)
    except OSError as refused:  # the failing disk itself may refuse it; the exit status says the same
        _log.warning("not recorded: %s", refused)
    _mark(assignment, RunState.CANCELLED if assignment.cancelled else RunState.INTERRUPTED)


def _show(text: str) -> None:
    """Print to the log; ignore a disk that fails."""
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _by_stopping(assignment: Assignment, signal: str) -> bool:
    """Whether an error is a consequence of the request to stop.

    With several ranks, SIGTERM may also come from srun, because one rank has died: then Slurm is not ending the job,
    and the error counts. If Slurm is ending it, some nodes' processes are killed first, and the others lose connection.
    """
    return assignment.planned.resources.world_size == 1 or requeue.job_is_ending(assignment, signal)


def _train(assignment: Assignment, config: dict[str, Any], events: EventWriter, stop: StopSignal) -> dict[str, object]:
    libraries.load()
    from orchestrator.tracking.logger import SpoolLogger
    from orchestrator.worker.fit import trainer

    weights, state = (_start(assignment, config.get(key)) for key in STARTS)
    earlier = [assignment.run.attempt(n) for n in range(assignment.planned.history, assignment.planned.attempt)]
    work = trainer.Training(
        config=config,
        resources=assignment.planned.resources,
        objective=_objective(assignment),
        folder=assignment.attempt.path,
        artifacts=assignment.run.artifacts,
        resume_from=to_resume(earlier),
        weights_from=weights,
        state_from=state,
        weights_only=any((config.get(key) or {}).get("weights_only") for key in STARTS),
        context=assignment.context,
        redact=events.redact,
        report=trial.reporter(assignment, events),
        checkpoint=assignment.header.checkpoint,
        example=assignment.attempt.example if assignment.header.tracking.get("register") else None,
    )
    path = assignment.attempt.metrics if assignment.leads else Path(os.devnull)
    with SpoolWriter(path, redact=events.redact) as spool:
        logger = SpoolLogger(spool, assignment.attempt)
        with fluent(logger.kept):
            return trainer.train(work, logger=logger, events=events, stop=stop)


def _objective(assignment: Assignment) -> Objective | None:
    """Return the objective of a run: for a trial that of its search, even if another launch runs it again."""
    searched = read_trial(assignment.launch, assignment.planned)
    if searched and len(searched.search.objectives) == 1:
        return searched.search.objectives[0]
    return assignment.header.objective


def _start(assignment: Assignment, frozen: starts.Start | None) -> Path | None:
    """Return the checkpoint that the run starts from, or None. Raises StateError if it has changed since the launch."""
    if frozen is None:
        return None
    path = starts.locate(frozen, assignment.launch.runs)
    if assignment.leads:
        starts.check_content(frozen, path)
    return path


def _why(assignment: Assignment, error: InterruptedByInfrastructureError) -> str:
    """Return why a run has stopped, as far as this process can know."""
    if not error.asked:
        return str(error)
    claim, hours = read_claim(assignment.attempt), assignment.planned.resources.hours
    over = bool(hours and claim and time.time() - claim.process.started >= hours * 3600)
    if over and not assignment.cancelled:
        return f"time limit of {hours:g} h, stopped by {error}"
    return requeue.reason(assignment, str(error))


def _check_environment(assignment: Assignment) -> None:
    frozen = environment.Environment.from_json(assignment.header.environment)
    found = environment.differences(frozen, environment.current())
    if not found:
        return
    told = "; ".join(found)
    if assignment.header.env == "refuse":
        raise OrchError(
            "the Python environment has changed since the launch",
            why=told,
            fix="restore it, launch again, or set env=warn",
        )
    _log.warning("the Python environment has changed since the launch: %s", told)


def _place(assignment: Assignment, view: str | None, point: Point | None) -> dict[str, object]:
    """Return the config with this node's folders and, for a trial, the values that it was given."""
    config = read_run_config(assignment.launch, assignment.planned, point)
    if assignment.leads and not listed(assignment.run.config):
        replace_text(assignment.run.config, yaml.safe_dump(masked(config), sort_keys=False))
    section = {key: value for key, value in config["data"].items() if key != "version"}
    placed: dict[str, Any] = _substitute({**config, "data": section}, {VIEW: view, PROJECT: assignment.code[0]})
    return placed


def _substitute(node: Any, places: Mapping[str, str | None]) -> Any:
    if isinstance(node, dict):
        return {key: _substitute(value, places) for key, value in node.items()}
    if isinstance(node, list):
        return [_substitute(value, places) for value in node]
    if isinstance(node, str):
        for token, folder in places.items():
            if token in node and folder is not None:
                node = node.replace(token, folder)
    return node


def _fail(assignment: Assignment, events: EventWriter, usage: Usage, error: BaseException) -> None:
    text = "".join(traceback.format_exception(error))
    _show(events.redact(text))
    if cause.lost_rank(error) and not assignment.rank_failed:
        # That rank was killed, or failed too early to record it. Its exit status shows which.
        _log.warning("the connection to another rank is lost")
        return
    mark_state(assignment.experiment, assignment.planned.run, assignment.planned.attempt, RunState.FAILED.value)
    if assignment.rank_failed:  # this rank's error is only a consequence, such as a lost connection
        events.write("interrupted", reason="another rank has failed", usage=usage.to_json())
        return
    if not assignment.leads:
        events = EventWriter(assignment.attempt.rank_events(assignment.context.rank), redact=events.redact)
    message = f"{error}{cause.advice(error)}"
    found = {"signature": signature(error, assignment.code), "message": message, "traceback": text}
    events.write("failed", **found, usage=usage.to_json())
    on_run_end.failed(assignment, found["signature"])


def signature(error: BaseException, roots: list[str]) -> str:
    """Return a text that equal failures share: the error's type, and the innermost line of the project's own code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if any(frame.filename.startswith(f"{root}{os.sep}") for root in roots)]
    if isinstance(error, OrchError):
        return f"{type(error).__name__}: {error.what}"
    if not frames:
        return type(error).__name__
    last = (own or list(frames))[-1]
    name = "GPU out of memory" if cause.is_gpu_full(error) else type(error).__name__
    return f"{name} at {Path(last.filename).name}:{last.lineno}"


def _mark(assignment: Assignment, state: RunState) -> None:
    """Write the state to the index. A write error is only logged: the index is derived from the events."""
    if not assignment.leads or assignment.superseded:
        return
    try:
        mark_state(assignment.experiment, assignment.planned.run, assignment.planned.attempt, state.value)
    except (OSError, StateError) as error:
        _log.warning("not marked as %s: %s", state, error)
