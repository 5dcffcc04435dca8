"""What is known of a run: events, their fold, and the reconciliation with what the scheduler says.

Pure: reading files is for `experiment.py`. The fold orders by (attempt, sequence), never by clock.
A run is `done` only by its own completion event; a scheduler that does not answer makes it `unknown`,
never gone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from orchestrator.cluster import JobState, Observation
from orchestrator.records.cause import cause
from orchestrator.records.planned import PlannedRun
from orchestrator.spec import Point, RunId
from orchestrator.system.processes import ProcessId

_SIGNALLED = range(129, 193)
"""A shell's exit status of what was killed by signal n: 128 and n."""
_ASKED_TO_STOP = 143

EVENT_VERSION = 1
"""Written as `v` into each event; a reader skips events of a version it does not know."""


class RunState(StrEnum):
    """The states of a run, in the order in which they are shown."""

    RUNNING = "running"
    QUEUED = "queued"
    WAITING = "waiting"  # its launch has not handed it to the scheduler yet: the queue was full
    DONE = "done"
    FAILED = "failed"  # by an exception of the user's: starts again from scratch with your current code
    INTERRUPTED = "interrupted"  # by infrastructure: resumes from its last checkpoint with its own code
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"  # the scheduler did not answer; nothing is concluded from that

    @property
    def active(self) -> bool:
        """Whether somebody may still be at work on it, so that nobody else may start it."""
        return self in {RunState.RUNNING, RunState.QUEUED, RunState.WAITING, RunState.UNKNOWN}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of an attempt's events.jsonl. `time` is in seconds since the epoch, for people only."""

    sequence: int
    kind: str
    time: float
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        return {"v": EVENT_VERSION, "seq": self.sequence, "kind": self.kind, "time": self.time, **self.data}


def parse_event(value: Mapping[str, Any]) -> Event | None:
    """Return the event of one JSON line; None for what is not one, or comes from a newer version."""
    if value.get("v") != EVENT_VERSION or not isinstance(value.get("seq"), int):
        return None
    data = {key: entry for key, entry in value.items() if key not in {"v", "seq", "kind", "time"}}
    if not all(_HOLDS[key](entry) for key, entry in data.items() if key in _HOLDS):
        return None
    return Event(sequence=value["seq"], kind=str(value.get("kind")), time=float(value.get("time", 0.0)), data=data)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _are_numbers(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(each, float) or _is_number(each) for each in value.values())


def _is_best(value: object) -> bool:
    return isinstance(value, dict) and _is_value(value.get("value"))


def _is_value(value: object) -> bool:
    return value is None or isinstance(value, float) or _is_number(value)


_HOLDS: Mapping[str, Callable[[object], bool]] = {
    "metrics": _are_numbers,
    "progress": lambda value: isinstance(value, dict) and all(map(_is_value, value.values())),
    "best": _is_best,
    "point": _is_object,
    "attrs": _is_object,
    "study": _is_object,
    "from": lambda value: value is None or (isinstance(value, dict) and type(value.get("attempt")) is int),
    "inexact": lambda value: isinstance(value, list),
    "validation": _is_number,
    "value": _is_value,
    "since": _is_number,
}
"""What an event's entries have to be: one with another is damaged, and skipped like a torn line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Who took an attempt, for which launch, and what it starts from.

    `history` is the attempt that began from scratch: resumed attempts carry on its metrics. `job` is the
    scheduler's name of the job, `restart` how often that has been requeued, `address` where rank 0 listens.
    `devices` are the numbers of the GPUs that a supervisor of ours has given it.
    """

    launch: int
    index: int
    code: str
    generation: int
    history: int
    process: ProcessId
    time: float
    job: str = ""
    restart: int = 0
    address: str = ""
    devices: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Claim:
        return cls(
            launch=int(value["launch"]),
            index=int(value["index"]),
            code=str(value["code"]),
            generation=int(value["generation"]),
            history=int(value["history"]),
            process=ProcessId.from_json(value["process"]),
            time=float(value["time"]),
            job=str(value.get("job", "")),
            restart=int(value.get("restart", 0)),
            address=str(value.get("address", "")),
            devices=tuple(map(str, value.get("devices", ()))),
        )

    def to_json(self) -> dict[str, object]:
        return {
            "launch": self.launch,
            "index": self.index,
            "code": self.code,
            "generation": self.generation,
            "history": self.history,
            "process": self.process.to_json(),
            "time": self.time,
            "job": self.job,
            "restart": self.restart,
            "address": self.address,
            "devices": list(self.devices),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The attempt whose checkpoint another one resumed from, and the bytes of its metrics that count (None: all).

    `attempt` 0: it began from scratch.
    """

    attempt: int = 0
    metrics_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An exception of the user's. `signature` groups equal failures: "KeyError at model.py:41"."""

    signature: str
    message: str
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The fold of one attempt's events. `state` is RUNNING until a final event, or an observer, says more.

    `progress` holds epoch, epochs, step; `metrics` the last value of each metric; `best` the objective's
    best value with its step and checkpoint; `usage` the most memory it has taken. `first_progress` is
    the first that was reported, at `first_progressed`, the last at `progressed`; `heard` is when it last said anything.
    `settled`: its own process has said that it is done, or has failed, so that nothing said later counts.
    `ended_itself`: its own process has said how it ended; one that an observer took for dead may still write.
    `origin`: where it began; None where it has not yet, or has not said so. `unsaved`: why its state cannot be saved
    now, or nothing. `exact`: why it does not resume exactly, `yes`, or nothing where it has not said so.
    `cause`: why it was interrupted, in a word, where that was known: see launch/recovery.py.
    `together`: all of its ranks were alive when they stopped, so that one that dies later is not the cause.
    `stalling_since`: since when it has made no progress, as a watcher last saw it, and what is known of that.
    `trial`, of an adaptive sweep: its `point`, its sampler's and pruner's `attrs` and `study`, its `reports`, pairs of
    the number of a validation, from 1, and the objective's value there (None: no number), and after which of them it
    was `pruned`.
    """

    number: int
    claim: Claim | None
    state: RunState = RunState.RUNNING
    reason: str = ""
    cause: str = ""
    ended: float | None = None
    stage: str = "starting"
    progress: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, object] = field(default_factory=dict)
    failure: Failure | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    first_progress: Mapping[str, object] = field(default_factory=dict)
    first_progressed: float | None = None
    progressed: float | None = None
    heard: float | None = None
    stalling_since: float | None = None
    stalling: str = ""
    settled: bool = False
    ended_itself: bool = False
    together: bool = False
    origin: Origin | None = None
    unsaved: str = ""
    exact: str = ""
    trial: Mapping[str, Any] = field(default_factory=dict)

    @property
    def final(self) -> bool:
        return self.state is not RunState.RUNNING


def fold(
    number: int,
    claim: Claim | None,
    events: Iterable[Event],
    observed: Iterable[Event] = (),
    ranks: Iterable[Event] = (),
) -> Attempt:
    """Return what one attempt's own events say, and, where they have no final event, what observers saw.

    The first final event counts; only a completion is stronger than what was said before it. `ranks` are the
    failures of ranks other than 0: the scheduler stops rank 0 for them, which it takes for an interruption.
    """
    seen: dict[str, Any] = {"metrics": {}}
    for event in sorted(events, key=lambda event: event.sequence):
        if "state" not in seen or event.kind == "done":
            _take(seen, event)
            seen["heard"] = event.time
    seen["settled"] = seen.get("state") in {RunState.DONE, RunState.FAILED}
    seen["ended_itself"] = "state" in seen
    for event in ranks:
        if seen.get("state", RunState.INTERRUPTED) is RunState.INTERRUPTED and not seen.get("together"):
            _take(seen, event)
    for event in observed:
        if event.kind == "stalling":
            seen |= {"stalling_since": event.data.get("since"), "stalling": str(event.data.get("what", ""))}
        elif "state" not in seen:
            _take(seen, event)
    return Attempt(number=number, claim=claim, **seen)


def _take(seen: dict[str, Any], event: Event) -> None:
    """Take an event into the fields of an attempt; a kind that a newer version added has no effect."""
    data = event.data
    if isinstance(data.get("usage"), Mapping):  # of a kind of its own, or with the first or final event
        seen["usage"] = data["usage"]
    match event.kind:
        case "staging" | "staged" | "training":
            seen |= _stage(event.kind, data)
        case "unsaved":
            seen["unsaved"] = str(data.get("reason", ""))
        case "exact":
            seen["exact"] = "; ".join(map(str, data.get("inexact") or ())) or "yes"
        case "progress":
            seen |= {"progress": data.get("progress", {}), "progressed": event.time}
            seen.setdefault("first_progress", seen["progress"])
            seen.setdefault("first_progressed", event.time)
            seen["metrics"] |= data.get("metrics", {})
        case "trial" | "report":
            _take_trial(seen, event)
        case "done":
            seen["metrics"] |= data.get("metrics", {})
            seen |= {"state": RunState.DONE, "ended": event.time, "best": data.get("best", {})}
            pruned = data.get("pruned")
            seen |= {"stage": "", "reason": f"pruned at validation {pruned}" if pruned else "", "failure": None}
            seen |= {"trial": {**seen.get("trial", {}), "pruned": pruned}} if pruned else {}
        case "failed":
            failure = Failure(
                signature=str(data.get("signature", "unknown")),
                message=str(data.get("message", "")),
                traceback=str(data.get("traceback", "")),
            )
            seen |= {"state": RunState.FAILED, "ended": _end(event), "failure": failure, "reason": failure.signature}
        case "interrupted":
            seen |= {"state": RunState.INTERRUPTED, "ended": _end(event), "reason": str(data.get("reason", ""))}
            seen |= {"together": data.get("together") is True, "cause": str(data.get("cause", ""))}


def _stage(kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stage that an attempt has reached; of its training, where it began."""
    if kind == "staging":
        return {"stage": str(data.get("told", "copying data"))}
    if kind == "staged":
        return {"stage": "building", "data": data}
    found: dict[str, Any] = {"stage": "training"}
    if "from" in data:
        known = data["from"] or {}
        found["origin"] = Origin(attempt=known.get("attempt", 0), metrics_bytes=known.get("metrics_bytes"))
    return found


def counted(attempts: Iterable[Attempt]) -> dict[int, int]:
    """Return how many bytes of the metrics count, by attempt, where not all do.

    The history of a run is a chain: the metrics of an attempt up to the checkpoint that a later one resumed from, and
    then that one's. What the earlier one logged after it, and attempts that nothing was resumed from, do not count.
    """
    ends: dict[int, int] = {}
    numbers: list[int] = []
    for attempt in attempts:
        if attempt.origin is not None:
            ends |= {number: 0 for number in numbers if number > attempt.origin.attempt}
            ends.pop(attempt.origin.attempt, None)
            if attempt.origin.attempt in numbers and attempt.origin.metrics_bytes is not None:
                ends[attempt.origin.attempt] = attempt.origin.metrics_bytes
        numbers.append(attempt.number)
    return ends


def _take_trial(seen: dict[str, Any], event: Event) -> None:
    """Take what a trial was given, or what it reported after a validation."""
    data = event.data
    if event.kind == "trial":
        seen["trial"] = {**{key: dict(data.get(key, {})) for key in ("point", "attrs", "study")}, "reports": []}
    elif "trial" in seen:
        seen["trial"]["reports"].append((data.get("validation"), data.get("value")))
        seen["trial"]["attrs"] |= data.get("attrs", {})


def _end(event: Event) -> float:
    """Return when an attempt ended: an observer may have looked much later."""
    ended = event.data.get("ended")
    return float(ended) if isinstance(ended, int | float) else event.time


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Everything known of one run."""

    planned: PlannedRun
    state: RunState
    reason: str
    attempts: tuple[Attempt, ...]
    node: str = ""
    job: str = ""
    observation: Observation | None = None

    @property
    def id(self) -> RunId:
        return self.planned.run

    @property
    def last(self) -> Attempt | None:
        return self.attempts[-1] if self.attempts else None

    @property
    def given(self) -> Point | None:
        """The values that a trial was given when it began; None of all other runs, and before."""
        for attempt in reversed(self.attempts):  # of 10,000 runs that are none: it is to be quick
            if attempt.trial and (point := attempt.trial.get("point")):
                return dict(point)
        return None

    @property
    def pruned(self) -> bool:
        """Whether a trial is done because its search had no hope for it."""
        return self.state is RunState.DONE and self.last is not None and bool(self.last.trial.get("pruned"))

    @property
    def point(self) -> Point:
        """Its coordinates; of a trial that has begun, with the values that it was given."""
        given = self.given
        return {**self.planned.point, **given} if given else self.planned.point

    @property
    def code(self) -> str:
        """The tree that the latest attempt ran, or that the next one will run."""
        claim = self.last.claim if self.last else None
        return claim.code if claim and self.begun else self.planned.code

    @property
    def task(self) -> tuple[int, int]:
        """The launch, and the index in it, whose attempt has claimed the run: not always the latest."""
        claim = self.last.claim if self.last and self.begun else None
        return (claim.launch, claim.index) if claim else (self.planned.launch, self.planned.index)

    @property
    def begun(self) -> bool:
        """Whether the attempt that the latest plan asked for has started."""
        return self.last is not None and self.last.number >= self.planned.attempt

    @property
    def awaits_cluster(self) -> bool:
        """Whether its cluster has yet to do something: hand it over, or put its jobs right."""
        return self.state is RunState.WAITING or (self.observation is not None and self.observation.needs_cleanup)

    @property
    def settled(self) -> bool:
        """Whether nothing can change it but a later launch.

        A done or failed run is not resumed. Of an earlier attempt that has not said how it ended, an observer may yet
        record the end; and one that an observer took for dead may come back, and say more.
        """
        ended = all(attempt.ended_itself for attempt in self.attempts)
        return self.begun and ended and self.last is not None and self.last.settled

    @property
    def failure(self) -> Failure | None:
        return self.last.failure if self.last and self.state is RunState.FAILED else None

    @property
    def history(self) -> tuple[Attempt, ...]:
        """The attempts that belong together: from the last start from scratch on."""
        claim = self.attempts[-1].claim if self.attempts else None
        if claim is not None and len(self.attempts) == 1:
            return self.attempts
        first = claim.history if claim else self.planned.history
        return tuple(attempt for attempt in self.attempts if attempt.number >= first)

    @property
    def endings(self) -> list[str]:
        """Why the attempts that belong together ended, but for the last: `1: killed by signal 9`."""
        return [f"{attempt.number}: {attempt.reason}" for attempt in self.history[:-1] if attempt.reason]

    @property
    def started(self) -> float | None:
        return next((attempt.claim.time for attempt in self.history if attempt.claim), None)

    @property
    def ended(self) -> float | None:
        return self.last.ended if self.last and not self.state.active else None

    def spans(self, now: float) -> tuple[float, ...]:
        """Return how many seconds each of the attempts that belong together has taken."""
        return tuple([self._span(attempt, now) for attempt in self.history])

    def seconds(self, now: float) -> float:
        """Return how long these attempts have taken together; the time between them does not count."""
        return sum(self.spans(now))

    def _span(self, attempt: Attempt, now: float) -> float:
        alive = attempt is self.last and self.state in {RunState.RUNNING, RunState.UNKNOWN}
        end = attempt.ended or (now if alive else attempt.heard)
        return max(0.0, end - attempt.claim.time) if attempt.claim and end is not None else 0.0

    def best_value(self, metric: str) -> float | None:
        """Return the best value of a metric where the run kept one, else its last."""
        best = self.last.best if self.last else {}
        value = best.get("value") if best.get("metric") == metric else self.metrics.get(metric)
        return float(value) if value is not None else None

    @property
    def counted(self) -> Mapping[int, int]:
        """How many bytes of the metrics of its attempts count, by attempt, where not all do."""
        return counted(self.history)

    @property
    def metrics(self) -> Mapping[str, float]:
        ends = self.counted if len(self.attempts) > 1 else {}
        attempts = [attempt for attempt in self.history if ends.get(attempt.number) != 0]
        return {name: value for attempt in attempts for name, value in attempt.metrics.items()}


_CANCELLABLE = frozenset({RunState.INTERRUPTED, RunState.WAITING})


def reconcile(
    planned: PlannedRun, attempts: Iterable[Attempt], *, observation: Observation | None, cancelled: str
) -> Record:
    """Return the record that attempts, the latest plan and the scheduler's word make together.

    `observation` is None where nobody was asked, or the answer does not mention the run. `cancelled`: why somebody has
    cancelled the run in that launch; empty where nobody has.
    """
    ordered = _with_exit(planned, tuple(sorted(attempts, key=lambda attempt: attempt.number)), observation)
    last = ordered[-1] if ordered else None
    begun = last is not None and last.number >= planned.attempt
    state, reason = _begun(last, observation) if last is not None and begun else _not_begun(observation)
    if cancelled and (state in _CANCELLABLE or (state is RunState.QUEUED and not begun)):
        state, reason = RunState.CANCELLED, cancelled
    seen = observation or Observation(state=JobState.UNKNOWN)
    node = seen.node or (last.claim.process.host if last and last.claim and not last.final else "")
    return Record(
        planned=planned,
        state=state,
        reason=reason,
        attempts=ordered,
        node=node,
        job=seen.job,
        observation=observation,
    )


def _with_exit(
    planned: PlannedRun, attempts: tuple[Attempt, ...], observation: Observation | None
) -> tuple[Attempt, ...]:
    """Return the attempts with the failure of a job that ended without a final event, or before it could claim one.

    A run of which a process was killed is interrupted. One of several that ended by itself fails the run, unless all
    of them had stopped before.
    """
    status = observation.status if observation else None
    begun = bool(attempts) and attempts[-1].number >= planned.attempt
    last = attempts[-1] if begun else Attempt(number=planned.attempt, claim=None)
    if not observation or not status or status in _SIGNALLED:
        return attempts
    if last.state not in {RunState.RUNNING, RunState.INTERRUPTED} or last.together:
        return attempts
    exit_text = f"exit status {status}"
    failure = Failure(
        signature=exit_text if last.claim else f"{exit_text} before training",
        message=cause(observation.output),
        traceback=observation.output,
    )
    failed = replace(last, state=RunState.FAILED, failure=failure, reason=failure.signature)
    return (*(attempts[:-1] if begun else attempts), failed)


def _begun(last: Attempt, observation: Observation | None) -> tuple[RunState, str]:
    if last.state in {RunState.DONE, RunState.FAILED}:
        return last.state, last.reason
    if last.final and not _may_go_on(last, observation):
        news = _news(observation) if last.claim and last.claim.job else ""
        return last.state, f"{last.reason} ({news})" if news not in last.reason else last.reason
    match observation:
        case None | Observation(state=JobState.ENDED):
            return RunState.INTERRUPTED, observation.reason if observation else "its launch has ended"
        case Observation(state=JobState.UNKNOWN | JobState.WAITING):  # who began it was handed over all the same
            return RunState.UNKNOWN, observation.reason
        case Observation(state=JobState.PENDING):
            before = f"requeued ({observation.reason}): {last.reason}"
            return RunState.QUEUED, before if last.final else observation.reason
    return RunState.RUNNING, observation.reason or last.stage


def _news(observation: Observation | None) -> str:
    """Return what a scheduler knows of an end that the attempt's own final event may not mention."""
    if observation is None or observation.forgotten or observation.status == _ASKED_TO_STOP:  # and so it did
        return ""
    return observation.reason


def _may_go_on(last: Attempt, observation: Observation | None) -> bool:
    """Return whether an interrupted attempt's run may yet be started again by its scheduler, without us."""
    if observation is None or last.claim is None:
        return False
    by_slurm = bool(last.claim.job) and observation.state is not JobState.ENDED
    return by_slurm or observation.state is JobState.PENDING  # so says a supervisor of ours


def _not_begun(observation: Observation | None) -> tuple[RunState, str]:
    match observation:
        case None:
            return RunState.UNKNOWN, "its cluster does not report it"
        case Observation(state=JobState.WAITING):
            return RunState.WAITING, observation.reason
        case Observation(state=JobState.PENDING):
            return RunState.QUEUED, observation.reason
        case Observation(state=JobState.RUNNING):
            return RunState.RUNNING, "starting"
        case Observation(state=JobState.UNKNOWN):
            return RunState.UNKNOWN, observation.reason
    return RunState.INTERRUPTED, observation.reason or "ended before it started"
